"""A device's own metrics for Prometheus: read from its agent when they are asked for, so that inference pays nothing.

Import this only where metrics are wanted: it needs prometheus-client. Labels come from fixed sets: a device has the
same series whatever it runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from client.device_status import DeviceStatus
from client.install_attempts import OUTCOME_LABELS, outcome_label
from client.slots import Phase
from client.telemetry import Totals
from protos.quantfleet.v1.telemetry_pb2 import InstallAttempt
from quantization.errors import ConfigurationError, QuantFleetError

_PREFIX = "quantfleet_client"
_FIRST_BUCKET, _LAST_BUCKET = 10, 48  # 32 us to 17 s, an octave each


class Readable(Protocol):
    """What is read: `client.agent.Agent`."""

    def status(self) -> DeviceStatus:
        """Return how the device is doing."""
        ...

    def totals(self) -> Totals:
        """Return what was counted since the start."""
        ...


class InstallMetrics:
    """Counts how attempts to install a target end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Make the counters on a registry, every outcome at zero."""
        self._installs = Counter(
            f"{_PREFIX}_installs",
            "Attempts to install a target, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self._fetched = Counter(
            f"{_PREFIX}_fetched_bytes", "Bytes that attempts to install a target received.", registry=registry
        )
        for outcome in OUTCOME_LABELS:
            self._installs.labels(outcome)

    def count(self, attempt: InstallAttempt) -> None:
        """Count one attempt; the hook of an agent."""
        self._installs.labels(outcome_label(attempt)).inc()
        self._fetched.inc(attempt.fetched_bytes)


class DeviceMetrics(Collector):
    """Reads the agent when it is scraped."""

    def __init__(self, device: Readable, registry: CollectorRegistry) -> None:
        """Read a device from now on."""
        self._device = device
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Name nothing in advance: an agent may be busy when its metrics are made."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield what the agent counts now; counters alone where its state folder cannot be read."""
        totals = self._device.totals()
        yield CounterMetricFamily(f"{_PREFIX}_inferences", "Inputs that were answered.", totals.samples)
        yield CounterMetricFamily(
            f"{_PREFIX}_failures", "Inputs that should have been answered and were not.", totals.failures
        )
        yield _histogram(totals)
        try:
            status = self._device.status()
        except QuantFleetError:
            return
        version = 0 if status.serving is None else status.serving.version
        for name, text, value in (
            ("target_version", "Version of the target that serves; 0 before the first.", version),
            ("generation", "Number of the policy that serves.", status.generation),
            ("store_bytes", "Bytes that blobs take on the disk.", status.store_bytes),
            ("spooled_reports", "Reports that wait for the server.", status.spooled_reports),
            ("connected", "Whether the update service answers.", int(status.is_connected)),
            ("resident_memory_bytes", "Resident memory of the agent's process.", status.rss_bytes),
        ):
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value)
        phases = GaugeMetricFamily(
            f"{_PREFIX}_phase", "Whether the device stands there with its last target.", labels=["phase"]
        )
        for phase in Phase:
            phases.add_metric([str(phase)], int(status.phase == phase))
        yield phases


def _histogram(totals: Totals) -> Metric:
    """Return the latencies in octaves."""
    buckets: list[tuple[str, float]] = []
    for last in range(_FIRST_BUCKET, _LAST_BUCKET + 1, 2):
        bound = 2 ** (last / 2) * 1e-6
        buckets.append((f"{bound:.6g}", float(sum(totals.latency[:last]))))
    buckets.append(("+Inf", float(sum(totals.latency))))
    return HistogramMetricFamily(
        f"{_PREFIX}_inference_duration_seconds",
        "How long samples took.",
        buckets=buckets,
        sum_value=totals.sum_seconds,
    )


class OwnMetrics:
    """All metrics of a process with one agent, on a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._installs = InstallMetrics(self._registry)

    def count(self, attempt: InstallAttempt) -> None:
        """Count an attempt to install a target; the hook of an agent."""
        self._installs.count(attempt)

    @contextmanager
    def serving(self, device: Readable, address: str) -> Iterator[str]:
        """Serve a device's metrics while the block runs; yields the address. Errors are those of `serving_metrics`."""
        DeviceMetrics(device, self._registry)
        with serving_metrics(self._registry, address) as bound:
            yield bound


@contextmanager
def serving_metrics(registry: CollectorRegistry, address: str) -> Iterator[str]:
    """Serve a registry over HTTP while the block runs; yields the address, with the port that was taken.

    Args:
        registry: What is served.
        address: Host and port; port 0 takes a free one.

    Raises:
        ConfigurationError: If the address cannot be served.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"metrics address {address!r:.80} is not host:port, such as 127.0.0.1:9465")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise ConfigurationError(f"metrics address {address} cannot be served ({error.strerror})") from error
    try:
        yield f"{host}:{_port(server)}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _port(server: WSGIServer) -> int:
    return int(server.server_address[1])
