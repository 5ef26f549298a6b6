"""The registry on a real SQLite file."""

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from quantization.device_class import ARM, DeviceClass
from quantization.errors import ConfigurationError, NotFoundError
from server.database import connect
from server.entries import Lab, Model
from server.generation import Event, Generation, IllegalTransitionError, Step
from server.registry import Registry
from server.tables import Base

DIGEST = "a" * 64


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    with Registry.open(url_of(path), clock=lambda: 1000.0) as opened:
        opened.add_model(Model(DIGEST, "digits", 10))
        opened.add_device_class(ARM)
        yield opened


def started(registry: Registry) -> Generation:
    return registry.start_generation(DIGEST, "arm")


def test_what_is_registered_is_read_back_after_reopening(registry: Registry, path: Path) -> None:
    registry.add_lab(Lab(DIGEST, "arm", "b" * 64, 200))
    registry.close()
    with Registry.open(url_of(path)) as reopened:
        assert reopened.model("digits") == Model(DIGEST, "digits", 10, 1000.0)
        assert reopened.device_class("arm") == ARM
        assert reopened.lab(DIGEST, "arm") == Lab(DIGEST, "arm", "b" * 64, 200)
        assert reopened.device_classes(DIGEST) == (ARM,)


def test_registering_twice_changes_nothing(registry: Registry) -> None:
    before = registry.audit()
    assert registry.add_model(Model(DIGEST, "another name", 10)).name == "digits"
    registry.add_device_class(ARM)
    assert registry.audit() == before


def test_the_newest_model_of_a_name_is_the_one_meant(path: Path) -> None:
    times = iter([1.0, 1.0, 2.0, 2.0])
    with Registry.open(url_of(path), clock=lambda: next(times)) as registry:
        registry.add_model(Model("b" * 64, "digits", 1))
        registry.add_model(Model("a" * 64, "digits", 1))
        assert registry.model("digits").digest == "a" * 64


def test_a_device_class_keeps_its_meaning(registry: Registry) -> None:
    with pytest.raises(ConfigurationError, match="choose another name"):
        registry.add_device_class(DeviceClass("arm", max_weight_bits=4))


def test_what_is_not_there_is_named(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="no model named 'x'; it has: digits"):
        registry.model("x")
    with pytest.raises(NotFoundError, match="'mips'"):
        registry.device_class("mips")
    with pytest.raises(NotFoundError, match="not prepared"):
        registry.lab(DIGEST, "arm")
    with pytest.raises(NotFoundError, match="no published generation"):
        registry.published(DIGEST, "arm")


def test_a_second_open_generation_is_refused_by_the_database(registry: Registry, path: Path) -> None:
    started(registry)
    with pytest.raises(IllegalTransitionError, match="one is open"):
        started(registry)
    columns = (
        "model_digest, device_class, base_number, step, settings, moments_digest, ranges_digest, policy, "
    )
    columns += (
        "manifest_digest, drift, assessment, reason, clients, size_bytes, update_bytes, started_at_seconds"
    )
    with sqlite3.connect(path) as raw, pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        raw.execute(f"INSERT INTO generations (number, {columns}) SELECT 7, {columns} FROM generations")  # noqa: S608


def test_generations_of_other_classes_are_open_at_the_same_time(registry: Registry) -> None:
    registry.add_device_class(DeviceClass("x86"))
    started(registry)
    assert registry.start_generation(DIGEST, "x86").is_open


def test_a_generation_needs_a_registered_model_and_class(registry: Registry) -> None:
    with pytest.raises(IllegalTransitionError, match="not registered"):
        registry.start_generation(DIGEST, "mips")
    with pytest.raises(IllegalTransitionError, match="not registered"):
        registry.start_generation("f" * 64, "arm")


def test_numbers_grow_over_failed_generations(registry: Registry) -> None:
    registry.advance(started(registry), Event.LAB_CALIBRATED)
    registry.advance(started(registry), Event.GAVE_UP)
    third = registry.start_generation(DIGEST, "arm", base_number=0)
    assert (third.number, third.base_number) == (2, 0)
    assert registry.published(DIGEST, "arm").number == 0


