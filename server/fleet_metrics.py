"""Metrics of the fleet, as the registry's database shows it.

The rules:

1. Labels are device classes and values from fixed sets: the number of series does not depend on the number of devices.
2. A scrape reads the database at most every few seconds, in a fixed number of queries, and never waits for it long.
3. While the database is away the last values stay, `quantfleet_registry_up` is 0 and `quantfleet_registry_age_seconds`
   grows. Nothing raises.

Several server processes on one registry show the same values: take the maximum over them, not the sum.
"""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from server.blob_store import BlobStore
from server.class_totals import ClassTotals
from server.fleet_readings import ClassReading, FleetReader, FleetReadings
from server.generation import FINAL_STEPS
from server.refreshed import Refreshed
from server.rollout import Phase
from server.tuning_metrics import tuning_metrics

MAX_AGE_SECONDS = 5.0
STORE_MAX_AGE_SECONDS = 300.0
"""Listing a store costs a call per thousand blobs, so it is done rarely."""
WAIT_SECONDS = 5.0
"""Longest wait of a scrape; Prometheus gives one 10 s by default."""

_OUTCOMES = tuple(sorted(str(step) for step in FINAL_STEPS))
_CLASS = ("device_class",)
_VERSION = ("device_class", "version")


def register(
    metrics: CollectorRegistry,
    engine: Engine,
    blobs: BlobStore | None = None,
    *,
    max_age_seconds: float = MAX_AGE_SECONDS,
    wait_seconds: float = WAIT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> "FleetMetrics":
    """Add the fleet's metrics to a registry of metrics; return the collector.

    Args:
        metrics: What the metrics are made on.
        engine: Of the registry's database, migrated.
        blobs: Holds artifacts; without it, bits per layer group and the store's size are left out.
        max_age_seconds: From when on the database is read again.
        wait_seconds: Longest time that a scrape waits for it.
        clock: Seconds that never go back.
    """
    collector = FleetMetrics(
        FleetReader(engine, blobs),
        None if blobs is None else blobs.size_bytes,
        max_age_seconds=max_age_seconds,
        wait_seconds=wait_seconds,
        clock=clock,
    )
    metrics.register(collector)
    return collector


class FleetMetrics(Collector):
    """Makes the metrics of a scrape from what was read last."""

    def __init__(
        self,
        reader: FleetReader,
        store_bytes: Callable[[], int] | None,
        *,
        max_age_seconds: float,
        wait_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """Read nothing yet.

        Args:
            reader: Reads the registry.
            store_bytes: Measures the blob store; None leaves its size out.
            max_age_seconds: From when on the database is read again.
            wait_seconds: Longest time that a scrape waits for it.
            clock: Seconds that never go back.
        """
        self._fleet = Refreshed(
            "registry",
            reader.read,
            FleetReadings(),
            max_age_seconds=max_age_seconds,
            wait_seconds=wait_seconds,
            clock=clock,
        )
        self._store: Refreshed[int | None] | None = None
        if store_bytes is not None:
            self._store = Refreshed(
                "store",
                store_bytes,
                None,
                max_age_seconds=max(max_age_seconds, STORE_MAX_AGE_SECONDS),
                wait_seconds=wait_seconds / 2,
                clock=clock,
            )

    def describe(self) -> list[Metric]:
        """Name nothing: registering must not read the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, read again if they are old."""
        readings = self._fleet.get()
        yield _gauge("registry_up", "Whether the registry's database could be read.", self._fleet.is_fresh)
        age = self._fleet.age_seconds
        if age is not None:
            yield _gauge("registry_age_seconds", "How long ago the registry was read.", age)
        if self._store is not None and (size_bytes := self._store.get()) is not None:
            yield _gauge("store_bytes", "Stored bytes of all blobs.", size_bytes)
        yield from _targets(readings.classes)
        yield from _rollouts(readings.classes)
        yield from _quality(readings.classes)
        yield from _policies(readings.classes)
        yield from tuning_metrics(readings.tuning)


def _targets(classes: tuple[ClassReading, ...]) -> Iterator[Metric]:
    version = _by_class("target_version", "Newest published version of a class's target.")
    generation = _by_class("policy_generation", "Number of the policy that this version runs.")
    devices = GaugeMetricFamily(
        "quantfleet_devices", "Devices that last reported the version.", labels=_VERSION
    )
    known = _by_class("known_devices", "Devices that have ever reported.")
    for one in classes:
        version.add_metric([one.device_class], one.target_version)
        known.add_metric([one.device_class], one.totals.devices)
        if one.policy_generation is not None:
            generation.add_metric([one.device_class], one.policy_generation)
        for name, counts in _versions(one):
            devices.add_metric([one.device_class, name], counts.devices)
    yield from (version, generation, devices, known)


def _rollouts(classes: tuple[ClassReading, ...]) -> Iterator[Metric]:
    phase = GaugeMetricFamily(
        "quantfleet_rollout_phase",
        "1 for the phase of the rollout that brought the newest version.",
        labels=("device_class", "phase"),
    )
    share = _by_class("rollout_share_ratio", "Part of the class that should have the version rolled out.")
    devices = _by_class("rollout_devices", "Devices that last reported the version of an open rollout.")
    entered = _by_class("rollout_phase_start_seconds", "When the phase or step began, since 1970 (UTC).")
    for one in classes:
        name, rollout = one.device_class, one.rollout
        for known in Phase:
            phase.add_metric([name, known], rollout is not None and rollout.phase is known)
        share.add_metric([name], 0.0 if rollout is None else rollout.share)
        devices.add_metric([name], 0 if one.candidate is None else one.candidate.devices)
        if rollout is not None:
            entered.add_metric([name], rollout.step_at_seconds)
    yield from (phase, share, devices, entered)


def _quality(classes: tuple[ClassReading, ...]) -> Iterator[Metric]:
    accuracy = GaugeMetricFamily(
        "quantfleet_accuracy_ratio", "Part of labelled samples that were right.", labels=_VERSION
    )
    agreement = GaugeMetricFamily(
        "quantfleet_agreement_ratio", "Part of judged samples that agreed.", labels=_VERSION
    )
    clipped = _by_class("clipped_ratio", "Part of observed values beyond their range, current version.")
    counters = {
        name: CounterMetricFamily(f"quantfleet_{name}", text, labels=_CLASS)
        for name, text in (
            ("samples", "Samples that devices answered."),
            ("inference_failures", "Samples that devices should have answered and did not."),
            ("load_failures", "Times that a device could not build a version."),
            ("labelled", "Samples whose class became known."),
            ("hits", "Labelled samples that were right."),
            ("judged", "Samples that another model answered too."),
            ("agreements", "Judged samples on which both agreed."),
        )
    }
    for one in classes:
        for version, counts in _versions(one):
            _add_ratio(accuracy, [one.device_class, version], counts.hits, counts.labelled)
            _add_ratio(agreement, [one.device_class, version], counts.agreements, counts.judged)
        _add_ratio(clipped, [one.device_class], one.current.clipped_values, one.current.observed_values)
        for name, counter in counters.items():
            field = "failures" if name == "inference_failures" else name
            counter.add_metric([one.device_class], getattr(one.totals, field))
    yield from (accuracy, agreement, clipped, *counters.values())


def _policies(classes: tuple[ClassReading, ...]) -> Iterator[Metric]:
    drift = _by_class("drift_ratio", "Part of the layers that had drifted when devices were last asked.")
    bits = GaugeMetricFamily(
        "quantfleet_bits_mean",
        "Mean bits per weight of a group of layers.",
        labels=("device_class", "layer_group"),
    )
    generations = CounterMetricFamily(
        "quantfleet_generations", "Generations that ended, by how.", labels=("device_class", "outcome")
    )
    for one in classes:
        if one.drift_ratio is not None:
            drift.add_metric([one.device_class], one.drift_ratio)
        for group, mean in one.mean_bits.items():
            bits.add_metric([one.device_class, group], mean)
        for outcome in _OUTCOMES:
            generations.add_metric([one.device_class, outcome], one.generations.get(outcome, 0))
    yield from (drift, bits, generations)


def _versions(one: ClassReading) -> Iterator[tuple[str, ClassTotals]]:
    yield "current", one.current
    if one.candidate is not None:
        yield "candidate", one.candidate


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"quantfleet_{name}", text, value=float(value))


def _by_class(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"quantfleet_{name}", text, labels=_CLASS)


def _add_ratio(family: GaugeMetricFamily, labels: list[str], part: int, whole: int) -> None:
    """Add the ratio; nothing where nothing was counted."""
    if whole:
        family.add_metric(labels, part / whole)
