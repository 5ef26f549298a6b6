"""The demonstration as a whole, with fewer devices, and what remains of it when it is interrupted: nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest
from interrupts import listen_to_interrupts

_COMMAND = [sys.executable, "-m", "simulation.cli", "fleet", "--agents=6", "--nodes=2", "--no-prometheus"]
_MARK = "QUANTFLEET_FLEET_TEST"
_DEADLINE_SECONDS = 120.0


def _marked(mark: str) -> set[int]:
    """Return the processes that have inherited a mark in their environment."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_drifted_fleet_is_tuned_and_a_bad_generation_is_taken_back(tmp_path: Path) -> None:
    more = ["--prometheus"] if shutil.which("prometheus") else []
    done = subprocess.run(
        [*_COMMAND, *more, "--json", f"--out={tmp_path}", f"--cache-dir={tmp_path / 'cache'}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    tuned, bad = result["rollouts"]
    assert [phase for phase, _ in tuned["phases"]][-1] == "complete"
    assert [phase for phase, _ in bad["phases"]] == ["canary", "rolled_back"]
    assert result["accuracies"]["tuned"] > result["accuracies"]["drifted"] + 0.3
    assert result["accuracies"]["after"] > result["accuracies"]["drifted"] + 0.3
    assert result["unanswered"] == 0
    assert bad["devices"] < result["agents"]
    assert (tmp_path / "fleet.html").exists()
    assert (tmp_path / "logs" / "server.log").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_remains_of_an_interrupted_fleet(tmp_path: Path, number: signal.Signals) -> None:
    mark = uuid4().hex
    command = [*_COMMAND, f"--cache-dir={tmp_path / 'cache'}"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, _MARK: mark},
        start_new_session=True,
        preexec_fn=listen_to_interrupts,  # noqa: PLW1509 - nothing else of this process runs in the child
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "starting their agents" in line:
                break
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait(_DEADLINE_SECONDS) == 130, said
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while left := _marked(mark):
        assert time.monotonic() < deadline, f"processes {left} live on"
        time.sleep(0.1)
