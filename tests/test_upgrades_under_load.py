"""Inference goes on, right and without a failure, while a device upgrades from a real server."""

import itertools
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from artifacts import example
from live_updates import LiveUpdates
from waiting import eventually

from client.api import Device
from client.connection import ServiceChoice
from client.runtime import Runtime
from client.settings import DeviceSettings

UPGRADES = 5
EXAMPLE = example("residual_cnn")
INPUTS = EXAMPLE.inputs(8)
ARTIFACTS = [
    EXAMPLE.artifact(number, width=4.0 + number // 2, bits=8 - (number + 1) // 2 % 2)
    for number in range(UPGRADES + 1)
]


def answers_of(index: int) -> np.ndarray:
    artifact = ARTIFACTS[index]
    runtime = Runtime(artifact.manifest, artifact.blobs.__getitem__)
    return np.stack([runtime.infer(INPUTS[row : row + 1])[0] for row in range(len(INPUTS))])


@pytest.mark.slow
def test_every_answer_under_load_is_that_of_the_version_it_names(tmp_path: Path) -> None:
    wanted = [answers_of(index) for index in range(len(ARTIFACTS))]
    assert all(not np.array_equal(old, new) for old, new in itertools.pairwise(wanted))
    settings = DeviceSettings.from_tables(
        {
            "limits": {"free_bytes": 0},
            "trial": {"least_seconds": 0.0, "least_runs": 20, "latency_ratio": 1e9},
            "report": {"interval_seconds": 0.2},
            "judge": {"every": 100, "share": 0.1, "wait_seconds": 0.1},
        },
        device_class="x86-vnni",
        model_digest=ARTIFACTS[0].manifest.model_digest,
    )
    seen: Counter[int] = Counter()
    wrong: list[str] = []
    is_over = threading.Event()
    with LiveUpdates(tmp_path / "server") as updates:
        updates.publish(ARTIFACTS[0])
        service = ServiceChoice(updates.address, "device-1", is_insecure=True)
        with Device.open(tmp_path / "state", settings=settings, service=service) as device:

            def is_confirmed(version: int) -> bool:
                status = device.status()
                return (
                    bool(status.serving) and status.serving.version == version and status.phase == "confirmed"
                )

            def load() -> None:
                row = 0
                while not is_over.is_set():
                    row = (row + 1) % len(INPUTS)
                    try:
                        answer = device.infer(INPUTS[row : row + 1])
                    except Exception as error:  # noqa: BLE001  # none may come
                        wrong.append(repr(error))
                        return
                    if not np.array_equal(answer.output[0], wanted[answer.version - 1][row]):
                        wrong.append(f"version {answer.version}")
                    seen[answer.version] += 1

            eventually(lambda: is_confirmed(1))
            threads = [threading.Thread(target=load) for _ in range(2)]
            for thread in threads:
                thread.start()
            try:
                for version in range(2, UPGRADES + 2):
                    updates.publish(ARTIFACTS[version - 1])
                    eventually(lambda wanted=version: is_confirmed(wanted))
            finally:
                is_over.set()
                for thread in threads:
                    thread.join()
            assert device.status().failures == 0
            samples = device.status().samples
            eventually(lambda: sum(report.counts.samples for report in updates.reports) == samples)
    assert wrong == []
    assert [*sorted(seen)] == [*range(1, UPGRADES + 2)]
    assert sum(seen.values()) == samples
