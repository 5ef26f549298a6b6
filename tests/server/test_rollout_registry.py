"""Targets, rollouts and their telemetry on a real SQLite file, and on a real PostgreSQL server."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgres_server import postgres_server
from sqlalchemy import Connection

from quantization.device_class import ARM, DeviceClass
from quantization.errors import IllegalTransitionError, NotFoundError
from server.database import connect
from server.entries import Model
from server.evidence_retention import forget_evidence
from server.registry import Registry
from server.rollout import Event, Phase, Rollout, RolloutPlan, position
from server.rollout_registry import TELEMETRY, RolloutRegistry
from server.rollout_settings import DEFAULT_RULES
from server.rollout_units import Marks
from server.tables import Base
from server.targets import TargetSource
from server.telemetry_counts import TelemetryCounts
from server.telemetry_registry import DeviceReport, TelemetryRegistry

MODEL = "a" * 64
OLD, NEW = "b" * 64, "c" * 64
DEVICES = [f"device-{k}" for k in range(60)]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
        with transaction(url) as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
    with Registry.open(url) as registry:
        registry.add_model(Model(MODEL, "digits", 10))
        registry.add_device_class(ARM)
        registry.add_device_class(DeviceClass("x86"))
    return url


@contextmanager
def transaction(url: str) -> Iterator[Connection]:
    engine = connect(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def rollouts(url: str) -> Iterator[RolloutRegistry]:
    with RolloutRegistry.open(url, clock=lambda: 1000.0) as opened:
        opened.publish(MODEL, "arm", OLD, reason="first", actor="ana")
        yield opened


@pytest.fixture
def telemetry(url: str) -> Iterator[TelemetryRegistry]:
    engine = connect(url)
    yield TelemetryRegistry(engine)
    engine.dispose()


def started(rollouts: RolloutRegistry) -> Rollout:
    return rollouts.start(MODEL, "arm", NEW, actor="ana", reason="better", plan=RolloutPlan((0.2, 0.5)))


def counted(right: int, number: int = 50, **changes: int) -> TelemetryCounts:
    latency = tuple(number if k == 28 else 0 for k in range(64))
    return TelemetryCounts(
        number, number, right, number, right, latency=latency, memory_bytes=90 << 20, **changes
    )


def report(device: str, sequence: int, version: int, counts: TelemetryCounts) -> DeviceReport:
    return DeviceReport(MODEL, "arm", device, sequence, version, counts)


def test_versions_grow_by_one_for_each_target(rollouts: RolloutRegistry) -> None:
    rollouts.publish(MODEL, "arm", NEW, reason="second", actor="ana")
    rollouts.publish(MODEL, "x86", NEW, reason="first", actor="ana")
    assert [t.version for t in rollouts.targets(MODEL, "arm")] == [1, 2]
    assert rollouts.target(MODEL, "arm").manifest_digest == NEW
    assert rollouts.target(MODEL, "x86").version == 1


def test_what_was_started_is_read_back_after_reopening(rollouts: RolloutRegistry, url: str) -> None:
    rollout = started(rollouts)
    assert (rollout.version, rollout.base_version, rollout.phase) == (2, 1, Phase.CANARY)
    rollouts.close()
    with RolloutRegistry.open(url) as reopened:
        assert reopened.rollout(rollout.rollout_id) == rollout
        assert reopened.rollouts() == reopened.rollouts(only_open=True) == (rollout,)


def test_only_canaries_get_the_new_version(rollouts: RolloutRegistry) -> None:
    rollout = started(rollouts)
    given = {device: rollouts.target_for(MODEL, "arm", device) for device in DEVICES}
    chosen = {d for d in DEVICES if position(rollout.rollout_id, d) < 0.2 * 2**64}
    assert 0 < len(chosen) < 30
    assert given == {d: (2, NEW) if d in chosen else (1, OLD) for d in DEVICES}


def test_what_may_be_fetched_are_the_newest_versions_each_once(rollouts: RolloutRegistry) -> None:
    rollouts.advance(started(rollouts), Event.RECALLED, actor="ana")
    served = rollouts.served(MODEL, "arm")
    assert [version.version for version in served.versions] == [3, 2, 1]
    assert served.manifest_digests == (OLD, NEW)
    assert rollouts.served(MODEL, "arm", most=1).manifest_digests == (OLD,)
    with pytest.raises(NotFoundError):
        rollouts.served(MODEL, "x86")


def test_the_update_service_can_ask_for_targets(rollouts: RolloutRegistry) -> None:
    source: TargetSource = rollouts.served
    started(rollouts)
    assert source(MODEL, "arm").target_for("device-1").version in (1, 2)


def test_a_complete_rollout_is_everybodys_target(rollouts: RolloutRegistry) -> None:
    done = rollouts.advance(started(rollouts), Event.PROMOTED, actor="ana", reason="sure")
    assert done.finished_at_seconds == 1000.0
    assert {rollouts.target_for(MODEL, "arm", d) for d in DEVICES} == {(2, NEW)}
    assert rollouts.rollouts(only_open=True) == ()


def test_rolling_back_brings_the_earlier_content_as_a_newer_version(rollouts: RolloutRegistry) -> None:
    rollouts.advance(started(rollouts), Event.ACCURACY_DROPPED, actor=TELEMETRY, reason="bad")
    assert {rollouts.target_for(MODEL, "arm", d) for d in DEVICES} == {(3, OLD)}
    newest = rollouts.target(MODEL, "arm")
    assert (newest.version, newest.reason) == (3, "rolled back: bad")
    assert started(rollouts).base_version == 3


def test_a_complete_rollout_is_recalled_unless_a_newer_version_followed(rollouts: RolloutRegistry) -> None:
    done = rollouts.advance(started(rollouts), Event.PROMOTED, actor="ana")
    later = rollouts.advance(rollouts.start(MODEL, "arm", OLD, actor="ana"), Event.PROMOTED, actor="ana")
    with pytest.raises(IllegalTransitionError, match="version 3 has followed it"):
        rollouts.advance(done, Event.RECALLED, actor="ana")
    assert rollouts.advance(later, Event.RECALLED, actor="ana").rolled_back_version == 4
    assert rollouts.target_for(MODEL, "arm", "device-1") == (4, NEW)


def test_a_second_open_rollout_is_refused(rollouts: RolloutRegistry) -> None:
    started(rollouts)
    with pytest.raises(IllegalTransitionError, match="a rollout is open"):
        started(rollouts)
    with pytest.raises(IllegalTransitionError, match="is open"):
        rollouts.publish(MODEL, "arm", NEW, reason="now", actor="ana")
    assert rollouts.target(MODEL, "arm").version == 2


def test_a_rollout_needs_something_to_compare_with(rollouts: RolloutRegistry) -> None:
    with pytest.raises(NotFoundError, match="publish one first"):
        rollouts.start(MODEL, "x86", NEW, actor="ana")
    with pytest.raises(NotFoundError, match="no rollout 'x'"):
        rollouts.rollout("x")
    with pytest.raises(IllegalTransitionError, match="not registered"):
        rollouts.publish("f" * 64, "arm", NEW, reason="", actor="ana")


def test_an_illegal_event_changes_nothing(rollouts: RolloutRegistry) -> None:
    rollout = started(rollouts)
    before = rollouts.targets(MODEL, "arm")
    with pytest.raises(IllegalTransitionError):
        rollouts.advance(rollout, Event.EXPANSION_RESUMED, actor="ana")
    done = rollouts.advance(rollout, Event.PROMOTED, actor="ana")
    with pytest.raises(IllegalTransitionError, match="cannot happen in phase 'complete'"):
        rollouts.advance(done, Event.ACCURACY_DROPPED, actor=TELEMETRY)
    assert rollouts.targets(MODEL, "arm") == before


def test_only_one_of_several_servers_moves_a_rollout(rollouts: RolloutRegistry) -> None:
    rollout = started(rollouts)
    outcomes: list[str] = []

    def move() -> None:
        try:
            rollouts.advance(rollout, Event.ACCURACY_DROPPED, actor=TELEMETRY)
            outcomes.append("moved")
        except IllegalTransitionError:
            outcomes.append("refused")

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved", "refused", "refused", "refused"]
    assert rollouts.target(MODEL, "arm").version == 3


def test_every_change_is_audited_with_who_made_it(rollouts: RolloutRegistry, url: str) -> None:
    rollouts.advance(started(rollouts), Event.PAUSED, actor="ben", reason="lunch")
    with Registry.open(url) as registry:
        entries = registry.audit()[-3:]
    assert [entry.action for entry in entries] == ["target_published", "rollout_started", "paused"]
    assert [json.loads(entry.detail)["actor"] for entry in entries] == ["ana", "ana", "ben"]
    assert entries[-1].subject == f"{MODEL}/arm/v2"


def test_a_report_counts_once(telemetry: TelemetryRegistry) -> None:
    assert telemetry.fold(report("d", 1, 1, counted(45)))
    assert not telemetry.fold(report("d", 1, 1, counted(45)))
    assert telemetry.fold(report("d", 2, 1, counted(40)))
    assert not telemetry.fold(report("d", 1, 1, counted(45)))
    assert telemetry.counts(MODEL, "arm", 1).hits == 85


def test_counts_of_an_earlier_version_are_left_behind(telemetry: TelemetryRegistry) -> None:
    telemetry.fold(report("d", 1, 1, counted(45)))
    telemetry.fold(report("d", 2, 2, counted(40)))
    assert telemetry.counts(MODEL, "arm", 1) == TelemetryCounts()
    assert telemetry.counts(MODEL, "arm", 2).hits == 40


def test_reports_of_what_is_not_registered_are_refused(telemetry: TelemetryRegistry) -> None:
    with pytest.raises(NotFoundError, match="not registered"):
        telemetry.fold(DeviceReport(MODEL, "mips", "d", 1, 1, counted(45)))


def fleet_reports(
    telemetry: TelemetryRegistry, rollouts: RolloutRegistry, *, sequence: int, right: int
) -> None:
    """Let every device report under the version that it should have; `right` of 100 with the new one."""
    served = rollouts.served(MODEL, "arm")
    for device in DEVICES:
        version, _ = served.target_for(device)
        hits = right if version == 2 else 90
        telemetry.fold(report(device, sequence, version, counted(hits, 100)))


def test_a_destroyed_version_is_rolled_back_from_the_canaries(
    telemetry: TelemetryRegistry, rollouts: RolloutRegistry
) -> None:
    fleet_reports(telemetry, rollouts, sequence=1, right=90)
    rollout = started(rollouts)
    fleet_reports(telemetry, rollouts, sequence=10, right=10)
    situation = telemetry.situation(rollout)
    assert situation.canaries.destroyed == situation.canaries.devices > 0
    assert situation.others.marked == 0 < situation.others.devices
    moved = telemetry.review(rollouts, rollout, 1001.0)
    assert (moved.phase, moved.rolled_back_version) == (Phase.ROLLED_BACK, 3)
    assert {rollouts.target_for(MODEL, "arm", d) for d in DEVICES} == {(3, OLD)}


def test_canaries_that_cannot_load_the_version_and_run_the_old_one_take_it_back(
    telemetry: TelemetryRegistry, rollouts: RolloutRegistry
) -> None:
    rollout = started(rollouts)
    canaries = [d for d in DEVICES if position(rollout.rollout_id, d) < 0.2 * 2**64]
    for device in canaries[:2]:
        told = replace(report(device, 1, 1, counted(45)), failed_versions=(2, 2))
        telemetry.fold(told)
    assert telemetry.situation(rollout).canaries == Marks(2, 2, loading=2)
    assert telemetry.review(rollouts, rollout, 1001.0).phase is Phase.ROLLED_BACK


def test_evidence_survives_a_restart_and_waits_for_more(
    telemetry: TelemetryRegistry, rollouts: RolloutRegistry, url: str
) -> None:
    fleet_reports(telemetry, rollouts, sequence=1, right=90)
    rollout = started(rollouts)
    fleet_reports(telemetry, rollouts, sequence=10, right=90)
    situation = telemetry.situation(rollout)
    assert TelemetryRegistry(connect(url)).situation(rollout) == situation
    canaries = sum(rollouts.target_for(MODEL, "arm", d)[0] == 2 for d in DEVICES)
    assert situation.evidence.canary_units == canaries
    assert situation.evidence.accuracy.worse.blocks == canaries
    assert telemetry.review(rollouts, rollout, 1001.0) == rollout
    waited = 1001.0 + DEFAULT_RULES.step_seconds
    assert telemetry.review(rollouts, rollout, waited).phase is Phase.EXPANDING


def test_a_device_brings_one_unit_and_only_under_its_own_version(
    telemetry: TelemetryRegistry, rollouts: RolloutRegistry
) -> None:
    rollout = started(rollouts)
    canary = next(d for d in DEVICES if position(rollout.rollout_id, d) < 0.2 * 2**64)
    for sequence in range(1, 9):
        telemetry.fold(report(canary, sequence, 1, counted(45)))
    assert telemetry.situation(rollout).evidence.canary_units == 0
    for sequence in range(9, 17):
        telemetry.fold(report(canary, sequence, 2, counted(45)))
    assert telemetry.situation(rollout).evidence.canary_units == 1
    assert telemetry.situation(rollout).canaries.devices == 1


def test_devices_that_wait_for_the_new_version_are_no_evidence(
    telemetry: TelemetryRegistry, rollouts: RolloutRegistry
) -> None:
    rollout = started(rollouts)
    waiting = [d for d in DEVICES if 0.2 * 2**64 <= position(rollout.rollout_id, d) < 0.5 * 2**64]
    for device in waiting:
        telemetry.fold(report(device, 1, 1, counted(90, 100)))
    situation = telemetry.situation(rollout)
    assert (situation.others.devices, situation.evidence.accuracy.others) == (0, ())


def test_processes_that_fold_at_once_lose_nothing(
    telemetry: TelemetryRegistry, rollouts: RolloutRegistry
) -> None:
    rollout = started(rollouts)
    outside = [d for d in DEVICES if position(rollout.rollout_id, d) >= 0.5 * 2**64][:12]

    def fold(devices: list[str]) -> None:
        for device in devices:
            for sequence in range(1, 4):
                telemetry.fold(report(device, sequence, 1, counted(45)))

    threads = [threading.Thread(target=fold, args=(outside[k::3],)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert telemetry.counts(MODEL, "arm", 1).hits == len(outside) * 3 * 45
    assert telemetry.situation(rollout).others.devices == len(outside)


def test_migrations_make_the_tables_that_the_code_declares(url: str) -> None:
    with transaction(url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_evidence_is_forgotten_long_after_a_rollout_has_ended(
    rollouts: RolloutRegistry, telemetry: TelemetryRegistry, url: str
) -> None:
    ended, engine = started(rollouts), connect(url)
    for device in DEVICES[:20]:
        version = rollouts.target_for(MODEL, "arm", device).version
        telemetry.fold(report(device, 1, version, counted(45)))
    before = telemetry.situation(ended).canaries.devices
    assert before > 0
    assert forget_evidence(engine, before_seconds=1e9) == 0  # it is open
    ended = rollouts.advance(ended, Event.RECALLED, actor="ana")
    assert forget_evidence(engine, before_seconds=1000.0) == 0  # it has just ended
    assert telemetry.situation(ended).canaries.devices == before
    assert forget_evidence(engine, before_seconds=1001.0) == 1
    assert telemetry.situation(ended).canaries.devices == 0
    assert forget_evidence(engine, before_seconds=1001.0) == 0
    assert rollouts.rollout(ended.rollout_id) == ended
    assert sum(telemetry.counts(MODEL, "arm", version).samples for version in (1, 2)) == 20 * 50
    engine.dispose()
