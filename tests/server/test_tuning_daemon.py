"""The tuner on a real registry and real generations, with a SuperLink in memory that can go away."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from structlog.testing import capture_logs

import server.app
from quantization.arrays import FloatArray
from quantization.device_class import ARM
from quantization.errors import ConfigurationError, IllegalTransitionError, NotFoundError, UnreachableError
from server.blob_store import BlobStore
from server.field_drift import DriftRules
from server.flower_runs import Outcome, RunSight
from server.generation import Step
from server.lab import PreparedModel, prepare_model
from server.registry import Registry
from server.rollout import Event, Phase
from server.rollout_registry import RolloutRegistry
from server.settings import ConfigValue
from server.signed_publishing import Publisher, publish
from server.telemetry_counts import TelemetryCounts
from server.telemetry_registry import DeviceReport, DeviceReports, TelemetryRegistry
from server.tuner_settings import Pace, TunerSettings
from server.tuning_daemon import PublishFunction, Tuner
from server.tuning_registry import GenerationOutline, TuningRegistry
from server.tuning_runs import Cause, RunEvent, RunState
from server.tuning_situation import Facts, waiting_generation
from server.tuning_triggers import TriggerRules

PACE = Pace(
    look_seconds=1, flower_seconds=1, drift_seconds=1, start_seconds=60, run_seconds=600, lease_seconds=30
)
SETTINGS = TunerSettings(
    model="tiny",
    drift=DriftRules(window_samples=100, beginning_windows=1),
    triggers=TriggerRules(retry_seconds=5, pause_seconds=100),
    pace=PACE,
)


@dataclass
class Time:
    """A clock that stands still until it is moved."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class MemoryRuns:
    """A SuperLink in memory: it can be away, and forgets its runs when it is restarted."""

    is_up: bool = True
    is_deaf: bool = False
    known: dict[str, Outcome] = field(default_factory=dict)
    configs: list[Mapping[str, ConfigValue]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def check(self) -> None:
        if not self.is_up:
            raise UnreachableError("the SuperLink does not answer")

    def start(self, run_config: Mapping[str, ConfigValue]) -> str:
        self.check()
        self.configs.append(run_config)
        self.known[str(len(self.configs))] = Outcome.ACTIVE
        if self.is_deaf:
            raise UnreachableError("the answer was lost")
        return str(len(self.configs))

    def look(self, run_id: str) -> RunSight:
        self.check()
        if run_id not in self.known:
            raise NotFoundError("no such run")
        return RunSight(self.known[run_id], "code 7" if self.known[run_id] is Outcome.FAILED else "")

    def stop(self, run_id: str) -> None:
        self.check()
        self.stopped.append(run_id)

    def restart(self) -> None:
        self.is_up = True
        self.known.clear()


@dataclass
class Tuned:
    """One model, and what tunes it."""

    facts: Facts
    blobs: BlobStore
    runs: MemoryRuns
    clock: Time
    prepared: PreparedModel

    def tuner(self, *, holder: str = "one", publish: bool = False, **changes: Any) -> Tuner:
        return Tuner(
            self.facts,
            self.runs,
            replace(SETTINGS, **changes),
            places={"home": "/nowhere"},
            holder=holder,
            publish=self.publish_function() if publish else None,
        )

    def publish_function(self) -> PublishFunction:
        publisher = Publisher(self.facts.registry, self.facts.rollouts, self.blobs, None)

        def run(generation: GenerationOutline, reason: str) -> None:
            publish(publisher, generation.manifest_digest, None, None, None, actor="tuner", reason=reason)

        return run

    @property
    def digest(self) -> str:
        return self.prepared.model.digest

    @property
    def generations(self) -> list[tuple[int, int, Step]]:
        known = self.facts.registry.generations(self.digest, "arm")
        return [(g.number, g.base_number, g.step) for g in known]

    def ask(self) -> None:
        self.facts.tuning.request("tiny", actor="ana")

    def last_run(self) -> Any:
        return self.facts.tuning.runs("tiny")[0]

    def work(self, fleet: Any, monkeypatch: pytest.MonkeyPatch, *, run: int = -1) -> None:
        """Do what the ServerApp of a run does, with the registry and the blobs of this test."""
        config = dict(self.runs.configs[run])
        run_id = len(self.runs.configs) if run < 0 else run + 1
        url = self.facts.registry.place
        with monkeypatch.context() as patch:
            patch.setattr(server.app, "BlobStore", lambda _: self.blobs)
            context = Context(
                run_id, 1, {}, RecordDict(), {**config, "registry-url": url, "blob-folder": "x"}
            )
            grid = fleet.grid()
            server.app.run(grid, context, clock=grid.clock)
        self.runs.known[str(run_id)] = Outcome.COMPLETED


@pytest.fixture
def tuned(tmp_path: Path, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray) -> Iterator[Tuned]:
    clock, url = Time(), f"sqlite:///{tmp_path / 'registry.db'}"
    with (
        Registry.open(url, clock) as registry,
        RolloutRegistry.open(url, clock) as rollouts,
        TuningRegistry.open(url, clock) as tuning,
    ):
        prepared = prepare_model(
            tiny_model, lab_inputs, name="tiny", device_classes=[ARM], registry=registry, blobs=blobs
        )
        yield Tuned(Facts(registry, rollouts, tuning), blobs, MemoryRuns(), clock, prepared)


def test_a_request_becomes_a_run_and_the_run_a_generation(
    tuned: Tuned, make_fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = tuned.tuner()
    assert tuner.look().hold == "nothing asks for a run"
    tuned.ask()
    looked = tuner.look()
    assert (looked.hold, looked.run and looked.run.state) == ("", RunState.SUBMITTED)
    assert tuned.runs.configs[0]["model-name"] == "tiny"
    assert tuned.runs.configs[0]["tuning-run"] == tuned.last_run().key
    assert tuner.look().hold == "run 1 is open"

    tuned.work(make_fleet(gain=3.0), monkeypatch)
    assert tuned.last_run().state is RunState.COMPLETED  # the ServerApp said so itself
    assert tuner.look().hold == "nothing asks for a run"
    assert tuned.generations == [(0, 0, Step.PUBLISHED), (1, 0, Step.PUBLISHED)]


def test_a_run_waits_for_as_many_nodes_as_there_were(
    tuned: Tuned, make_fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = tuned.tuner()
    for devices in (4, 2):
        tuned.ask()
        tuner.look()
        tuned.runs.configs[-1] = {**tuned.runs.configs[-1], "expected-nodes": 0}
        tuned.work(make_fleet(devices=devices), monkeypatch)
    tuned.ask()
    tuner.look()
    assert tuned.runs.configs[-1]["expected-nodes"] == 4
    chosen = tuned.tuner(run={"expected-nodes": 9})
    assert chosen._run_config("")["expected-nodes"] == 9


def test_a_run_that_a_superlink_has_forgotten_is_followed_by_another(tuned: Tuned) -> None:
    tuner = tuned.tuner()
    tuned.ask()
    tuner.look()
    tuned.runs.is_up = False
    for _ in range(20):  # away for a while: nothing is given up
        tuned.clock.seconds += 2
        tuner.look()
    assert tuned.last_run().is_open
    tuned.runs.restart()
    tuned.clock.seconds += 2
    tuner.look()
    assert tuned.last_run().state is RunState.LOST
    tuned.clock.seconds += 5
    assert tuner.look().hold == ""
    assert (tuned.last_run().attempt, tuned.last_run().cause) == (2, Cause.COMMAND)
    assert len(tuned.runs.configs) == 2


def test_a_run_that_flower_calls_failed_is_followed_by_another_with_growing_waits(tuned: Tuned) -> None:
    tuner = tuned.tuner(triggers=TriggerRules(retry_seconds=5, most_attempts=4))
    tuned.ask()
    waits = []
    tuner.look()
    for _ in range(3):
        tuned.runs.known[str(len(tuned.runs.configs))] = Outcome.FAILED
        tuned.clock.seconds += 2
        tuner.look()
        assert (tuned.last_run().state, tuned.last_run().detail) == (RunState.FAILED, "code 7")
        began = tuned.clock.seconds
        while not tuned.last_run().is_open:
            tuned.clock.seconds += 1
            tuner.look()
        waits.append(tuned.clock.seconds - began)
    assert waits == [5, 10, 20]
    tuned.runs.known["4"] = Outcome.FAILED
    tuned.clock.seconds += 2
    tuner.look()
    tuned.clock.seconds += 10_000
    assert tuner.look().hold == "nothing asks for a run"


def test_a_superlink_that_is_away_is_asked_ever_less_often_and_costs_no_attempt(tuned: Tuned) -> None:
    tuner = tuned.tuner()
    tuned.runs.is_up = False
    tuned.ask()
    for _ in range(100):
        tuned.clock.seconds += 1
        assert tuner.look().hold == "the SuperLink does not answer"
    assert tuned.facts.tuning.runs("tiny") == ()
    tuned.runs.is_up = True
    tuned.clock.seconds += 60
    assert tuner.look().run is not None
    assert tuned.last_run().attempt == 1


def test_a_run_that_takes_too_long_is_stopped(tuned: Tuned) -> None:
    tuner = tuned.tuner()
    tuned.ask()
    tuner.look()
    run = tuned.last_run()
    tuned.facts.tuning.move(run, RunEvent.BEGAN)
    tuned.clock.seconds += 601
    tuner.look()
    assert tuned.facts.tuning.run(run.key).state is RunState.OVERDUE
    assert tuned.runs.stopped == ["1"]


def test_a_run_that_is_known_to_nobody_is_given_up_and_may_not_begin_afterwards(
    tuned: Tuned, make_fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.runs.is_deaf = True  # the run starts, and the tuner never learns of it
    tuned.ask()
    tuned.tuner().look()
    assert tuned.last_run().state is RunState.LOST
    with pytest.raises(IllegalTransitionError, match="cannot happen to a run that is 'lost'"):
        tuned.work(make_fleet(), monkeypatch)
    assert tuned.generations == [(0, 0, Step.PUBLISHED)]


def test_a_tuner_that_dies_before_it_knows_the_run_is_followed_by_one_that_finds_it(
    tuned: Tuned, make_fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.facts.tuning.lease("tiny", "dead", 30)
    run = tuned.facts.tuning.start_run("tiny", Cause.DRIFT)  # and here it died
    tuned.runs.configs.append({"tuning-run": run.key, "model-name": "tiny"})
    heir = tuned.tuner(holder="heir")
    assert not heir.look().is_ours
    tuned.clock.seconds += 31
    assert heir.look().hold.endswith("is open")
    tuned.work(make_fleet(gain=3.0), monkeypatch)
    assert tuned.last_run().state is RunState.COMPLETED
    heir.close()
    assert tuned.tuner(holder="next").look().is_ours


def test_a_run_that_never_began_is_lost_after_a_while(tuned: Tuned) -> None:
    tuned.facts.tuning.start_run("tiny", Cause.DRIFT)
    tuner = tuned.tuner()
    tuner.look()
    assert tuned.last_run().is_open
    tuned.clock.seconds += 61
    tuner.look()
    assert tuned.last_run().state is RunState.LOST


def test_a_serverapp_whose_run_was_given_up_stops_at_its_next_step(
    tuned: Tuned, make_fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.ask()
    tuned.tuner().look()
    log_event = server.app.log_event

    def give_up(event: Any) -> None:
        log_event(event)
        run = tuned.last_run()
        if run.is_open:
            tuned.facts.tuning.move(run, RunEvent.LOST, detail="the SuperLink was restarted")

    monkeypatch.setattr(server.app, "log_event", give_up)
    with pytest.raises(IllegalTransitionError, match="closed this run as 'lost'"):
        tuned.work(make_fleet(gain=3.0), monkeypatch)
    assert tuned.generations[-1] == (1, 0, Step.MOMENTS)  # for the next run to go on with


def report(tuned: Tuned, right: float, sequence: int, version: int = 1) -> None:
    counts = TelemetryCounts(samples=200, labelled=200, hits=round(200 * right))
    reports = (DeviceReport(tuned.digest, "arm", "d", sequence, version, counts),)
    TelemetryRegistry(tuned.facts.registry._engine).fold_all([DeviceReports("d", reports)])


def test_drift_starts_a_run_whose_generation_is_published_and_rolled_out(
    tuned: Tuned, make_fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned.facts.registry.published(tuned.digest, "arm")
    tuned.facts.rollouts.publish(tuned.digest, "arm", first.manifest_digest, reason="first", actor="ana")
    tuner = tuned.tuner(publish=True)
    for sequence, right in enumerate((0.9, 0.9, 0.4), 1):
        report(tuned, right, sequence)
        tuned.clock.seconds += 1
        tuner.look()
    assert tuned.last_run().cause is Cause.DRIFT
    assert "'arm' has surely lost" in tuned.last_run().reason

    tuned.work(make_fleet(gain=3.0), monkeypatch)
    assert tuner.look().hold.startswith("rollout ")
    (rollout,) = tuned.facts.rollouts.rollouts(only_open=True)
    assert (rollout.version, rollout.phase) == (2, Phase.CANARY)
    assert tuned.facts.registry.published(tuned.digest, "arm").number == 0  # what most devices run
    tuned.facts.rollouts.advance(rollout, Event.PROMOTED, actor="ana")
    assert tuned.facts.registry.published(tuned.digest, "arm").number == 1
    tuned.clock.seconds += 1
    assert tuner.look().hold == "nothing asks for a run"  # a new version begins anew


def test_what_is_rolled_back_is_recalled_and_neither_published_nor_built_on(
    tuned: Tuned, make_fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned.facts.registry.published(tuned.digest, "arm")
    tuned.facts.rollouts.publish(tuned.digest, "arm", first.manifest_digest, reason="first", actor="ana")
    tuner = tuned.tuner(publish=True)
    tuned.ask()
    tuner.look()
    tuned.work(make_fleet(gain=3.0), monkeypatch)
    tuner.look()
    (rollout,) = tuned.facts.rollouts.rollouts()
    tuned.facts.rollouts.advance(rollout, Event.ACCURACY_DROPPED, actor="telemetry", reason="worse")
    assert tuned.generations[-1] == (1, 0, Step.RECALLED)
    assert tuned.facts.registry.generations(tuned.digest, "arm")[-1].reason == "rolled back: worse"
    assert "recalled" in [entry.action for entry in tuned.facts.registry.audit()]

    tuner.look()
    assert len(tuned.facts.rollouts.targets(tuned.digest, "arm")) == 3  # first, new, and the way back
    tuned.ask()
    tuned.clock.seconds += 1
    tuner.look()
    tuned.work(make_fleet(gain=3.0), monkeypatch)
    assert tuned.generations[-1] == (2, 0, Step.PUBLISHED)
    tuner.look()
    assert tuned.facts.rollouts.rollouts()[-1].version == 4


def test_without_keys_a_generation_waits_and_says_what_to_type(
    tuned: Tuned, make_fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned.facts.registry.published(tuned.digest, "arm")
    tuned.facts.rollouts.publish(tuned.digest, "arm", first.manifest_digest, reason="first", actor="ana")
    tuner = tuned.tuner(triggers=TriggerRules(every_seconds=10))
    tuner.look()
    tuned.work(make_fleet(gain=3.0), monkeypatch)
    waiting = waiting_generation(tuned.facts, tuned.digest, "arm")
    assert waiting is not None
    tuned.clock.seconds += 1000
    with capture_logs() as logs:
        for _ in range(2):
            assert tuner.look().hold == "generation 1 of 'arm' waits to be signed and published"
    (said,) = (log for log in logs if log["event"] == "generation_waits")
    assert said["command"] == f"quantfleet-server publish {waiting.manifest_digest}"
    tuned.publish_function()(waiting, "by hand")
    assert tuner.look().hold.startswith("rollout")


def test_a_fleet_without_an_update_service_needs_no_publication(
    tuned: Tuned, make_fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = tuned.tuner(triggers=TriggerRules(every_seconds=10))
    for _ in range(2):
        assert tuner.look().hold == ""
        tuned.work(make_fleet(gain=3.0), monkeypatch)
        tuned.clock.seconds += 11
    assert tuned.generations[-1][:2] == (2, 1)


def test_a_model_that_is_not_there_yet_can_be_tuned(tuned: Tuned) -> None:
    tuner = tuned.tuner(model="later", run={"model-source": "simulated"})
    tuned.facts.tuning.request("later", actor="ana")
    assert tuner.look().hold == ""


def test_a_run_configuration_that_cannot_be_used_is_refused_at_once(tuned: Tuned) -> None:
    with pytest.raises(ConfigurationError, match="sample-fraction"):
        tuned.tuner(run={"sample-fraction": 2.0})
