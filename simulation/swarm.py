"""Runs a swarm: many devices, each a gRPC client, against a server process, through a few publications and faults."""

import json
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantization.errors import ConfigurationError
from simulation.child_processes import Child, ChildProcesses, free_port
from simulation.progress import ProgressFunction
from simulation.swarm_counts import SwarmTarget
from simulation.swarm_faults import SwarmFaults
from simulation.swarm_home import DEVICE_CLASS, SwarmHome
from simulation.swarm_result import ServerUse, Spread, SwarmResult, VersionResult
from simulation.swarm_worker import WorkerOrder, allow_many_files

MAX_DEVICES = 50_000
_FILES_PER_DEVICE = 3  # its connection, and both sides of a bad network
_START_SECONDS = 60.0
_SERVE = (sys.executable, "-m", "server.cli", "serve")


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """What a swarm does.

    Attributes:
        devices: How many there are.
        versions: Upgrades that follow the first installation.
        is_at_once: Whether devices fetch when they are told, and not when it is their turn.
        faults: What goes wrong.
        seconds: Longest that the devices may take for one version.
        processes: In which devices live.
        connects_per_second: How many devices start in a second.
        seed: Of the model, waits and faults.
        cache_dir: Where trained models are kept; None for the user's.
        serve: The command that starts a server.
    """

    devices: int = 100
    versions: int = 2
    is_at_once: bool = False
    faults: SwarmFaults = field(default_factory=SwarmFaults)
    seconds: float = 300.0
    processes: int = 1
    connects_per_second: float = 500.0
    seed: int = 0
    cache_dir: Path | None = None
    serve: tuple[str, ...] = _SERVE

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not 1 <= self.devices <= MAX_DEVICES:
            raise ConfigurationError(f"a swarm has 1 to {MAX_DEVICES} devices, not {self.devices}")
        if not 0 <= self.versions <= 1000:
            raise ConfigurationError(f"a swarm is upgraded 0 to 1000 times, not {self.versions}")
        if not 1 <= self.processes <= 64:
            raise ConfigurationError(f"a swarm has 1 to 64 processes, not {self.processes}")
        if not (self.seconds > 0 and self.connects_per_second > 0):
            raise ConfigurationError("seconds and connects per second of a swarm must be above 0")


def run_swarm(settings: SwarmSettings, on_progress: ProgressFunction) -> SwarmResult:
    """Return what came of a swarm; all that it starts is gone afterwards.

    Raises:
        ConfigurationError: The system does not let one process open so many connections.
        UnreachableError: The server does not start, or a process of devices died.
    """
    _require_files(settings.devices)
    with tempfile.TemporaryDirectory(prefix="quantfleet-swarm") as folder:
        on_progress(0.0, "preparing the model")
        home = SwarmHome(Path(folder), settings.versions, settings.seed, settings.cache_dir)
        with ChildProcesses(Path(folder) / "logs") as children:
            server = SwarmServer(children, Path(folder), settings.serve)
            swarm = _Swarm(settings, home, server, children, on_progress)
            began = time.monotonic()
            versions = [swarm.bring(number) for number in range(settings.versions + 1)]
            wrong = swarm.end()
            server.measure()
        home.close()
    return SwarmResult(
        devices=settings.devices,
        is_at_once=settings.is_at_once,
        faults=str(settings.faults),
        versions=versions,
        errors=dict(swarm.errors),
        wrong_devices=wrong,
        server=ServerUse(server.peak_rss_bytes, round(server.cpu_seconds, 2), server.kills),
        wall_seconds=round(time.monotonic() - began, 2),
        **swarm.totals(),
    )


class SwarmServer:
    """The server's process, which may be killed and started anew on the same port.

    Attributes:
        port: Where it listens.
        peak_rss_bytes: The most that a process of it has had, as last measured.
        cpu_seconds: What its processes have taken, likewise.
        kills: How often it was killed.
    """

    def __init__(self, children: ChildProcesses, home: Path, command: tuple[str, ...]) -> None:
        """Serve a home folder on a free port."""
        self._children = children
        self.port = free_port()
        self.peak_rss_bytes, self.cpu_seconds, self.kills = 0, 0.0, 0
        self._cpu_before = 0.0
        self._command = [
            *command,
            f"--home={home}",
            "--insecure",
            f"--address=127.0.0.1:{self.port}",
            "--metrics-address=127.0.0.1:0",
        ]
        self._child = self._start()

    def measure(self) -> None:
        """See what the process has taken."""
        self.peak_rss_bytes = max(self.peak_rss_bytes, self._child.peak_rss_bytes())
        self.cpu_seconds = self._cpu_before + self._child.cpu_seconds()

    def kill(self) -> None:
        """Kill it, and start another."""
        self.measure()
        self._cpu_before = self.cpu_seconds
        self._children.kill(self._child)
        self.kills += 1
        self._child = self._start()

    def _start(self) -> Child:
        child = self._children.start("server", self._command)
        child.first_line(_START_SECONDS)
        return child


