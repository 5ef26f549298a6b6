"""The tuner's lease, runs, requests and drift on a real SQLite file, and on a real PostgreSQL server."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgres_server import postgres_server

from quantization.device_class import ARM
from quantization.errors import IllegalTransitionError, NotFoundError
from server.class_totals import ClassTotals
from server.database import connect
from server.entries import Model
from server.field_drift import DriftRules, FieldDrift, observe
from server.generation import Event
from server.registry import NO_CLASS, NO_GENERATION, Registry
from server.tables import Base
from server.tuning_registry import TuningRegistry
from server.tuning_runs import ENDED_STATES, NEXT_STATE, Cause, RunEvent, RunState
from strategies.rounds import RoundEnd

MODEL = "a" * 64


@dataclass
class Time:
    """A clock that stands still until it is moved."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
        engine = connect(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        engine.dispose()
    with Registry.open(url) as registry:
        registry.add_model(Model(MODEL, "digits", 10))
        registry.add_device_class(ARM)
    return url


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def tuning(url: str, clock: Time) -> Iterator[TuningRegistry]:
    with TuningRegistry.open(url, clock) as opened:
        yield opened


def actions(url: str) -> list[str]:
    with Registry.open(url) as registry:
        return [entry.action for entry in registry.audit()][2:]


def test_migrations_make_the_tables_that_the_code_declares(url: str) -> None:
    engine = connect(url)
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    engine.dispose()
    mine = {"rounds", "tuning_runs", "tuner_leases", "tuning_requests", "field_drifts"}
    assert mine <= set(Base.metadata.tables)
    assert [d for d in differences if any(table in repr(d) for table in mine)] == []


def test_one_tuner_holds_the_lease_until_it_gives_it_back_or_is_gone(
    tuning: TuningRegistry, clock: Time
) -> None:
    assert tuning.lease("digits", "one", 60)
    assert not tuning.lease("digits", "two", 60)
    assert tuning.lease("cifar", "two", 60)
    clock.seconds += 59
    assert tuning.lease("digits", "one", 60)  # renewed
    clock.seconds += 59
    assert not tuning.lease("digits", "two", 60)
    assert tuning.lease_holder("digits") == "one"
    clock.seconds += 1
    assert tuning.lease_holder("digits") == ""
    assert tuning.lease("digits", "two", 60)
    assert not tuning.lease("digits", "one", 60)
    tuning.release("digits", "one")  # of one who has it no more
    assert tuning.lease_holder("digits") == "two"
    tuning.release("digits", "two")
    assert tuning.lease("digits", "one", 60)


def test_of_many_that_want_a_lease_at_once_one_gets_it(url: str) -> None:
    got: list[str] = []
    barrier = threading.Barrier(6, timeout=30)
    tuners = {f"tuner-{k}": TuningRegistry.open(url) for k in range(6)}

    def want(name: str) -> None:
        barrier.wait()
        if tuners[name].lease("digits", name, 60):
            got.append(name)

    threads = [threading.Thread(target=want, args=(name,)) for name in tuners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tuners[name].lease_holder("digits") for name in tuners] == got * 6
    for tuner in tuners.values():
        tuner.close()


def test_one_run_of_a_model_is_open_at_a_time(tuning: TuningRegistry) -> None:
    run = tuning.start_run("digits", Cause.DRIFT)
    with pytest.raises(IllegalTransitionError, match="one at a time"):
        tuning.start_run("digits", Cause.COMMAND)
    assert tuning.start_run("cifar", Cause.COMMAND).is_open
    tuning.move(run, RunEvent.LOST, detail="restarted")
    assert tuning.start_run("digits", Cause.DRIFT, attempt=2).attempt == 2


def test_a_run_is_moved_by_whoever_is_first(tuning: TuningRegistry, clock: Time) -> None:
    run = tuning.start_run("digits", Cause.SCHEDULE, reason="due")
    began = tuning.move(run, RunEvent.BEGAN, run_id="77")  # the ServerApp, before the tuner knows the id
    with pytest.raises(IllegalTransitionError, match="no longer 'starting'"):
        tuning.move(run, RunEvent.SUBMITTED, run_id="77")
    clock.seconds += 5
    ended = tuning.move(began, RunEvent.COMPLETED)
    assert (ended.state, ended.run_id, ended.finished_at_seconds) == (RunState.COMPLETED, "77", 1005.0)
    assert tuning.run(run.key) == ended
    assert tuning.runs("digits") == (ended,)
    with pytest.raises(IllegalTransitionError, match="cannot happen"):
        tuning.move(ended, RunEvent.LOST)
    with pytest.raises(NotFoundError):
        tuning.run("x")


def test_ended_states_are_those_that_nothing_follows() -> None:
    assert set(RunState) - {state for state, _ in NEXT_STATE} == ENDED_STATES


def test_a_run_serves_all_requests_that_wait(tuning: TuningRegistry, url: str) -> None:
    first, second = (tuning.request("digits", actor="ana", reason=why) for why in ("dusk", "dawn"))
    tuning.request("cifar", actor="ben")
    assert [one.reason for one in tuning.waiting_requests("digits")] == ["dusk", "dawn"]
    assert first.number < second.number
    tuning.start_run("digits", Cause.COMMAND)
    assert tuning.waiting_requests("digits") == ()
    assert len(tuning.waiting_requests("cifar")) == 1
    assert actions(url) == ["tuning_requested"] * 3 + ["run_started"]


def test_the_marker_changes_when_a_generation_gets_further_and_not_when_one_fails(
    tuning: TuningRegistry, url: str
) -> None:
    with Registry.open(url) as registry:
        registry.advance(registry.start_generation(MODEL, "arm"), Event.LAB_CALIBRATED)
        before = tuning.marker("digits")
        started = registry.start_generation(MODEL, "arm", base_number=0)
        assert tuning.marker("digits") != before
        registry.advance(started, Event.GAVE_UP)
        assert tuning.marker("digits") == before
        assert tuning.marker("cifar") == "{}"


def test_drift_comes_back_as_it_was_and_its_turns_are_in_the_audit(tuning: TuningRegistry, url: str) -> None:
    assert tuning.drift(MODEL, "arm") == FieldDrift()
    seen = FieldDrift()
    rules = DriftRules(window_samples=100)
    for count, hits in ((100, 90), (200, 180), (400, 200), (800, 590)):
        totals = ClassTotals(samples=count, labelled=count, hits=hits)
        seen = observe(seen, 3, "b" * 64, totals, rules)
        tuning.store_drift(MODEL, "arm", seen)
        assert tuning.drift(MODEL, "arm") == seen
    assert actions(url) == ["drift_began", "drift_ended"][: 2 - seen.is_drifting]


def test_how_rounds_ended_is_kept(tuning: TuningRegistry, url: str) -> None:
    with Registry.open(url) as registry:
        for asked, replied in ((3, 3), (5, 4)):
            end = RoundEnd("hello", asked, replied, {"late": asked - replied}, 900, 1.5)
            registry.add_round(MODEL, NO_CLASS, NO_GENERATION, end)
    assert tuning.rounds("digits", "hello", most=5) == ((5, 4), (3, 3))
    assert tuning.rounds("digits", "moments") == ()
    engine = connect(url)
    with engine.connect() as connection:
        (failed,) = connection.exec_driver_sql("SELECT failed FROM rounds WHERE asked = 5").scalars()
    engine.dispose()
    assert json.loads(failed) == {"late": 1}
