"""Drift as telemetry shows it: how much of its accuracy a version has surely lost since it began.

The statistic. Devices count how often they were right, where labels exist; how often they agreed with the float model;
and how many of the values that they observed lay within their ranges. Counts of a class under one version only grow;
between two looks lies a *window* of at least `window_samples` of them. The first windows of a version are its
*beginning*. The drop of a rate is that of the beginning minus that of the last window, less `sureness` standard errors
of the difference, and at least 0: what chance explains is no drop. The drop of a class is that of its accuracy; where
labels are too few, the larger of those of its agreement and of its values in range.

Hysteresis. A class drifts from the moment at which its drop reaches `start_drop` to that at which it is back at
`stop_drop`, so that a rate near one threshold starts nothing twice.

What it cannot see: a fleet without labels whose float model drifts along agrees with it all the time, and its values
may stay in range. The schedule is there for that.
"""

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

from quantization.errors import ConfigurationError
from server.class_totals import ClassTotals

_VALUES_PER_SAMPLE = 1000
"""Values in range that weigh as much as one sample: those of one input are much alike."""


@dataclass(frozen=True, slots=True)
class DriftRules:
    """When a class drifts.

    Attributes:
        start_drop: Drop from which on it does, a part of all answers, above 0 to 1.
        stop_drop: Drop at which it no longer does; below `start_drop`.
        window_samples: Judged answers in a window, at least.
        beginning_windows: Windows of that size that make a version's beginning.
        sureness: Standard errors that are taken off a difference.
    """

    start_drop: float = 0.03
    stop_drop: float = 0.01
    window_samples: int = 500
    beginning_windows: int = 4
    sureness: float = 2.0

    def __post_init__(self) -> None:
        """Refuse rules under which nothing, or everything, drifts."""
        if not 0 <= self.stop_drop < self.start_drop <= 1:
            raise ConfigurationError(
                f"stop-drop {self.stop_drop} must lie below start-drop {self.start_drop}, both within 0 to 1"
            )
        if self.window_samples < 1 or self.beginning_windows < 1:
            raise ConfigurationError(
                f"window-samples {self.window_samples} and beginning-windows {self.beginning_windows} must be "
                "at least 1"
            )
        if not 0 <= self.sureness <= 10:
            raise ConfigurationError(f"sureness {self.sureness} must lie within 0 to 10 standard errors")


class Measure(StrEnum):
    """What a drop was seen in."""

    ACCURACY = "accuracy"
    AGREEMENT = "agreement"
    RANGE = "range"


@dataclass(frozen=True, slots=True)
class Tally:
    """Answers that were right, of how many."""

    right: int = 0
    total: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.right + other.right, self.total + other.total)

    def since(self, earlier: "Tally") -> "Tally | None":
        """Return what was counted since; None where less is counted now, because devices have left."""
        right, total = self.right - earlier.right, self.total - earlier.total
        return Tally(right, total) if 0 <= right <= total else None


def sure_drop(before: Tally, after: Tally, sureness: float) -> float:
    """Return by how much a rate has fallen, less some standard errors of the difference; at least 0.

    Args:
        before: At least one answer.
        after: Likewise.
        sureness: How many standard errors.
    """
    # One more right and one more wrong: a rate of 1 has an error too.
    pooled = (before.right + after.right + 1) / (before.total + after.total + 2)
    error = math.sqrt(pooled * (1 - pooled) * (1 / before.total + 1 / after.total))
    return max(0.0, before.right / before.total - after.right / after.total - sureness * error)


@dataclass(frozen=True, slots=True)
class Track:
    """One measure of one version over time.

    Attributes:
        beginning: What the version's first windows counted.
        counted: What was counted, in all, when the last window ended.
        drop: Of the last window; None before there is one to compare.
    """

    beginning: Tally = Tally()
    counted: Tally = Tally()
    drop: float | None = None

    def observe(self, counted: Tally, rules: DriftRules, per_sample: int = 1) -> "Track":
        """Return the track after a look, at which so much was counted in all, `per_sample` of it for one sample."""
        window = counted.since(self.counted)
        if window is None:
            return replace(self, counted=counted)
        if window.total < rules.window_samples * per_sample:
            return self
        if not self.beginning.total:
            return Track(window, counted)
        drop = sure_drop(self.beginning, window, rules.sureness)
        is_young = self.beginning.total < rules.window_samples * per_sample * rules.beginning_windows
        beginning = self.beginning + window if is_young and drop < rules.stop_drop else self.beginning
        return Track(beginning, counted, drop)

    def restarted(self) -> "Track":
        """Return the track of the same content under a new version, of which nothing was counted yet."""
        return replace(self, counted=Tally())


@dataclass(frozen=True, slots=True)
class FieldDrift:
    """What telemetry shows of one class's drift.

    Attributes:
        version: Of the target that the class runs.
        manifest_digest: Its content; another version of the same content keeps its beginning.
        accuracy: Right answers of the labelled.
        agreement: Answers like the float model's.
        in_range: Values within their ranges.
        is_drifting: Whether the class drifts, with hysteresis.
    """

    version: int = 0
    manifest_digest: str = ""
    accuracy: Track = field(default_factory=Track)
    agreement: Track = field(default_factory=Track)
    in_range: Track = field(default_factory=Track)
    is_drifting: bool = False

    @property
    def measure(self) -> Measure:
        """What the drop was seen in."""
        if self.accuracy.drop is not None:
            return Measure.ACCURACY
        return (
            Measure.RANGE if (self.in_range.drop or 0.0) > (self.agreement.drop or 0.0) else Measure.AGREEMENT
        )

    @property
    def drop(self) -> float | None:
        """How much was surely lost, a part of all; None before there is anything to compare."""
        if self.accuracy.drop is not None:
            return self.accuracy.drop
        known = [track.drop for track in (self.agreement, self.in_range) if track.drop is not None]
        return max(known, default=None)


def observe(
    known: FieldDrift, version: int, manifest_digest: str, totals: ClassTotals, rules: DriftRules
) -> FieldDrift:
    """Return what a look at a class's counts shows.

    Args:
        known: What the last look showed; `FieldDrift()` before the first.
        version: That the class runs now.
        manifest_digest: The version's content.
        totals: What its devices have counted under this version, in all.
        rules: When a class drifts.
    """
    if version != known.version:
        known = _of_version(known, version, manifest_digest)
    in_range = Tally(totals.observed_values - totals.clipped_values, totals.observed_values)
    seen = replace(
        known,
        accuracy=known.accuracy.observe(Tally(totals.hits, totals.labelled), rules),
        agreement=known.agreement.observe(Tally(totals.agreements, totals.judged), rules),
        in_range=known.in_range.observe(in_range, rules, _VALUES_PER_SAMPLE),
    )
    drop = seen.drop
    if drop is None:
        return seen
    return replace(seen, is_drifting=drop > rules.stop_drop if seen.is_drifting else drop >= rules.start_drop)


def _of_version(known: FieldDrift, version: int, manifest_digest: str) -> FieldDrift:
    """Return where a new version starts: anew, or where its content left off."""
    if manifest_digest != known.manifest_digest:
        return FieldDrift(version, manifest_digest)
    tracks = {name: getattr(known, name).restarted() for name in ("accuracy", "agreement", "in_range")}
    return replace(known, version=version, **tracks)
