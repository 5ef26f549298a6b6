"""Shows a whole fleet on one machine: a drift, a tuned generation that is rolled out, a bad one that is taken back."""

import json
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from quantization.device_class import X86_VNNI
from quantization.errors import ConfigurationError, UnreachableError
from quantization.policy import Policy
from server.blob_store import BlobStore
from server.candidate import PlannedModel, load_weights, store_artifact
from server.lab import PreparedModel
from server.registry import Registry
from server.rollout import Phase, Rollout
from server.rollout_registry import RolloutRegistry
from simulation.bad_generations import BAD_KINDS, bad_artifact
from simulation.child_processes import Child, ChildProcesses
from simulation.drift import parse_drifts
from simulation.fleet import Fleet, FleetSettings
from simulation.fleet_load import FIELD, LAB
from simulation.fleet_timeline import Timeline
from simulation.lab import prepare_task
from simulation.local_fleet_result import Accuracies, LocalFleetResult, QueryResult, RolloutResult
from simulation.local_postgres import start_postgres
from simulation.local_prometheus import LocalPrometheus
from simulation.local_services import LocalServices
from simulation.summary import format_percent
from simulation.tasks.catalogue import load_task

TellFunction = Callable[[float, str], None]
"""Is told what happens, and how many seconds after the start."""

