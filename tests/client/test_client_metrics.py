import urllib.request
from pathlib import Path

import pytest
from agents import INPUTS, NEW, OLD, running_agent, version_of
from memory_link import MemoryLink
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually

from client.metrics import DeviceMetrics, InstallMetrics, OwnMetrics, serving_metrics
from client.runtime import Run
from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.errors import ConfigurationError, MalformedError


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Return what is exposed, by name and labels."""
    text = generate_latest(registry).decode()
    return {
        one.name + "".join(f"{{{key}={value}}}" for key, value in sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_a_device_shows_what_it_does(tmp_path: Path) -> None:
    link, registry = MemoryLink(), CollectorRegistry()
    link.publish(OLD, 1)
    installs = InstallMetrics(registry)
    with running_agent(tmp_path, link, on_attempt=installs.count) as agent:
        DeviceMetrics(agent, registry)
        eventually(lambda: version_of(agent) == 1)
        link.publish(NEW, 2)
        eventually(lambda: version_of(agent) == 2 and agent.status().phase == "confirmed")
        eventually(lambda: samples(registry)["quantfleet_client_installs_total{outcome=confirmed}"] == 1)
        answered = agent.totals().samples
        seen = samples(registry)
        names = {name.partition("{")[0] for name in seen}
    assert seen["quantfleet_client_inferences_total"] == answered
    assert seen["quantfleet_client_failures_total"] == 0
    assert seen["quantfleet_client_inference_duration_seconds_count"] == answered
    assert seen["quantfleet_client_inference_duration_seconds_bucket{le=+Inf}"] == answered
    assert seen["quantfleet_client_inference_duration_seconds_sum"] > 0
    assert seen["quantfleet_client_target_version"] == 2
    assert seen["quantfleet_client_phase{phase=confirmed}"] == 1
    assert seen["quantfleet_client_phase{phase=trial}"] == 0
    assert seen["quantfleet_client_installs_total{outcome=activated}"] == 2
    assert seen["quantfleet_client_installs_total{outcome=reverted}"] == 0
    assert seen["quantfleet_client_fetched_bytes_total"] > 1000
    assert seen["quantfleet_client_store_bytes"] > 1000
    assert seen["quantfleet_client_connected"] == 1
    assert {"quantfleet_client_spooled_reports", "quantfleet_client_generation"} <= names


def test_series_are_the_same_whatever_happens(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    metrics = InstallMetrics(registry)
    with running_agent(tmp_path / "a", None) as agent:
        DeviceMetrics(agent, registry)
        before = samples(registry).keys()
        for outcome in pb.InstallOutcome.values()[1:]:
            metrics.count(pb.InstallAttempt(version=1, outcome=outcome))
        assert samples(registry).keys() == before


def test_latencies_are_cumulative_in_octaves(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with running_agent(tmp_path, None) as agent:
        for microseconds in (10, 100, 1000, 1e9):
            agent.telemetry.record(OLD.manifest, Run(1, microseconds * 1e-6, microseconds * 1e-6, True))
        DeviceMetrics(agent, registry)
        seen = samples(registry)
    name = "quantfleet_client_inference_duration_seconds_bucket"
    counts = [value for key, value in seen.items() if key.startswith(name)]
    assert counts == sorted(counts)
    assert seen[f"{name}{{le=0.000128}}"] == 2
    assert seen[f"{name}{{le=0.001024}}"] == 3
    assert counts[-1] == 4


class Damaged:
    def totals(self) -> object:
        raise NotImplementedError

    def status(self) -> object:
        raise MalformedError("the slots are damaged")


def test_counters_are_shown_where_the_folder_cannot_be_read(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with running_agent(tmp_path, None) as agent:
        agent.status = Damaged().status  # type: ignore[method-assign,assignment]
        DeviceMetrics(agent, registry)
        seen = samples(registry)
    assert "quantfleet_client_inferences_total" in seen
    assert "quantfleet_client_target_version" not in seen


def test_metrics_are_served_over_http(tmp_path: Path) -> None:
    metrics = OwnMetrics()
    with running_agent(tmp_path, None) as agent, metrics.serving(agent, "127.0.0.1:0") as address:
        agent.telemetry.record(OLD.manifest, Run(len(INPUTS), 1e-3, 1e-3, True))
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
    assert "quantfleet_client_inferences_total 4.0" in text


@pytest.mark.parametrize("address", ["9465", "127.0.0.1:http", ":9465", "127.0.0.1:70000", "192.0.2.1:0"])
def test_addresses_that_cannot_be_served_are_refused(address: str) -> None:
    with (
        pytest.raises(ConfigurationError, match="metrics address"),
        serving_metrics(CollectorRegistry(), address),
    ):
        pass
