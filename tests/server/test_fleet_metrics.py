"""Tests of the fleet's metrics: what they show, what they cost, and what they do while the database is away."""

from pathlib import Path

import fleet_registry
import pytest
from fleet_registry import CLASS
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, event

from server import fleet_metrics
from server.blob_store import BlobStore
from server.database import connect, migrate
from server.fleet_metrics import FleetMetrics
from server.generation import FINAL_STEPS
from server.generation import Event as GenerationEvent
from server.registry import Registry
from server.rollout import Event, Rollout
from server.rollout_registry import RolloutRegistry

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
OUTCOMES = sorted(FINAL_STEPS)
ROWS_OF_DEVICES = ("device_telemetry", "rollout_devices", "rollout_units", "devices", "certificates")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Scraped:
    """Metrics on a registry of their own, and a clock that says when they are old."""

    def __init__(self, engine: Engine, blobs: BlobStore | None = None) -> None:
        self.clock = Clock()
        self.registry = CollectorRegistry()
        self.collector: FleetMetrics = fleet_metrics.register(
            self.registry, engine, blobs, wait_seconds=60.0, clock=self.clock
        )

    def again(self) -> Series:
        """Return the series of a scrape that reads everything again."""
        self.clock.now += 1000.0
        return self.series()

    def series(self) -> Series:
        text = generate_latest(self.registry).decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.series().get((f"quantfleet_{name}", frozenset(labels.items())))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, BlobStore, Rollout]:
    return fleet_registry.open_filled(tmp_path_factory.mktemp("filled"), devices=100)


def test_a_rollout_and_both_its_versions_are_shown(filled: tuple[Engine, BlobStore, Rollout]) -> None:
    engine, blobs, rollout = filled
    scraped = Scraped(engine, blobs)
    assert scraped.value("registry_up") == 1
    assert scraped.value("target_version", device_class=CLASS) == 2
    assert scraped.value("policy_generation", device_class=CLASS) == 1
    assert scraped.value("rollout_phase", device_class=CLASS, phase="canary") == 1
    assert scraped.value("rollout_phase", device_class=CLASS, phase="complete") == 0
    assert scraped.value("rollout_share_ratio", device_class=CLASS) == pytest.approx(rollout.share)
    assert scraped.value("rollout_devices", device_class=CLASS) == 10
    assert scraped.value("devices", device_class=CLASS, version="current") == 90
    assert scraped.value("known_devices", device_class=CLASS) == 100
    assert scraped.value("accuracy_ratio", device_class=CLASS, version="current") == pytest.approx(0.9)
    assert scraped.value("agreement_ratio", device_class=CLASS, version="candidate") == pytest.approx(0.95)
    assert scraped.value("clipped_ratio", device_class=CLASS) == pytest.approx(0.01)
    assert scraped.value("samples_total", device_class=CLASS) == 10_000
    assert scraped.value("inference_failures_total", device_class=CLASS) == 100


def test_generations_bits_drift_and_rounds_are_shown(filled: tuple[Engine, BlobStore, Rollout]) -> None:
    engine, blobs, _ = filled
    scraped = Scraped(engine, blobs)
    assert scraped.value("generations_total", device_class=CLASS, outcome="published") == 2
    assert scraped.value("generations_total", device_class=CLASS, outcome="failed") == 1
    assert scraped.value("bits_mean", device_class=CLASS, layer_group="first") == 8
    assert scraped.value("bits_mean", device_class=CLASS, layer_group="middle") == 4
    assert scraped.value("bits_mean", device_class=CLASS, layer_group="last") == 8
    assert scraped.value("drift_ratio", device_class=CLASS) == pytest.approx(0.5)
    assert scraped.value("rounds_total", round="moments") == 2
    assert scraped.value("round_devices", round="moments") == 12
    assert scraped.value("round_asked_total", round="moments") == 22
    assert scraped.value("round_dropouts_total", round="moments") == 3
    assert scraped.value("statistics_bytes_total", round="moments") == 19_000
    assert scraped.value("tuners") == 0
    assert scraped.value("store_bytes") == blobs.size_bytes() > 0


def test_a_class_without_anything_has_no_ratios(filled: tuple[Engine, BlobStore, Rollout]) -> None:
    engine, _, _ = filled
    scraped = Scraped(engine)
    assert scraped.value("target_version", device_class="arm") == 0
    assert scraped.value("samples_total", device_class="arm") == 0
    assert scraped.value("accuracy_ratio", device_class="arm", version="current") is None
    assert scraped.value("policy_generation", device_class="arm") is None