DEVICE_CLASS = X86_VNNI
QUERIES = (
    "quantfleet_target_version",
    "quantfleet_policy_generation",
    "quantfleet_update_watchers",
    'sum by (outcome) (quantfleet_install_total{outcome!=""})',
    "quantfleet_accuracy_ratio",
    "sum(quantfleet_client_inferences_total)",
    "sum(quantfleet_client_failures_total)",
    "count by (job) (up == 1)",
    "sum by (encoding) (quantfleet_update_sent_bytes_total)",
)
_MODEL_NAME = "digit-reader"
_CALLS_PER_SECOND, _BATCH = 2.0, 8
_WINDOW_SECONDS = 4.0
_MEASURE_SECONDS = 5.0
_SIGMAS = 3.5
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class LocalFleetSettings:
    """What is shown.

    Attributes:
        agents: Devices.
        nodes: Those of them with a SuperNode beside the agent.
        drift: What the field does.
        bad: What is wrong with the bad generation; one of `BAD_KINDS`.
        registry_url: Of a database that is there; empty for SQLite, or a PostgreSQL of one's own.
        has_postgres: Whether to start one.
        has_prometheus: Likewise.
        lab_seconds: How long the world stays as the lab knows it, at least.
        wait_seconds: Longest that any one thing may take.
        seed: Of data and model.
        logs: Where logs go; None for a folder that is removed.
        cache_dir: Where trained models are kept; None for the user's.
    """

    agents: int = 12
    nodes: int = 4
    drift: str = "contrast=0.3"
    bad: str = "destroyed-ranges"
    registry_url: str = ""
    has_postgres: bool = False
    has_prometheus: bool = True
    lab_seconds: float = 12.0
    wait_seconds: float = 240.0
    seed: int = 0
    logs: Path | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what shows nothing."""
        if not 1 <= self.nodes <= self.agents or not 6 <= self.agents <= 100:
            raise ConfigurationError(
                f"the fleet has 6 to 100 agents, 1 or more of them with a SuperNode, not {self.agents} and {self.nodes}"
            )
        if self.bad not in BAD_KINDS:
            raise ConfigurationError(
                f"bad generation '{self.bad}' is unknown; known are {', '.join(BAD_KINDS)}"
            )
        if self.registry_url and self.has_postgres:
            raise ConfigurationError("give the URL of a database, or have one started, not both")
        parse_drifts((self.drift,))


@dataclass
class LocalFleet:
    """A fleet that runs.

    Attributes:
        services: Its processes.
        prometheus: Its Prometheus; None where there is none.
        result: What came of it.
    """

    services: LocalServices
    prometheus: LocalPrometheus | None
    result: LocalFleetResult


@contextmanager
def running_fleet(settings: LocalFleetSettings, tell: TellFunction) -> Iterator[LocalFleet]:
    """Show everything, then yield the fleet, which runs until the block ends.

    Raises:
        ConfigurationError: Something is not installed.
        UnreachableError: A process failed, or something took too long.
    """
    with tempfile.TemporaryDirectory(prefix="qf-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)  # short, because sockets lie in it
        folder.chmod(0o711)  # a database that runs as somebody else must get through
        logs = settings.logs or folder / "logs"
        with ChildProcesses(logs) as children:
            show = _Show(settings, folder, children, tell)
            try:
                yield show.run()
            finally:
                show.close()


@dataclass
class _Stage:
    """One rollout as it is watched."""

    what: str
    phases: list[tuple[str, float]] = field(default_factory=list)


class _Show:
    """All of it, step by step."""

    def __init__(
        self, settings: LocalFleetSettings, folder: Path, children: ChildProcesses, tell: TellFunction
    ) -> None:
        self._settings, self._folder, self._children, self._tell = settings, folder, children, tell
        self._began = time.monotonic()
        self._phases: list[tuple[float, str]] = []
        self._failures: list[str] = []
        self._said: queue.Queue[str] = queue.Queue()
        self._timeline = Timeline()
        url = settings.registry_url
        if settings.has_postgres:
            self._say("starting PostgreSQL")
            url = start_postgres(children, folder / "pg")
        self._database = "PostgreSQL" if url.startswith("postgresql") else "SQLite"
        self.services = LocalServices(children, folder, url, settings.nodes)
        self._rollouts: RolloutRegistry | None = None
        self._stages: dict[str, _Stage] = {}

    def close(self) -> None:
        """Close what is open."""
        if self._rollouts is not None:
            self._rollouts.close()

    def run(self) -> LocalFleet:
        """Show everything; return the fleet with what came of it."""
        prometheus, load = self._start()
        self._await("every application is answered", lambda: len(self._versions()) == self._settings.agents)
        self._say(f"{self._settings.agents} devices serve; the world is as the lab knows it")
        lab_began = time.monotonic()
        self._wait(self._settings.lab_seconds)
        lab, _ = self._timeline.accuracy(lab_began)
        self._say(
            f"{format_percent(lab)} of the answers are right; now the field does {self._settings.drift}"
        )
        load.write_line(FIELD)
        self._wait(0.5)
        drift_began = time.monotonic()
        self._wait(_MEASURE_SECONDS)
        drifted, _ = self._timeline.accuracy(drift_began)
        self._say(f"{format_percent(drifted)} are right; the tuner must see it in the devices' counts")
        tuned_rollout = self._watch_tuner()
        drifted, _ = self._timeline.accuracy(drift_began, self._opened_at(tuned_rollout))
        good = self._watch(tuned_rollout, "the tuned generation")
        if good.phase is not Phase.COMPLETE:
            self._failures.append(f"the tuned generation ended {good.phase}: {good.reason}")
        serving = good.version if good.phase is Phase.COMPLETE else good.rolled_back_version
        self._await("all devices run it", lambda: set(self._versions().values()) == {serving})
        tuned_began = time.monotonic()
        self._wait(_MEASURE_SECONDS)
        tuned, _ = self._timeline.accuracy(tuned_began)
        self._say(
            f"{format_percent(tuned)} are right; now a bad generation comes: {BAD_KINDS[self._settings.bad]}"
        )
        bad_began = time.monotonic()
        self._publish(self._bad_manifest(), f"a bad generation: {self._settings.bad}")
        bad = self._watch(self._newest(after=good.version), f"a bad generation ({self._settings.bad})")
        back = bad.rolled_back_version
        self._await("all devices are back", lambda: set(self._versions().values()) <= {serving, back})
        bad_ended = time.monotonic()
        least, of = self._timeline.least_accuracy(bad_began, bad_ended, _WINDOW_SECONDS)
        self._wait(_MEASURE_SECONDS)
        after, _ = self._timeline.accuracy(bad_ended)
        self._say(f"{format_percent(after)} are right again; no device runs the bad generation")
        accuracies = Accuracies(lab, drifted, tuned, least, after)
        share = self._judge(accuracies, bad, of)
        return LocalFleet(self.services, prometheus, self._result(accuracies, (good, bad), share, prometheus))

    # How it starts.

    def _start(self) -> tuple[LocalPrometheus | None, Child]:
        services, settings = self.services, self._settings
        self._say("making keys and certificates, and preparing the model")
        keys = services.make_keys()
        fleet, prepared = self._prepare()
        services.finish(keys)
        self._say(f"starting the server on {self._database}, and a SuperLink")
        services.start_server()
        services.start_superlink()
        self._rollouts = RolloutRegistry.open(services.registry_url)
        self._publish(prepared.generations[DEVICE_CLASS.name].manifest_digest, "the lab's own calibration")
        names = [f"device-{number:02}" for number in range(1, settings.agents + 1)]
        self._say(f"enrolling {settings.agents} devices and starting their agents")
        agents = services.start_agents(names, prepared.model.digest, DEVICE_CLASS.name)
        inputs = {name: self._write_inputs(name, fleet, place) for place, name in enumerate(names)}
        services.wait_for_superlink()
        services.start_nodes(agents[: settings.nodes], DEVICE_CLASS.name)
        prometheus = services.start_prometheus(agents) if settings.has_prometheus else None
        load = services.start_load(agents, inputs, _CALLS_PER_SECOND, _BATCH)
        threading.Thread(target=self._listen, args=(load,), daemon=True).start()
        services.start_tuner()
        return prometheus, load

    def _prepare(self) -> tuple[Fleet, PreparedModel]:
        """Calibrate the model in the lab; return the devices' data with it."""
        settings = self._settings
        task = load_task("digits", settings.seed, settings.cache_dir)
        drifts = parse_drifts((settings.drift,))
        fleet = Fleet(
            task, FleetSettings(settings.agents, "iid", drifts, 1.0, (DEVICE_CLASS,), settings.seed)
        )
        self._task, self._blobs = task, BlobStore(self.services.home / "blobs")
        with Registry.open(self.services.registry_url) as registry:
            self._prepared = prepare_task(
                task, (DEVICE_CLASS,), "mse", registry, self._blobs, name=_MODEL_NAME
            )
        return fleet, self._prepared

    def _write_inputs(self, name: str, fleet: Fleet, place: int) -> Path:
        """Write what a device will see: the same rows as the lab has them, and as the field has them."""
        path = self._folder / f"{name}.npz"
        rows = fleet.task.field_x[fleet.rows[place]]
        arrays = {LAB: fleet.task.to_input(rows), FIELD: fleet.inputs(place), "labels": fleet.labels(place)}
        filled: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
        with path.open("wb") as file:
            np.savez(file, **filled)
        return path

    def _publish(self, manifest_digest: str, reason: str) -> None:
        self.services.ask("publish", manifest_digest, "--reason", reason)

    def _bad_manifest(self) -> str:
        """Store an artifact of a bad generation; return its manifest's digest."""
        model_digest = self._prepared.model.digest
        with Registry.open(self.services.registry_url) as registry:
            served = registry.published(model_digest, DEVICE_CLASS.name)
        policy = Policy.from_json_bytes(served.policy.encode())
        references = self._prepared.statistics[DEVICE_CLASS.name].references
        model = PlannedModel.load(model_digest, self._blobs)
        rounded = load_weights(policy, self._blobs)
        artifact = bad_artifact(self._settings.bad, model, policy, references, rounded)
        return store_artifact(self._blobs, artifact)

    # How it is watched.

    def _watch_tuner(self) -> Rollout:
        """Wait until the tuner has published something."""
        said = ""

        def has_published() -> bool:
            nonlocal said
            with Registry.open(self.services.registry_url) as registry:
                found = registry.generations(self._prepared.model.digest, DEVICE_CLASS.name)
            words = f"generation {found[-1].number}: {found[-1].step}"
            if found[-1].number and words != said:
                said = words
                self._say(words)
            return bool(self._all_rollouts())

        self._await("the tuner publishes", has_published, seconds=2 * self._settings.wait_seconds)
        return self._all_rollouts()[0]

    def _all_rollouts(self) -> tuple[Rollout, ...]:
        if self._rollouts is None:
            return ()
        return self._rollouts.rollouts()

    def _newest(self, after: int) -> Rollout:
        """Return the rollout that was opened after a version."""
        self._await(
            "a rollout is opened",
            lambda: any(one.version > after for one in self._all_rollouts()),
        )
        return next(one for one in self._all_rollouts() if one.version > after)

    def _watch(self, rollout: Rollout, what: str) -> Rollout:
        """Follow a rollout to its end, and say where it stands."""
        phases: list[tuple[str, float]] = []
        last: tuple[Phase, int] | None = None

        def has_ended() -> bool:
            nonlocal rollout, last
            if self._rollouts is not None:
                rollout = self._rollouts.rollout(rollout.rollout_id)
            if (rollout.phase, rollout.step) != last:
                last = (rollout.phase, rollout.step)
                phases.append((str(rollout.phase), time.time() - rollout.started_at_seconds))
                self._say(self._standing(rollout, what))
            return not rollout.is_open

        self._await(f"{what} is judged", has_ended)
        self._stages[rollout.rollout_id] = _Stage(what, phases)
        return rollout

    def _standing(self, rollout: Rollout, what: str) -> str:
        running = sum(version == rollout.version for version in self._versions().values())
        words = f"{what}, version {rollout.version}: {str(rollout.phase).replace('_', ' ')}"
        if rollout.is_open:
            words += f" at {rollout.share:.0%}"
        reason = f" ({rollout.reason})" if rollout.reason else ""
        return f"{words}{reason}; {running} of {self._settings.agents} devices run it"

    def _opened_at(self, rollout: Rollout) -> float:
        """Return when a rollout was opened, by the monotonic clock."""
        return time.monotonic() - (time.time() - rollout.started_at_seconds)

    # What it comes to.

    def _judge(self, accuracies: Accuracies, bad: Rollout, answers: int) -> float:
        """Note what was not as it should be; return the part of the devices that ran the bad version."""
        reached = self._timeline.devices_with(bad.version)
        share = len(reached) / self._settings.agents
        planned = bad.plan.shares[0]
        noise = _SIGMAS * sqrt(accuracies.tuned * (1 - accuracies.tuned) / max(answers, 1) + 1e-4)
        if accuracies.tuned <= accuracies.drifted:
            self._failures.append("tuning has not made the fleet better")
        if bad.phase is not Phase.ROLLED_BACK or bad.step != 0:
            self._failures.append(f"the bad generation ended {bad.phase} at step {bad.step + 1}")
        if accuracies.least < accuracies.tuned - max(planned, share) - noise:
            self._failures.append(
                f"accuracy fell to {format_percent(accuracies.least)}, below the {format_percent(accuracies.tuned)} "
                f"of the version before by more than the canaries' {share:.0%}"
            )
        if self._timeline.unanswered:
            self._failures.append(
                f"{self._timeline.unanswered} inputs were not answered: {'; '.join(self._timeline.errors[:3])}"
            )
        return share

    def _result(
        self,
        accuracies: Accuracies,
        rollouts: tuple[Rollout, Rollout],
        share: float,
        prometheus: LocalPrometheus | None,
    ) -> LocalFleetResult:
        settings = self._settings
        queries = [QueryResult(one, prometheus.query(one)) for one in QUERIES] if prometheus else []
        status, history = self.services.ask("status"), self.services.ask("rollout", "list")
        return LocalFleetResult(
            agents=settings.agents,
            nodes=settings.nodes,
            database=self._database,
            drift=settings.drift,
            bad=settings.bad,
            accuracies=accuracies,
            rollouts=[self._rollout_result(one) for one in rollouts],
            canary_share=share,
            asked=self._timeline.asked,
            unanswered=self._timeline.unanswered,
            queries=queries,
            status=status,
            history=history,
            phases=tuple(self._phases),
            series=self._timeline.series(self._began, 2.0),
            failures=tuple(self._failures),
            wall_seconds=round(time.monotonic() - self._began, 1),
        )

    def _rollout_result(self, rollout: Rollout) -> RolloutResult:
        stage = self._stages[rollout.rollout_id]
        ended = rollout.finished_at_seconds or time.time()
        return RolloutResult(
            rollout.version,
            stage.what,
            tuple((phase, round(seconds, 1)) for phase, seconds in stage.phases),
            rollout.reason,
            len(self._timeline.devices_with(rollout.version)),
            round(ended - rollout.started_at_seconds, 1),
        )

    # Time.

    def _versions(self) -> dict[str, int]:
        """Return the version that each device answered with last."""
        return dict(self._timeline.moments[-1].versions) if self._timeline.moments else {}

    def _listen(self, load: Child) -> None:
        for line in load.lines():
            self._said.put(line)

    def _read(self, seconds: float) -> None:
        """Take in what applications have counted."""
        try:
            self._timeline.add(json.loads(self._said.get(timeout=seconds)))
            while True:
                self._timeline.add(json.loads(self._said.get_nowait()))
        except queue.Empty:
            return

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._children.check()
            self._read(min(left, 1.0))

    def _await(self, what: str, is_so: Callable[[], bool], seconds: float = 0.0) -> None:
        deadline = time.monotonic() + (seconds or self._settings.wait_seconds)
        while not is_so():
            self._children.check()
            if time.monotonic() > deadline:
                raise UnreachableError(f"not within {seconds or self._settings.wait_seconds:g} s: {what}")
            self._read(_POLL_SECONDS)

    def _say(self, words: str) -> None:
        at = time.monotonic() - self._began
        self._phases.append((round(at, 1), words))
        self._tell(at, words)
