"""Shows a whole fleet on one machine: a drift, a tuned generation that is rolled out, a bad one that is taken back."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server.rollout import Phase, Rollout
from server.rollout_registry import RolloutRegistry
from simulation.bad_generations import BAD_KINDS
from simulation.child_processes import Child, ChildProcesses
from simulation.fleet_load import FIELD
from simulation.fleet_model import DEVICE_CLASS, FleetModel
from simulation.fleet_verdict import failures_of
from simulation.fleet_watch import FleetWatch, TellFunction
from simulation.local_fleet_result import Accuracies, LocalFleetResult, QueryResult, RolloutResult
from simulation.local_fleet_settings import LocalFleetSettings
from simulation.local_postgres import start_postgres
from simulation.local_prometheus import LocalPrometheus
from simulation.local_services import LocalServices
from simulation.summary import format_percent

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
_CALLS_PER_SECOND, _BATCH = 2.0, 8
_WINDOW_SECONDS = 4.0
_MEASURE_SECONDS = 5.0


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
        self._settings, self._folder = settings, folder
        self._watching = FleetWatch(children, tell, settings.wait_seconds)
        url = settings.registry_url
        if settings.has_postgres:
            self._watching.say("starting PostgreSQL")
            url = start_postgres(children, folder / "pg")
        self._database = "PostgreSQL" if url.startswith("postgresql") else "SQLite"
        self.services = LocalServices(children, folder, url, settings.nodes)
        self._open = ExitStack()
        self._stages: dict[str, _Stage] = {}

    def close(self) -> None:
        """Close what is open."""
        self._open.close()

    def run(self) -> LocalFleet:
        """Show everything; return the fleet with what came of it."""
        prometheus, load = self._start()
        self._watching.until(
            "every application is answered", lambda: len(self._watching.versions) == self._settings.agents
        )
        self._watching.say(f"{self._settings.agents} devices serve; the world is as the lab knows it")
        lab_began = time.monotonic()
        self._watching.wait(self._settings.lab_seconds)
        lab, _ = self._watching.timeline.accuracy(lab_began)
        self._watching.say(
            f"{format_percent(lab)} of the answers are right; now the field does {self._settings.drift}"
        )
        load.write_line(FIELD)
        self._watching.wait(0.5)
        drift_began = time.monotonic()
        self._watching.wait(_MEASURE_SECONDS)
        drifted, _ = self._watching.timeline.accuracy(drift_began)
        self._watching.say(
            f"{format_percent(drifted)} are right; the tuner must see it in the devices' counts"
        )
        tuned_rollout = self._watch_tuner()
        drifted, _ = self._watching.timeline.accuracy(drift_began, self._opened_at(tuned_rollout))
        good = self._watch(tuned_rollout, "the tuned generation")
        serving = good.version if good.phase is Phase.COMPLETE else good.rolled_back_version
        self._watching.until("all devices run it", lambda: set(self._watching.versions.values()) == {serving})
        tuned_began = time.monotonic()
        self._watching.wait(_MEASURE_SECONDS)
        tuned, _ = self._watching.timeline.accuracy(tuned_began)
        self._watching.say(
            f"{format_percent(tuned)} are right; now a bad generation comes: {BAD_KINDS[self._settings.bad]}"
        )
        bad_began = time.monotonic()
        self._publish(self._model.store_bad(self._settings.bad), f"a bad generation: {self._settings.bad}")
        bad = self._watch(self._newest(after=good.version), f"a bad generation ({self._settings.bad})")
        back = bad.rolled_back_version
        self._watching.until(
            "all devices are back", lambda: set(self._watching.versions.values()) <= {serving, back}
        )
        bad_ended = time.monotonic()
        least, of = self._watching.timeline.least_accuracy(bad_began, bad_ended, _WINDOW_SECONDS)
        self._watching.wait(_MEASURE_SECONDS)
        after, _ = self._watching.timeline.accuracy(bad_ended)
        self._watching.say(f"{format_percent(after)} are right again; no device runs the bad generation")
        accuracies = Accuracies(lab, drifted, tuned, least, after)
        timeline, agents = self._watching.timeline, self._settings.agents
        failures = failures_of(accuracies, (good, bad), timeline, agents=agents, answers=of)
        return LocalFleet(
            self.services, prometheus, self._result(accuracies, (good, bad), failures, prometheus)
        )

    # How it starts.

    def _start(self) -> tuple[LocalPrometheus | None, Child]:
        services, settings = self.services, self._settings
        self._watching.say("making keys and certificates, and preparing the model")
        keys = services.make_keys()
        self._model = FleetModel(
            services.home,
            services.registry_url,
            agents=settings.agents,
            drift=settings.drift,
            seed=settings.seed,
            cache_dir=settings.cache_dir,
        )
        self._open.callback(self._model.close)
        services.finish(keys)
        self._watching.say(f"starting the server on {self._database}, and a SuperLink")
        services.start_server()
        services.start_superlink()
        self._rollouts = self._open.enter_context(RolloutRegistry.open(services.registry_url))
        self._publish(self._model.lab_manifest_digest, "the lab's own calibration")
        names = [f"device-{number:02}" for number in range(1, settings.agents + 1)]
        self._watching.say(f"enrolling {settings.agents} devices and starting their agents")
        agents = services.start_agents(names, self._model.model_digest, DEVICE_CLASS.name)
        inputs = {
            name: self._model.write_inputs(self._folder / f"{name}.npz", place)
            for place, name in enumerate(names)
        }
        services.wait_for_superlink()
        services.start_nodes(agents[: settings.nodes], DEVICE_CLASS.name)
        prometheus = services.start_prometheus(agents) if settings.has_prometheus else None
        load = services.start_load(agents, inputs, _CALLS_PER_SECOND, _BATCH)
        self._watching.listen(load)
        services.start_tuner()
        return prometheus, load

    def _publish(self, manifest_digest: str, reason: str) -> None:
        self.services.ask("publish", manifest_digest, "--reason", reason)

    # How it is watched.

    def _watch_tuner(self) -> Rollout:
        """Wait until the tuner has published something."""
        said = ""

        def has_published() -> bool:
            nonlocal said
            newest = self._model.newest_generation()
            words = f"generation {newest.number}: {newest.step}"
            if newest.number and words != said:
                said = words
                self._watching.say(words)
            return bool(self._rollouts.rollouts())

        self._watching.until("the tuner publishes", has_published, seconds=2 * self._settings.wait_seconds)
        return self._rollouts.rollouts()[0]

    def _newest(self, after: int) -> Rollout:
        """Return the rollout that was opened after a version."""
        self._watching.until(
            "a rollout is opened",
            lambda: any(one.version > after for one in self._rollouts.rollouts()),
        )
        return next(one for one in self._rollouts.rollouts() if one.version > after)

    def _watch(self, rollout: Rollout, what: str) -> Rollout:
        """Follow a rollout to its end, and say where it stands."""
        phases: list[tuple[str, float]] = []
        last: tuple[Phase, int] | None = None

        def has_ended() -> bool:
            nonlocal rollout, last
            rollout = self._rollouts.rollout(rollout.rollout_id)
            if (rollout.phase, rollout.step) != last:
                last = (rollout.phase, rollout.step)
                phases.append((str(rollout.phase), time.time() - rollout.started_at_seconds))
                self._watching.say(self._standing(rollout, what))
            return not rollout.is_open

        self._watching.until(f"{what} is judged", has_ended)
        self._stages[rollout.rollout_id] = _Stage(what, phases)
        return rollout

    def _standing(self, rollout: Rollout, what: str) -> str:
        running = sum(version == rollout.version for version in self._watching.versions.values())
        words = f"{what}, version {rollout.version}: {str(rollout.phase).replace('_', ' ')}"
        if rollout.is_open:
            words += f" at {rollout.share:.0%}"
        reason = f" ({rollout.reason})" if rollout.reason else ""
        return f"{words}{reason}; {running} of {self._settings.agents} devices run it"

    def _opened_at(self, rollout: Rollout) -> float:
        """Return when a rollout was opened, by the monotonic clock."""
        return time.monotonic() - (time.time() - rollout.started_at_seconds)

    # What it comes to.

    def _result(
        self,
        accuracies: Accuracies,
        rollouts: tuple[Rollout, Rollout],
        failures: list[str],
        prometheus: LocalPrometheus | None,
    ) -> LocalFleetResult:
        settings, timeline = self._settings, self._watching.timeline
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
            canary_share=len(timeline.devices_with(rollouts[1].version)) / settings.agents,
            asked=timeline.asked,
            unanswered=timeline.unanswered,
            queries=queries,
            status=status,
            history=history,
            phases=tuple(self._watching.phases),
            series=timeline.series(self._watching.began, 2.0),
            failures=tuple(failures),
            wall_seconds=round(time.monotonic() - self._watching.began, 1),
        )

    def _rollout_result(self, rollout: Rollout) -> RolloutResult:
        stage = self._stages[rollout.rollout_id]
        ended = rollout.finished_at_seconds or time.time()
        return RolloutResult(
            rollout.version,
            stage.what,
            tuple((phase, round(seconds, 1)) for phase, seconds in stage.phases),
            rollout.reason,
            len(self._watching.timeline.devices_with(rollout.version)),
            round(ended - rollout.started_at_seconds, 1),
        )