def test_results_are_stored_with_the_step(registry: Registry, path: Path) -> None:
    done = registry.advance(
        replace(started(registry), moments_digest="c" * 64, clients=7), Event.MOMENTS_FOLDED
    )
    assert done.step is Step.MOMENTS
    registry.close()
    with Registry.open(url_of(path)) as reopened:
        assert reopened.open_generation(DIGEST, "arm") == done
        assert reopened.generations(DIGEST, "arm") == (done,)


def test_a_closed_generation_has_the_time_it_ended(registry: Registry) -> None:
    generation = started(registry)
    assert generation.finished_at_seconds is None
    assert registry.advance(generation, Event.GAVE_UP).finished_at_seconds == 1000.0
    assert registry.open_generation(DIGEST, "arm") is None


def test_an_illegal_event_changes_nothing(registry: Registry) -> None:
    generation = started(registry)
    with pytest.raises(IllegalTransitionError):
        registry.advance(generation, Event.JUDGED_NOT_WORSE)
    assert registry.open_generation(DIGEST, "arm") == generation


def test_only_one_of_two_runs_moves_a_generation(registry: Registry) -> None:
    generation = started(registry)
    outcomes: list[str] = []

    def move() -> None:
        try:
            registry.advance(generation, Event.MOMENTS_FOLDED)
            outcomes.append("moved")
        except IllegalTransitionError:
            outcomes.append("refused")

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved", "refused", "refused", "refused"]


def test_every_change_is_audited(registry: Registry) -> None:
    registry.advance(replace(started(registry), reason="tired"), Event.GAVE_UP)
    entries = registry.audit()
    actions = [entry.action for entry in entries]
    assert actions == ["model_added", "device_class_added", "generation_started", "gave_up"]
    assert entries[-1].detail == '{"reason": "tired"}'
    assert entries[-1].subject == f"{DIGEST}/arm/0"


def test_migrations_make_the_tables_that_the_code_declares(path: Path) -> None:
    Registry.open(url_of(path)).close()
    with connect(url_of(path)).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_processes_that_open_a_new_database_at_once_all_succeed(path: Path) -> None:
    errors: list[BaseException] = []

    def open_it() -> None:
        try:
            Registry.open(url_of(path)).close()
        except Exception as error:  # noqa: BLE001  # any failure at all fails the test
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_what_happened_to_one_thing_is_found_by_an_index(path: Path) -> None:
    Registry.open(url_of(path)).close()
    with sqlite3.connect(path) as raw:
        plan = raw.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM audit WHERE subject = 'x' ORDER BY id"
        ).fetchall()
    assert any("ix_audit_subject" in str(step) for step in plan)


def test_a_database_from_a_newer_version_is_refused(path: Path) -> None:
    Registry.open(url_of(path)).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match=r"revision 9999, written by a newer version.*upgrade"):
        Registry.open(url_of(path))


def test_readers_do_not_wait_for_a_writer(registry: Registry, path: Path) -> None:
    with sqlite3.connect(path, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert registry.model("digits").digest == DIGEST
        writer.execute("ROLLBACK")


@pytest.mark.parametrize("url", ["quantfleet.db", "nosuchdatabase://host/name", "sqlite:////dev/null/a.db"])
def test_a_url_that_opens_nothing_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="registry"):
        Registry.open(url)


def test_the_folder_of_the_file_is_made(tmp_path: Path) -> None:
    Registry.open(url_of(tmp_path / "state" / "server" / "registry.db")).close()
    assert (tmp_path / "state" / "server" / "registry.db").exists()


def test_a_registry_in_memory_works() -> None:
    with Registry.open("sqlite://") as registry:
        assert registry.add_model(Model(DIGEST, "digits", 10)) == registry.model("digits")


def test_a_file_that_is_no_database_is_a_configuration_error(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        Registry.open(url_of(path))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nonsense://ana:s3cret@db/fleet",
        "postgresql+nonsense://db/fleet?password=s3cret",
        "postgresql+psycopg://ana:s3cret@db:port/fleet",
        "ana:s3cret@db/fleet",
    ],
)
def test_a_password_is_in_no_message(url: str) -> None:
    with pytest.raises(ConfigurationError, match="not a database URL") as refused:
        Registry.open(url)
    assert "s3cret" not in str(refused.value)
    assert "db" in str(refused.value)
