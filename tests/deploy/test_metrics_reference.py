"""The metrics that code makes, the ones that docs explain, and the ones that deploy/ asks for are the same."""

import re
from dataclasses import dataclass
from pathlib import Path

import fleet_registry
import pytest
from dashboards import ALERTS, RECORDED, metrics_in, panels, queries
from deployed_commands import ROOT
from prometheus_client import CollectorRegistry, Metric

from client.device_status import DeviceStatus
from client.metrics import DeviceMetrics, InstallMetrics
from client.telemetry import Totals
from quantization.delta import Encoding
from server import fleet_metrics
from server.expiry_metrics import ExpiryMetrics
from server.generation import FINAL_STEPS
from server.keys import ROLES
from server.layer_bits import LAYER_GROUPS
from server.rollout import Phase
from server.service_metrics import INSTALL_OUTCOMES, REFUSAL_REASONS, ReportOutcome, ServiceMetrics
from server.tuning_runs import ENDED_STATES
from server.update_metrics import UpdateMetrics

ROW = re.compile(r"^\| `(quantfleet_\w+)` \| (\w+) \|([\w, ]*)\| (\w+) \| .+ \|$", flags=re.MULTILINE)
FIXED_LABELS = {
    "device_class", "version", "phase", "encoding", "round", "outcome", "reason", "layer_group", "state", "role",
    "certificate",
}  # fmt: skip


class Device:
    """An agent that has answered nothing yet."""

    def status(self) -> DeviceStatus:
        return DeviceStatus("d", "arm", "", "stable", None, None, 0, 0)

    def totals(self) -> Totals:
        return Totals()


@dataclass(frozen=True)
class Documented:
    kind: str
    labels: frozenset[str]


def documented() -> dict[str, Documented]:
    rows = ROW.findall((ROOT / "docs" / "monitoring.md").read_text())
    assert len({name for name, *_ in rows}) == len(rows)
    return {
        name: Documented(kind, frozenset(labels.replace(" ", "").split(",")) - {""})
        for name, kind, labels, _ in rows
    }


def full_name(metric: Metric) -> str:
    return metric.name + ("_total" if metric.type == "counter" else "")


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """Every metric of a server and of a device, with series where they can have some."""
    engine, blobs, _ = fleet_registry.open_filled(tmp_path_factory.mktemp("fleet"), devices=10)
    metrics = CollectorRegistry()
    services, updates = ServiceMetrics(metrics), UpdateMetrics(metrics)
    services.installs.labels("arm", "activated")
    updates.sent_bytes.labels("arm", "full")
    updates.sent_blobs.labels("arm", "full")
    ExpiryMetrics(metrics)
    fleet_metrics.register(metrics, engine, blobs, wait_seconds=60.0)
    InstallMetrics(metrics)
    DeviceMetrics(Device(), metrics)
    return {full_name(metric): metric for metric in metrics.collect()}


def test_every_metric_is_explained_and_nothing_else_is(registered: dict[str, Metric]) -> None:
    explained = documented()
    assert registered.keys() == explained.keys()
    assert {name: metric.type for name, metric in registered.items()} == {
        name: row.kind for name, row in explained.items()
    }


def test_labels_are_the_ones_that_are_explained(registered: dict[str, Metric]) -> None:
    explained = documented()
    for name, metric in registered.items():
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        assert labels <= explained[name].labels, name
        assert not metric.samples or labels == explained[name].labels, name
        assert explained[name].labels <= FIXED_LABELS


def test_names_have_units_and_help(registered: dict[str, Metric]) -> None:
    for name, metric in registered.items():
        assert metric.documentation.endswith("."), name
        assert not re.search(r"_(ms|millis|kb|mb|percent|hours|minutes)(_|$)", name)
        assert (metric.type == "counter") == name.endswith("_total")


def test_the_dashboard_and_the_alerts_name_metrics_that_are_there(registered: dict[str, Metric]) -> None:
    suffixes = re.compile(r"_(bucket|sum|count)$")
    asked = [*queries(), *((alert["alert"], alert["expr"]) for alert in ALERTS), *RECORDED.items()]
    for place, expression in asked:
        for name in metrics_in(expression):
            assert name in registered or suffixes.sub("", name) in registered, f"{place}: {name}"


def test_every_panel_says_what_it_shows_and_has_its_own_place() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels()}) == len(places)
    for panel in panels():
        assert panel["description"].endswith(".")
        assert panel["targets"]


@pytest.mark.parametrize("page", ["monitoring.md", "deploy.md", "operations-alerts.md"])
def test_pages_link_to_what_is_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (ROOT / "docs" / Path(target)).exists(), target


def test_values_of_labels_are_the_ones_that_are_explained() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    rows = dict(re.findall(r"^\| (`\w+`[\w ]*) \| (.+) \|$", text, flags=re.MULTILINE))
    explained = {head: set(re.findall(r"`([a-z0-9_]+)`", values)) for head, values in rows.items()}
    assert explained["`phase`"] == set(Phase)
    assert explained["`layer_group`"] == set(LAYER_GROUPS)
    assert explained["`outcome` of generations"] == set(FINAL_STEPS)
    assert explained["`outcome` of installs"] == {*INSTALL_OUTCOMES, "other"}
    assert explained["`outcome` of reports"] == set(ReportOutcome)
    assert explained["`reason`"] == set(REFUSAL_REASONS)
    assert explained["`encoding`"] == {encoding.name.lower() for encoding in Encoding}
    assert explained["`state`"] == set(ENDED_STATES)
    assert explained["`role`"] == set(ROLES)
