"""Everything that brings a generation, as real processes on this machine, any of which may be killed at any time.

A SuperLink, SuperNodes with simulated devices, the tuner, and an update server over one home folder. What is killed is
started again at once, as a service manager would: the SuperLink has forgotten its runs then, and SuperNodes end and
register anew.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from quantization.device_class import X86_VNNI
from quantization.errors import RoundFailedError
from server.blob_store import BlobStore
from server.candidate import load_manifest
from server.flower_app import toml_value
from server.generation import Generation
from server.registry import Registry
from server.rollout_registry import RolloutRegistry
from server.settings import ConfigValue
from server.tuning_registry import TuningRegistry
from simulation.child_processes import free_port
from simulation.lab import prepare_task
from simulation.stage_processes import StageProcesses
from simulation.tasks import load_task

_CLASS = X86_VNNI.name
_POLL_SECONDS = 0.25
_SUPERNODE = "supernode-"


class Part(StrEnum):
    """What can be killed."""

    SERVERAPP = "ServerApp"
    SUPERLINK = "SuperLink"
    SUPERLINK_TREE = "SuperLink with all its processes"
    TUNER = "tuner"
    SERVER = "update server"


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What is staged.

    Attributes:
        task: Built-in task.
        drift: What devices see.
        devices: SuperNodes.
        seed: Of the task and the fleet.
        cache: Folder for the trained model.
        run: More keys of the run configuration.
    """

    task: str = "digits"
    drift: str = "contrast=0.3"
    devices: int = 2
    seed: int = 0
    cache: Path | None = None
    run: dict[str, ConfigValue] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Name of the model in the registry."""
        return f"{self.task}-seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What was published, to the byte.

    Attributes:
        manifest: Its bytes.
        blobs: Stored bytes by digest.
        facts: What the registry has of the generation: policy, and digests of folded statistics (not the assessment,
            which holds measured times).
    """

    manifest: bytes
    blobs: dict[str, bytes]
    facts: dict[str, str]


