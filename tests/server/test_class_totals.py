"""Tests of the totals that telemetry keeps by class, on SQLite and PostgreSQL."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import postgres_server
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from quantization.device_class import ARM
from server.class_totals import MAX_TOTAL, SHARDS, ClassTotals, TotalsKey, read_totals
from server.database import connect
from server.entries import Model
from server.registry import Registry
from server.telemetry_counts import TelemetryCounts
from server.telemetry_registry import DeviceReport, DeviceReports, TelemetryRegistry

MODEL = "a" * 64


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
    with Registry.open(url) as registry:
        registry.add_model(Model(MODEL, "reader", 1))
        registry.add_device_class(ARM)
    opened = connect(url)
    with opened.begin() as connection:
        for table in ("class_totals", "device_telemetry"):
            connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608 - two fixed names
    yield opened
    opened.dispose()


def report(device: str, sequence: int, version: int, **counts: int) -> DeviceReport:
    values = {name: counts.pop(name, 0) for name in ("observed_values", "clipped_values")}
    return DeviceReport(MODEL, ARM.name, device, sequence, version, TelemetryCounts(**counts), **values)


def totals(engine: Engine, *versions: int) -> tuple[list[ClassTotals], ClassTotals]:
    keys: list[TotalsKey] = [(MODEL, ARM.name, version) for version in versions]
    with Session(engine.execution_options(begin="DEFERRED")) as session:
        by_version, by_class = read_totals(session, keys)
    return [by_version.get(key, ClassTotals()) for key in keys], by_class.get(ARM.name, ClassTotals())


def test_totals_are_the_sums_of_what_was_reported(engine: Engine) -> None:
    telemetry = TelemetryRegistry(engine)
    telemetry.fold(report("d1", 1, 1, samples=10, labelled=4, hits=3, observed_values=100, clipped_values=5))
    telemetry.fold(report("d2", 1, 1, samples=5, judged=2, agreements=1, failures=1))
    telemetry.fold(report("d2", 2, 2, samples=7, load_failures=1))
    (first, second), all_versions = totals(engine, 1, 2)
    counted = {"labelled": 4, "hits": 3, "judged": 2, "agreements": 1, "failures": 1}
    values = {"observed_values": 100, "clipped_values": 5}
    assert first == ClassTotals(devices=1, samples=15, **counted, **values)
    assert second == ClassTotals(devices=1, samples=7, load_failures=1)
    assert all_versions == ClassTotals(devices=2, samples=22, load_failures=1, **counted, **values)


def test_a_report_that_comes_again_changes_nothing(engine: Engine) -> None:
    telemetry = TelemetryRegistry(engine)
    for _ in range(3):
        telemetry.fold(report("d1", 1, 1, samples=10))
    assert totals(engine, 1)[0] == [ClassTotals(devices=1, samples=10)]


def test_a_device_counts_under_the_version_that_it_reported_last(engine: Engine) -> None:
    telemetry = TelemetryRegistry(engine)
    for sequence, version in enumerate([1, 1, 2, 1, 3], start=1):
        telemetry.fold(report("d1", sequence, version, samples=1))
    by_version, all_versions = totals(engine, 1, 2, 3)
    assert [found.devices for found in by_version] == [0, 0, 1]
    assert [found.samples for found in by_version] == [3, 1, 1]
    assert (all_versions.devices, all_versions.samples) == (1, 5)


def test_a_call_that_is_refused_adds_nothing(engine: Engine) -> None:
    telemetry = TelemetryRegistry(engine)
    bad = DeviceReport("b" * 64, ARM.name, "d1", 2, 1, TelemetryCounts(samples=9))
    calls = [
        DeviceReports("d1", (report("d1", 1, 1, samples=1), bad)),
        DeviceReports("d2", (report("d2", 1, 1, samples=2),)),
    ]
    refused, _ = telemetry.fold_all(calls)
    assert isinstance(refused, Exception)
    assert totals(engine, 1)[0] == [ClassTotals(devices=1, samples=2)]


def test_processes_that_store_at_once_lose_nothing(engine: Engine) -> None:
    failures: list[Exception] = []

    def store(process: int) -> None:
        telemetry = TelemetryRegistry(engine, process=f"server-{process % 2}")  # some share a part
        try:
            for sequence in range(1, 6):
                names = [f"d{process}-{number}" for number in range(4)]
                reports = [report(name, sequence, 1 + sequence % 2, samples=1) for name in names]
                telemetry.fold_all([DeviceReports(one.device_id, (one,)) for one in reports])
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=store, args=(process,)) for process in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    (old, new), all_versions = totals(engine, 1, 2)
    assert (old.devices, new.devices, all_versions.devices) == (0, 16, 16)
    assert old.samples + new.samples == all_versions.samples == 80


def test_rows_do_not_grow_with_devices(engine: Engine) -> None:
    telemetry = TelemetryRegistry(engine, process="one")
    calls = [DeviceReports(f"d{n}", (report(f"d{n}", 1, 1, samples=1),)) for n in range(200)]
    telemetry.fold_all(calls)
    with engine.begin() as connection:
        rows = connection.exec_driver_sql("SELECT count(*) FROM class_totals").scalar_one()
    assert rows == 2 <= SHARDS


def test_totals_stay_where_they_cannot_grow(engine: Engine) -> None:
    """Whoever sees to it that they get there; a database would refuse, or lose, what others report with it."""
    for process in range(SHARDS):
        telemetry = TelemetryRegistry(engine, process=f"{process}", max_inputs_per_second=1e30)
        for sequence in (1, 2, 3):
            telemetry.fold(report(f"d{process}", sequence, 1, samples=1 << 61, labelled=1 << 61, hits=1))
    telemetry.fold(report("other", 1, 1, samples=5))
    (found,), all_versions = totals(engine, 1)
    assert MAX_TOTAL <= found.samples == found.labelled == all_versions.samples <= SHARDS * MAX_TOTAL
    assert found.devices == SHARDS + 1
    assert telemetry.counts(MODEL, ARM.name, 1).samples == 1 << 62
