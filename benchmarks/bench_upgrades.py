"""What does an application notice of fifty upgrades of its model, while it infers as fast as one core goes?

A device process serves ResNet-20 through the Python API, with the whole agent around it (watch, fetch with differences,
self-test in a process of its own, session, trial, telemetry), from an update service in another process. Half of the
upgrades change ranges alone, half change weights. Every answer is compared, bit for bit, with what the version that it
names must give; latencies while an upgrade goes on (from its publication until it is confirmed) are compared with those
between upgrades, turn by turn.

    python benchmarks/bench_upgrades.py [--upgrades 50] [--rest-seconds 1.0] [--json] [--smoke]

Weights are the trained ones where QUANTFLEET_DATA names the data, else random: no figure depends on them.
"""

# ruff: noqa: PLC0415  # the device's process must not import what a device has not
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CLASS = "x86-vnni"
ROWS = 8
P99_RATIO_BAR, RSS_RATIO_BAR = 2.0, 1.10
FORBIDDEN = ("onnx", "scipy", "sklearn", "sqlalchemy", "torch")
DEADLINE_SECONDS = 120.0


def make_artifacts(count: int) -> list[Any]:
    """Return as many artifacts as asked for; every second step changes ranges alone, the others weights alone."""
    import hashlib

    import models

    from quantization.artifact import build_artifact
    from quantization.calibration import Range
    from quantization.compile import compile_inference
    from quantization.compile_observation import compile_observation
    from quantization.graph import analyze, canonicalize
    from quantization.moments import ChannelReference
    from quantization.policy import Policy

    data = Path(os.environ.get("QUANTFLEET_DATA", "")) / "resnet20_cifar10.npz"
    model = models.resnet20_random()
    if data.is_file():
        with np.load(data) as arrays:
            model = models.resnet20({name: arrays[name] for name in arrays.files})
    canonical = canonicalize(model)
    plan = analyze(canonical)
    references = {
        layer.name: ChannelReference(np.zeros(layer.channels), np.ones(layer.channels), 1000)
        for layer in plan.corrected_layers
    }
    made = []
    for number in range(count):
        changed = np.random.default_rng(number // 2).random(len(plan.layers)) < 0.5
        policy = Policy(
            model_digest=hashlib.sha256(canonical).hexdigest(),
            device_class=CLASS,
            generation=number,
            ranges={site.name: Range(-4.0, 4.0 + 0.01 * ((number + 1) // 2)) for site in plan.sites},
            bit_widths={layer.name: 7 + int(is_8) for layer, is_8 in zip(plan.layers, changed, strict=True)},
            corrections={},
            range_method="mse",
        )
        inference = compile_inference(canonical, plan, policy)
        observation = compile_observation(canonical, plan, policy, references)
        made.append(build_artifact(inference, observation, policy, plan))
    return made


def serve(folder: Path, count: int) -> None:
    """Serve until stdin ends; each line publishes the next artifact."""
    from live_updates import LiveUpdates

    artifacts = make_artifacts(count)
    with LiveUpdates(folder) as updates:
        updates.publish(artifacts[0])
        print(updates.address, artifacts[0].manifest.model_digest, flush=True)
        for number, _ in enumerate(sys.stdin, 1):
            updates.publish(artifacts[number])


class Latencies:
    """Counts latencies in steps of 1 %: the same memory however many there are."""

    def __init__(self) -> None:
        self._counts = np.zeros(2_500, np.int64)  # 1 us to 18 hours
        self.count, self.total_seconds, self.longest_seconds = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[int(math.log(max(seconds * 1e6, 1.0)) / math.log(1.01))] += 1
        self.count += 1
        self.total_seconds += seconds
        self.longest_seconds = max(self.longest_seconds, seconds)

    def quantile_ms(self, quantile: float) -> float:
        """Return the latency that so large a part did not exceed, to 1 %."""
        place = int(np.searchsorted(np.cumsum(self._counts), quantile * self.count))
        return 1.01 ** (place + 1) * 1e-3


class Load:
    """Infers as fast as one core goes, and compares every answer."""

    def __init__(
        self,
        infer: Callable[[np.ndarray], Any],
        inputs: np.ndarray,
        wanted: np.ndarray,
    ) -> None:
        self.steady, self.upgrading = Latencies(), Latencies()
        self.wrong, self.failed, self.is_upgrading, self._is_over = 0, 0, False, False
        self._infer, self._inputs, self._wanted = infer, inputs, wanted
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def _run(self) -> None:
        row = 0
        while not self._is_over:
            row = (row + 1) % ROWS
            kept = self.upgrading if self.is_upgrading else self.steady
            began = time.perf_counter()
            try:
                answer = self._infer(self._inputs[row : row + 1])
            except Exception:  # noqa: BLE001  # whatever it is, it is what must not happen
                self.failed += 1
                continue
            kept.add(time.perf_counter() - began)
            if not np.array_equal(answer.output[0], self._wanted[answer.version - 1, row]):
                self.wrong += 1


def run_device(folder: Path, address: str, model_digest: str, upgrades: int, rest_seconds: float) -> None:
    """Be the device; ask on stdout for one upgrade after another, and print the figures."""
    from client.memory import keep_memory_small

    keep_memory_small()
    from client.api import Device
    from client.connection import ServiceChoice
    from client.process_memory import rss_bytes
    from client.settings import DeviceSettings

    with np.load(folder / "wanted.npz") as stored:
        inputs, wanted = stored["inputs"], stored["wanted"]
    settings = DeviceSettings.from_tables(
        {
            "trial": {"least_seconds": 0.2, "least_runs": 50, "latency_ratio": 10.0},
            "limits": {"free_bytes": 0},
            "report": {"interval_seconds": 1.0},
        },
        device_class=CLASS,
        model_digest=model_digest,
    )

    def wait_for(version: int) -> None:
        until = time.monotonic() + DEADLINE_SECONDS
        while True:
            status = device.status()
            if status.serving and status.serving.version == version and status.phase == "confirmed":
                return
            if time.monotonic() > until:
                raise SystemExit(f"version {version} is not confirmed: {status}")
            time.sleep(0.02)

    memory: list[int] = []
    service = ServiceChoice(address, "bench", is_insecure=True)
    with Device.open(folder / "state", settings=settings, service=service) as device:
        wait_for(1)
        with Load(device.infer, inputs, wanted) as load:
            time.sleep(rest_seconds)
            for number in range(1, upgrades + 1):
                load.is_upgrading = True
                print("publish", flush=True)
                wait_for(number + 1)
                load.is_upgrading = False
                time.sleep(rest_seconds)
                memory.append(rss_bytes())
    steady, upgrading = load.steady, load.upgrading
    figures = {
        "upgrades": upgrades,
        "inferences": steady.count + upgrading.count,
        "failed": load.failed,
        "wrong": load.wrong,
        "steady_p50_ms": steady.quantile_ms(0.5),
        "steady_p99_ms": steady.quantile_ms(0.99),
        "steady_max_ms": steady.longest_seconds * 1e3,
        "upgrading_p50_ms": upgrading.quantile_ms(0.5),
        "upgrading_p99_ms": upgrading.quantile_ms(0.99),
        "upgrading_max_ms": upgrading.longest_seconds * 1e3,
        "upgrading_seconds": upgrading.total_seconds,
        "rss_after_5_mb": memory[min(4, len(memory) - 1)] / 1e6,
        "rss_after_all_mb": memory[-1] / 1e6,
        "imported": [name for name in FORBIDDEN if name in sys.modules],
    }
    print(json.dumps(figures), flush=True)


def measure(folder: Path, upgrades: int, rest_seconds: float) -> dict[str, Any]:
    """Compile, start the server and the device, and carry what the device asks for; return its figures."""
    from client.runtime import Runtime

    artifacts = make_artifacts(upgrades + 1)
    inputs = np.random.default_rng(0).standard_normal((ROWS, 3, 32, 32)).astype(np.float32)
    wanted = []
    for artifact in artifacts:
        runtime = Runtime(artifact.manifest, artifact.blobs.__getitem__)
        wanted.append([runtime.infer(inputs[row : row + 1])[0] for row in range(ROWS)])
        runtime.close()
    np.savez(folder / "wanted.npz", inputs=inputs, wanted=np.asarray(wanted))
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--upgrades", str(upgrades)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(
        [*command, "--serve", str(folder / "server")], stdin=subprocess.PIPE, **pipes
    ) as server:
        try:
            address, model_digest = server.stdout.readline().split()
            device_command = [
                *command,
                "--device",
                str(folder),
                address,
                model_digest,
                "--rest-seconds",
                str(rest_seconds),
            ]
            with subprocess.Popen(device_command, **pipes) as device:
                try:
                    for line in device.stdout:
                        if line.strip() != "publish":
                            return json.loads(line)
                        server.stdin.write("\n")
                        server.stdin.flush()
                finally:
                    device.kill()
        finally:
            server.kill()
    raise SystemExit("the device's process ended without figures")


def main() -> int:
    """Measure, print, and compare with the bars."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upgrades", type=int, default=50)
    parser.add_argument("--rest-seconds", type=float, default=1.0, help="between upgrades")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="4 upgrades, and no bar on time or memory")
    parser.add_argument("--serve", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", nargs=3, metavar=("FOLDER", "ADDRESS", "DIGEST"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.upgrades + 1)
        return 0
    if arguments.device:
        folder, address, digest = arguments.device
        run_device(Path(folder), address, digest, arguments.upgrades, arguments.rest_seconds)
        return 0
    upgrades, rest = (4, 0.2) if arguments.smoke else (arguments.upgrades, arguments.rest_seconds)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), upgrades, rest)
    figures["p99_ratio"] = figures["upgrading_p99_ms"] / figures["steady_p99_ms"]
    figures["rss_ratio"] = figures["rss_after_all_mb"] / figures["rss_after_5_mb"]
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:24s} {value:.4g}" if isinstance(value, float) else f"{name:24s} {value}")
    is_right = not figures["failed"] and not figures["wrong"] and not figures["imported"]
    is_quick = figures["p99_ratio"] <= P99_RATIO_BAR and figures["rss_ratio"] <= RSS_RATIO_BAR
    return int(not is_right or not (is_quick or arguments.smoke))


if __name__ == "__main__":
    sys.exit(main())