class TuningStage:
    """The processes; as a context manager it starts and ends them all."""

    def __init__(self, folder: Path, settings: StageSettings) -> None:
        """Choose ports and folders, and prepare the model; nothing runs yet."""
        self.folder = folder.resolve()
        self.home = self.folder / "home"
        self._settings = settings
        self._ports = {name: free_port() for name in ("superlink", "server")}
        self._processes = StageProcesses(self.folder, [self.home / "tuner" / "flower"])
        self.home.mkdir(parents=True, exist_ok=True)
        self._digest = self._prepare()
        (self.home / "tuner.toml").write_text(self._tuner_toml(), encoding="utf-8")

    @property
    def registry_url(self) -> str:
        """The registry's database."""
        return f"sqlite:///{self.home / 'registry.db'}"

    def __enter__(self) -> Self:
        try:
            self._start_superlink()
            for position in range(self._settings.devices):
                self._start_supernode(position)
            self._start_server()
            self._start_tuner()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self) -> None:
        """Ask the tuner for a generation."""
        with TuningRegistry.open(self.registry_url) as tuning:
            tuning.request(self._settings.model, actor="stage")

    def kill(self, part: Part) -> bool:
        """Kill a part without a warning, and start it again; return whether it was there."""
        if part is Part.SERVERAPP:
            return self._processes.kill_found("flwr-serverapp")
        if part in (Part.SUPERLINK, Part.SUPERLINK_TREE):
            is_there = self._processes.kill("superlink", with_all_below=part is Part.SUPERLINK_TREE)
            self._start_superlink()
        elif part is Part.TUNER:
            is_there = self._processes.kill("tuner")
            self._start_tuner()
        else:
            is_there = self._processes.kill("server")
            self._start_server()
        return is_there

    def tend(self) -> None:
        """Start what has ended of itself again: a SuperNode ends when its SuperLink has forgotten it.

        Raises:
            RoundFailedError: Another part has ended; says what it logged.
        """
        for name, status in self._processes.ended().items():
            if not name.startswith(_SUPERNODE):
                raise RoundFailedError(f"{name} ended with status {status}: {self._processes.tail(name)}")
            self._start_supernode(int(name.removeprefix(_SUPERNODE)))

    def pause(self, seconds: float) -> None:
        """Let that time pass, and tend the processes meanwhile."""
        deadline = time.monotonic() + seconds
        while (rest := deadline - time.monotonic()) > 0:
            self.tend()
            time.sleep(min(rest, _POLL_SECONDS))

    def is_working(self) -> bool:
        """Return whether generation 1 is not closed yet."""
        generation = self.generation()
        return generation is None or generation.is_open

    def generation(self) -> Generation | None:
        """Return generation 1, once there is one."""
        with Registry.open(self.registry_url) as registry:
            known = registry.generations(self._digest, _CLASS)
        return known[-1] if len(known) > 1 else None

    def wait(self, seconds: float) -> Generation:
        """Return the generation once it is closed and its rollout is open.

        Raises:
            RoundFailedError: Not within that time.
        """

        def is_done() -> bool:
            return not self.is_working() and self._is_rolled_out()

        self._wait("the generation is published", is_done, seconds)
        generation = self.generation()
        if generation is None:
            raise RoundFailedError("there is no generation")
        return generation

    def runs(self) -> int:
        """Return how many Flower runs the tuner has started."""
        with TuningRegistry.open(self.registry_url) as tuning:
            return len(tuning.runs(self._settings.model, most=10_000))

    def artifact(self) -> Artifact:
        """Return what was published."""
        generation = self.generation()
        if generation is None:
            raise RoundFailedError("there is no generation")
        blobs = BlobStore(str(self.home / "blobs"))
        manifest = load_manifest(blobs, generation.manifest_digest)
        names = (
            "policy",
            "moments_digest",
            "inputs_digest",
            "probes_digest",
            "ranges_digest",
            "weights",
            "drift",
        )
        facts = {name: str(getattr(generation, name)) for name in (*names, "manifest_digest")}
        return Artifact(manifest.to_bytes(), {digest: blobs.get(digest) for digest in manifest.blobs}, facts)

    def close(self) -> None:
        """End every process, and whatever they left behind."""
        self._processes.close()

    def _prepare(self) -> str:
        """Calibrate generation 0, and publish it to devices; return the model's digest."""
        settings = self._settings
        task = load_task(settings.task, settings.seed, settings.cache)
        blobs = BlobStore(str(self.home / "blobs"))
        with (
            Registry.open(self.registry_url) as registry,
            RolloutRegistry.open(self.registry_url) as rollouts,
        ):
            prepared = prepare_task(task, (X86_VNNI,), "mse", registry, blobs, name=settings.model)
            digest = prepared.model.digest
            first = registry.published(digest, _CLASS).manifest_digest
            rollouts.publish(digest, _CLASS, first, reason="first", actor="stage")
        return digest

    def _tuner_toml(self) -> str:
        settings = self._settings
        run: dict[str, ConfigValue] = {
            "device-source": "simulated",
            "task": settings.task,
            "drift": settings.drift,
            "seed": settings.seed,
            "expected-nodes": settings.devices,
            "quorum-fraction": 1.0,
            "deadline-seconds": 400.0,
            "poll-seconds": 0.3,
            **({"cache-dir": str(settings.cache)} if settings.cache is not None else {}),
            **settings.run,
        }
        table = {
            "look-seconds": 0.5,
            "flower-seconds": 2.0,
            "start-seconds": 60.0,
            "lease-seconds": 4.0,
            "retry-seconds": 1.0,
            "most-retry-seconds": 4.0,
            "most-attempts": 1000,
            "run-seconds": 900.0,
        }
        lines = ["[tuner]", f"model = {toml_value('model', settings.model)}"]
        lines += [f"{key} = {value}" for key, value in table.items()]
        lines += ["[tuner.run]", *(f"{key} = {toml_value(key, value)}" for key, value in run.items()), ""]
        return "\n".join(lines)

    def _start_superlink(self) -> None:
        port = self._ports["superlink"]
        self._processes.start(
            "superlink",
            "flower-superlink",
            "--insecure",
            "--disable-runtime-dependency-installation",
            "--host=127.0.0.1",
            f"--port={port}",
        )

    def _start_supernode(self, position: int) -> None:
        self._processes.start(
            f"{_SUPERNODE}{position}",
            "flower-supernode",
            "--insecure",
            f"--superlink=127.0.0.1:{self._ports['superlink']}",
            f"--port={free_port()}",
            f"--node-config=partition-id={position} num-partitions={self._settings.devices}",
        )

    def _start_server(self) -> None:
        self._processes.start(
            "server",
            "quantfleet-server",
            "serve",
            f"--home={self.home}",
            "--insecure",
            f"--address=127.0.0.1:{self._ports['server']}",
            "--enrolment-address=",
            "--metrics-address=",
        )

    def _start_tuner(self) -> None:
        address = f"127.0.0.1:{self._ports['superlink']}"
        self._processes.start(
            "tuner",
            "quantfleet-server",
            "tune",
            f"--home={self.home}",
            "--insecure",
            f"--superlink-address={address}",
        )

    def _is_rolled_out(self) -> bool:
        with RolloutRegistry.open(self.registry_url) as rollouts:
            return len(rollouts.targets(self._digest, _CLASS)) > 1

    def _wait(self, goal: str, is_reached: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_reached():
            self.tend()
            if time.monotonic() > deadline:
                raise RoundFailedError(f"not within {seconds:g} s: {goal}\n{self._processes.tails()}")
            time.sleep(_POLL_SECONDS)