def test_a_rollout_that_was_rolled_back_shows_the_version_that_came_back(tmp_path: Path) -> None:
    engine, blobs, rollout = fleet_registry.open_filled(tmp_path, devices=10)
    scraped = Scraped(engine, blobs)
    RolloutRegistry(engine, lambda: 2e6).advance(rollout, Event.RECALLED, actor="test", reason="bad")
    assert scraped.value("rollout_phase", device_class=CLASS, phase="rolled_back") == 1
    assert scraped.value("rollout_phase_start_seconds", device_class=CLASS) == 2e6
    assert scraped.value("rollout_share_ratio", device_class=CLASS) == 0
    assert scraped.value("target_version", device_class=CLASS) == 3
    assert scraped.value("policy_generation", device_class=CLASS) == 0
    assert scraped.value("rollout_devices", device_class=CLASS) == 0
    assert scraped.value("samples_total", device_class=CLASS) == 1000


def test_a_generation_that_is_recalled_was_published_all_the_same(tmp_path: Path) -> None:
    engine, blobs, rollout = fleet_registry.open_filled(tmp_path, devices=10)
    registry = Registry(engine, lambda: 2e6)
    newest = registry.published(rollout.model_digest, CLASS)
    scraped = Scraped(engine, blobs)
    before = {
        outcome: scraped.value("generations_total", device_class=CLASS, outcome=outcome)
        for outcome in OUTCOMES
    }
    registry.advance(newest, GenerationEvent.RECALLED)
    scraped.again()
    after = {
        outcome: scraped.value("generations_total", device_class=CLASS, outcome=outcome)
        for outcome in OUTCOMES
    }
    assert before == {"failed": 1, "published": 2, "recalled": 0, "rejected": 0, "unchanged": 0}
    assert after == {**before, "recalled": 1}
    assert (
        scraped.value("policy_generation", device_class=CLASS) == 1
    )  # devices run it until its rollout ends


def test_neither_series_nor_queries_grow_with_devices(tmp_path: Path) -> None:
    found: list[tuple[set[object], list[str]]] = []
    for devices in (10, 10_000):
        folder = tmp_path / str(devices)
        folder.mkdir()
        engine, blobs, _ = fleet_registry.open_filled(folder, devices)
        scraped = Scraped(engine, blobs)
        scraped.series()  # policies are read once
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *a, to=statements: to.append(a[2]))
        found.append((set(scraped.again()), statements))
        assert scraped.value("known_devices", device_class=CLASS) == devices
    (few, few_statements), (many, many_statements) = found
    assert few == many
    assert few_statements == many_statements
    assert 0 < len(many_statements) <= 12
    words = set(" ".join(many_statements).replace(",", " ").replace(".", " ").split())
    assert not words & set(ROWS_OF_DEVICES)


def test_scrapes_within_a_few_seconds_ask_the_database_once(
    filled: tuple[Engine, BlobStore, Rollout],
) -> None:
    engine, _, _ = filled
    scraped = Scraped(engine)
    scraped.series()
    statements: list[str] = []

    def count(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    event.listen(engine, "before_cursor_execute", count)
    for _ in range(5):
        scraped.series()
    event.remove(engine, "before_cursor_execute", count)
    assert statements == []


def test_while_the_database_is_away_the_last_values_stay(tmp_path: Path) -> None:
    engine, blobs, _ = fleet_registry.open_filled(tmp_path, devices=10)
    scraped = Scraped(engine, blobs)
    before = scraped.series()
    engine.dispose()
    for name in tmp_path.glob("registry.db*"):
        name.rename(name.with_suffix(".away"))
    (tmp_path / "registry.db").mkdir()
    after = scraped.again()
    gone = {("quantfleet_registry_up", frozenset()), ("quantfleet_registry_age_seconds", frozenset())}
    up, age = (name for name in sorted(gone, reverse=True))
    assert after[up] == 0
    assert after[age] == 1000
    assert {key: value for key, value in after.items() if key not in gone} == {
        key: value for key, value in before.items() if key not in gone
    }
    (tmp_path / "registry.db").rmdir()
    assert scraped.again()[up] == 0  # a database without tables


def test_without_a_database_there_is_nothing_but_that(tmp_path: Path) -> None:
    scraped = Scraped(connect(f"sqlite:///{tmp_path / 'none.db'}"))
    assert scraped.series() == {("quantfleet_registry_up", frozenset()): 0.0}


def test_a_blob_store_that_is_away_takes_only_bits_with_it(tmp_path: Path) -> None:
    engine, blobs, _ = fleet_registry.open_filled(tmp_path, devices=10)
    (tmp_path / "blobs").rename(tmp_path / "moved")
    scraped = Scraped(engine, blobs)
    assert scraped.value("registry_up") == 1
    assert scraped.value("target_version", device_class=CLASS) == 2
    assert scraped.value("bits_mean", device_class=CLASS, layer_group="first") is None
    (tmp_path / "moved").rename(tmp_path / "blobs")
    scraped.again()
    assert scraped.value("bits_mean", device_class=CLASS, layer_group="first") == 8


def test_registering_does_not_open_the_database(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'registry.db'}")
    Scraped(engine)
    assert not (tmp_path / "registry.db").exists()
    migrate(engine)
    assert Scraped(engine).value("registry_up") == 1
