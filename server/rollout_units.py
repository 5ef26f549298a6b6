"""What one device contributes to a rollout's evidence, and when it is marked.

A *unit* is a device's losses against what was expected of it, frozen when the device has answered enough inputs. What
is expected is what the device did before the rollout, as far as it was counted, and what its class did otherwise: it
takes away most of what makes devices differ (Deng et al. 2013, "Improving the sensitivity of online controlled
experiments by utilizing pre-experiment data", doi:10.1145/2433396.2433413), and knows nothing of who is a canary.
"""

import math
from dataclasses import dataclass, fields

from server.rollout_settings import DEFAULT_RULES, RolloutRules
from server.telemetry_counts import TelemetryCounts

_PRIOR_SAMPLES = 25
"""Inputs that the class's rate weighs beside a device's own: rates of devices differ by about 6 points."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One device's losses against what was expected of it; None where it did not measure.

    Attributes:
        is_canary: Whether it has the new version.
        step: The rollout's step when the unit was complete.
        accuracy: Part of labelled inputs that it got wrong beyond expectation; likewise `agreement`.
        agreement: Of judged inputs, where it has no labels.
        failures: Part of inputs that it did not answer beyond expectation.
        latency: Rise of the 95th percentile's log2.
        memory: Rise of the memory's log2.
    """

    is_canary: bool
    step: int
    accuracy: float | None = None
    agreement: float | None = None
    failures: float | None = None
    latency: float | None = None
    memory: float | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """How many devices are marked, and with what; `+` merges.

    Attributes:
        devices: Devices that have said enough to be marked or not.
        marked: Those with a mark, of whichever kind.
        loading: Devices that could not load the version.
        destroyed: Devices far less accurate, or failing far more, than before.
        slow: Devices several times slower than before.
        large: Devices with several times the memory.
    """

    devices: int = 0
    marked: int = 0
    loading: int = 0
    destroyed: int = 0
    slow: int = 0
    large: int = 0

    def __add__(self, other: "Marks") -> "Marks":
        """Return the marks of both."""
        return Marks(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a device did before the rollout, and what its class did.

    Attributes:
        device: Counts of the device under the base version; empty for a new device.
        fleet: Merged counts of the class under the base version, fixed when the rollout starts.
    """

    device: TelemetryCounts
    fleet: TelemetryCounts

    def wrong_part(self, *, by_labels: bool) -> float:
        """Return the part of inputs that the device is expected to get wrong."""
        if by_labels:
            return _shrunk(self.device.labelled, self.device.hits, self.fleet.labelled, self.fleet.hits)
        return _shrunk(self.device.judged, self.device.agreements, self.fleet.judged, self.fleet.agreements)

    def failure_rate(self) -> float:
        """Return the part of inputs that the device is expected not to answer."""
        asked = self.device.samples + self.device.failures
        expected = self.device.failures + _PRIOR_SAMPLES * self.fleet.failure_rate
        return expected / (asked + _PRIOR_SAMPLES)


def is_mature(counts: TelemetryCounts, rules: RolloutRules = DEFAULT_RULES) -> bool:
    """Return whether a device has answered enough for a unit."""
    return max(counts.labelled, counts.judged) >= rules.unit_samples


def unit_of(
    counts: TelemetryCounts,
    expectation: Expectation,
    *,
    is_canary: bool,
    step: int,
    rules: RolloutRules = DEFAULT_RULES,
) -> Unit:
    """Return the unit of one device.

    Args:
        counts: Under the version it should have, since the rollout started or its last unit.
        expectation: What was expected of it.
        is_canary: Whether it has the new version.
        step: The rollout's step now.
        rules: How many inputs make a unit.
    """
    is_labelled = counts.labelled >= rules.unit_samples
    return Unit(
        is_canary,
        step,
        accuracy=_loss(counts, expectation, by_labels=True) if is_labelled else None,
        agreement=None if is_labelled else _loss(counts, expectation, by_labels=False),
        failures=counts.failure_rate - expectation.failure_rate(),
        latency=_rise(counts.latency_octaves(), expectation.device, expectation.fleet),
        memory=_memory_rise(counts, expectation),
    )


def marks_of(counts: TelemetryCounts, expectation: Expectation, rules: RolloutRules = DEFAULT_RULES) -> Marks:
    """Return whether one device is marked, by all that it counted under the version."""
    loading = counts.load_failures > 0
    if counts.samples + counts.failures < rules.least_samples and not loading:
        return Marks()
    destroyed = _is_destroyed(counts, expectation, rules)
    latency = _rise(counts.latency_octaves(), expectation.device, expectation.fleet)
    slow = latency is not None and latency > rules.slow_octaves
    memory = _memory_rise(counts, expectation)
    large = memory is not None and memory > rules.large_octaves
    marked = loading or destroyed or slow or large
    return Marks(1, int(marked), int(loading), int(destroyed), int(slow), int(large))


def _is_destroyed(counts: TelemetryCounts, expectation: Expectation, rules: RolloutRules) -> bool:
    """Return whether a rate is worse by the drop that is marked and three standard errors of chance."""
    asked = counts.samples + counts.failures
    losses = [(counts.failure_rate - expectation.failure_rate(), asked)]
    for by_labels, number in ((True, counts.labelled), (False, counts.judged)):
        loss = _loss(counts, expectation, by_labels=by_labels)
        if loss is not None:
            losses.append((loss, number))
    return any(
        number >= rules.least_samples and loss > rules.destroyed_drop + 1.5 / math.sqrt(number)
        for loss, number in losses
    )


def _loss(counts: TelemetryCounts, expectation: Expectation, *, by_labels: bool) -> float | None:
    number, right = (counts.labelled, counts.hits) if by_labels else (counts.judged, counts.agreements)
    known = expectation.device.merge(expectation.fleet)
    if not number or not (known.labelled if by_labels else known.judged):
        return None
    return 1 - right / number - expectation.wrong_part(by_labels=by_labels)


def _shrunk(number: int, right: int, fleet_number: int, fleet_right: int) -> float:
    """Return the device's part of wrong answers, drawn to the class's as if that were `_PRIOR_SAMPLES` inputs."""
    prior = _PRIOR_SAMPLES if fleet_number else 0
    wrong = number - right + prior * (fleet_number - fleet_right) / max(fleet_number, 1)
    return wrong / (number + prior)


def _rise(octaves: float | None, device: TelemetryCounts, fleet: TelemetryCounts) -> float | None:
    before = device.latency_octaves()
    before = fleet.latency_octaves() if before is None else before
    return None if octaves is None or before is None else octaves - before


def _memory_rise(counts: TelemetryCounts, expectation: Expectation) -> float | None:
    before = expectation.device.memory_bytes or expectation.fleet.memory_bytes
    return math.log2(counts.memory_bytes / before) if counts.memory_bytes and before else None
