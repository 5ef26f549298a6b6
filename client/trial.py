"""Whether an artifact that is on trial may stay: it must not fail, and not be much slower than what served before."""

import math
import threading
from dataclasses import dataclass, field
from enum import StrEnum

from quantization.artifact import Manifest
from quantization.errors import ConfigurationError

_BINS_PER_OCTAVE = 4
_BINS = 30 * _BINS_PER_OCTAVE  # 1 us to 18 minutes
_QUANTILE = 0.95


@dataclass(frozen=True, slots=True)
class TrialRules:
    """When a trial ends.

    Attributes:
        least_seconds: It lasts so long at least.
        least_runs: Inferences that it takes to pass, and that both need before their latency is compared.
        longest_seconds: It passes then, however few inferences there were.
        most_failures: Inferences that may fail; one more ends it.
        latency_ratio: Most that the 95th percentile of processor time may be, in units of that of what served before.
    """

    least_seconds: float = 60.0
    least_runs: int = 100
    longest_seconds: float = 3600.0
    most_failures: int = 0
    latency_ratio: float = 2.0

    def __post_init__(self) -> None:
        """Refuse rules that no trial could follow."""
        if (
            not 0 <= self.least_seconds <= self.longest_seconds
            or self.least_runs < 0
            or self.most_failures < 0
        ):
            raise ConfigurationError(f"trial rules {self} contradict each other")
        if not self.latency_ratio > 1.0:
            raise ConfigurationError(f"a latency ratio of {self.latency_ratio} would end every trial")


class Verdict(StrEnum):
    """What to do with an artifact on trial."""

    CONTINUES = "continues"
    PASSED = "passed"
    FAILED = "failed"


@dataclass(slots=True)
class RunCounts:
    """How the inferences of one artifact went; 1 KB whatever their number.

    Times are of the processor: what else goes on on a device must not end a trial.

    Attributes:
        runs: How many there were.
        failures: How many could not run, or gave outputs that are not finite.
        bins: How many took how long: bin k from 2^(k/4) to 2^((k+1)/4) microseconds.
    """

    runs: int = 0
    failures: int = 0
    bins: list[int] = field(default_factory=lambda: [0] * _BINS)

    def add(self, seconds: float, *, is_good: bool) -> None:
        """Count one inference."""
        self.runs += 1
        self.failures += not is_good
        exponent = math.log2(max(seconds * 1e6, 1.0))
        self.bins[min(int(exponent * _BINS_PER_OCTAVE), _BINS - 1)] += 1

    def p95_seconds(self) -> float:
        """Return the time that 95 of 100 inferences did not take longer than, to 19 % upwards; 0 without any."""
        below, wanted = 0, _QUANTILE * self.runs
        for position, count in enumerate(self.bins):
            below += count
            if count and below >= wanted:
                return float(2 ** ((position + 1) / _BINS_PER_OCTAVE) * 1e-6)
        return 0.0


def judge(rules: TrialRules, tried: RunCounts, before: RunCounts, seconds: float) -> tuple[Verdict, str]:
    """Return what to do, and why where the trial failed.

    Args:
        rules: When a trial ends.
        tried: Of the artifact on trial.
        before: Of what served before it.
        seconds: Since it began.
    """
    if tried.failures > rules.most_failures:
        return Verdict.FAILED, f"{tried.failures} of {tried.runs} inferences failed on trial"
    if min(tried.runs, before.runs) >= max(rules.least_runs, 1):
        ratio = tried.p95_seconds() / before.p95_seconds()
        if ratio > rules.latency_ratio:
            return Verdict.FAILED, f"its inferences took {ratio:.1f} times as long as before"
    if seconds >= rules.longest_seconds or (
        seconds >= rules.least_seconds and tried.runs >= rules.least_runs
    ):
        return Verdict.PASSED, ""
    return Verdict.CONTINUES, ""


class RunMeter:
    """Counts inferences of what is on trial and of what is not; safe to call from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._candidate: Manifest | None = None
        self._tried, self._before = RunCounts(), RunCounts()

    def record(self, manifest: Manifest, seconds: float, is_good: bool) -> None:
        """Count one inference, by the seconds of the processor that it used."""
        with self._lock:
            counts = self._tried if manifest is self._candidate else self._before
            counts.add(seconds, is_good=is_good)

    def begin(self, candidate: Manifest) -> None:
        """Count the inferences of this artifact apart, from none."""
        with self._lock:
            self._candidate, self._tried = candidate, RunCounts()

    def end(self, *, is_kept: bool) -> None:
        """Count what serves now; what the artifact on trial counted stays if it was kept."""
        with self._lock:
            if is_kept:
                self._before = self._tried
            self._candidate, self._tried = None, RunCounts()

    def judge(self, rules: TrialRules, seconds: float) -> tuple[Verdict, str]:
        """Return the verdict on the artifact on trial; see `judge`."""
        with self._lock:
            return judge(rules, self._tried, self._before, seconds)