class _Swarm:
    """The processes of devices, and what they have said."""

    def __init__(
        self,
        settings: SwarmSettings,
        home: SwarmHome,
        server: SwarmServer,
        children: ChildProcesses,
        on_progress: ProgressFunction,
    ) -> None:
        self._settings, self._home, self._server, self._on_progress = settings, home, server, on_progress
        self._children = children
        self._said: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._counts: list[dict[str, Any]] = [{} for _ in range(settings.processes)]
        self._seconds: dict[tuple[str, int, str], list[float]] = {}
        self._runs: dict[str, tuple[str, bool]] = {}
        self._workers: list[Child] = []
        self._version, self._manifest_digest = 0, ""

    @property
    def errors(self) -> Counter[str]:
        """Calls that failed and were made again, by kind."""
        found: Counter[str] = Counter()
        for counts in self._counts:
            found.update(counts.get("errors", {}))
        return found

    def totals(self) -> dict[str, int]:
        """Return the sums of the devices' counts by name, without errors."""
        names = ("received_bytes", "refetched_bytes", "refetched_payloads", "verified_blobs")
        return {name: sum(counts.get(name, 0) for counts in self._counts) for name in names}

    def bring(self, number: int) -> VersionResult:
        """Publish a version and wait until all devices have it, or the time is over."""
        came = self.totals()["received_bytes"]
        target = self._home.publish(number)
        self._version, self._manifest_digest = target.version, target.manifest_digest
        began = time.monotonic()
        if not self._workers:
            self._start_workers()
        self._wait(number, began)
        return VersionResult(
            target.version,
            self._home.changes[number],
            Spread.of(self._since(began, "told")),
            Spread.of(self._since(began, "current")),
            self.totals()["received_bytes"] - came,
        )

    def end(self) -> dict[str, str]:
        """End the devices; return those that do not run the last version, and why."""
        for worker in self._workers:
            worker.write_line("end")
        deadline = time.monotonic() + _START_SECONDS
        while len(self._runs) < self._settings.devices and self._read(max(0.0, deadline - time.monotonic())):
            pass
        wrong, target = {}, self._manifest_digest
        for name in _names(self._settings.devices):
            digest, is_complete = self._runs.get(name, ("", False))
            if digest != target:
                wrong[name] = f"runs {digest[:12] or 'nothing'}, not {target[:12]}"
            elif not is_complete:
                wrong[name] = "lacks a part of what it runs"
        return wrong

    def _start_workers(self) -> None:
        settings = self._settings
        names, faults = _names(settings.devices), settings.faults.kinds(settings.devices, settings.seed)
        target = SwarmTarget(self._home.model_digest, DEVICE_CLASS.name, settings.is_at_once)
        for number in range(settings.processes):
            mine = slice(number, None, settings.processes)
            order = WorkerOrder(
                "127.0.0.1",
                self._server.port,
                target,
                names[mine],
                faults[mine],
                settings.connects_per_second / settings.processes,
                settings.seed * 64 + number,
            )
            worker = self._children.start(
                f"devices-{number}", [sys.executable, "-m", "simulation.swarm_worker"]
            )
            worker.write_line(order.to_line())
            threading.Thread(target=self._listen, args=(number, worker), daemon=True).start()
            self._workers.append(worker)

    def _listen(self, number: int, worker: Child) -> None:
        for line in worker.lines():
            self._said.put((number, json.loads(line)))

    def _wait(self, number: int, began: float) -> None:
        """Wait until all devices have the target, killing the server as asked on the way."""
        settings = self._settings
        deadline = began + settings.seconds
        kills_left = settings.faults.kill_server if number else 0
        while (done := len(self._since(began, "current"))) < settings.devices or kills_left:
            self._children.check()
            share, told = done / settings.devices, len(self._since(began, "told")) / settings.devices
            self._on_progress(
                (number + share) / (settings.versions + 1),
                f"version {number + 1} of {settings.versions + 1}: {done} of {settings.devices} devices",
            )
            if kills_left and told > (settings.faults.kill_server - kills_left) / settings.faults.kill_server:
                self._server.kill()
                kills_left -= 1
            if time.monotonic() > deadline:
                return
            self._read(0.1)

    def _read(self, seconds: float) -> bool:
        """Take in what one process said; return whether one did."""
        try:
            number, record = self._said.get(timeout=seconds)
        except queue.Empty:
            return False
        self._counts[number] = record["counts"]
        for kind, version, digest, at in record["events"]:
            self._seconds.setdefault((kind, version, digest), []).append(at)
        for name, digest, is_complete in record.get("runs", ()):
            self._runs[name] = (digest, is_complete)
        return True

    def _since(self, began: float, kind: str) -> list[float]:
        key = (kind, self._version, self._manifest_digest)
        return [at - began for at in self._seconds.get(key, ())]


def _names(devices: int) -> list[str]:
    return [f"device-{number:05}" for number in range(devices)]


def _require_files(devices: int) -> None:
    most, wanted = allow_many_files(), 512 + _FILES_PER_DEVICE * devices
    if most < wanted:
        raise ConfigurationError(
            f"{devices} devices need {wanted} open files, this system allows {most}; raise it with `ulimit -Hn`"
        )
