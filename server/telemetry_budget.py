"""How much a device can have counted: what is beyond that is no evidence, so that none fills the sums of a fleet.

The rules:

1. A device counts `max_inputs_per_second` at most, and `MAX_VALUES_PER_SECOND` at its sites. So a report takes time: as
   much as it takes to count what it counts.
2. That time lies after what the device reported before, and within the last `MAX_OFFLINE_SECONDS`: a device that was
   away may tell at once of all that it kept, and one that lies gains no more than what the fastest device could say.
3. The time is the server's. Where it went back by more than `CLOCK_SKEW_SECONDS`, what was counted until then is
   forgotten; or a server whose clock was wrong once would count nothing until that time has come.
4. A report with more is stored and counts nothing: the device forgets it, as it does any other.
"""

from dataclasses import dataclass, replace

from server.telemetry_counts import TelemetryCounts
from server.telemetry_reports import DeviceReport

MAX_OFFLINE_SECONDS = 7 * 86_400.0
"""A device keeps 10,000 reports, one a minute, for as long."""
CLOCK_SKEW_SECONDS = 86_400.0
MAX_VALUES_PER_SECOND = 1e8
"""Values that a device observes at activation sites: a core looks at no more."""

DEFAULT_MAX_INPUTS_PER_SECOND = 100_000.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What devices can have counted now.

    Attributes:
        max_inputs_per_second: Inputs that one device answers, or fails to answer.
        now_seconds: Seconds since 1970 (UTC), by the server's clock.
    """

    max_inputs_per_second: float
    now_seconds: float

    def counted_until(self, before_seconds: float | None, report: DeviceReport) -> float | None:
        """Return until when a device has counted once a report is; None if it cannot have counted that.

        Args:
            before_seconds: Until when it had counted before; None for a device's first report.
            report: What it counted since.
        """
        start = self.now_seconds - MAX_OFFLINE_SECONDS
        if before_seconds is not None and before_seconds <= self.now_seconds + CLOCK_SKEW_SECONDS:
            start = max(start, before_seconds)
        end = start + self._seconds(report)
        return end if end <= self.now_seconds else None

    def _seconds(self, report: DeviceReport) -> float:
        """Return how long it takes at least to count what a report counts."""
        counts = report.counts
        inputs = max(counts.samples + counts.failures + counts.load_failures, sum(counts.latency))
        return max(inputs / self.max_inputs_per_second, report.observed_values / MAX_VALUES_PER_SECOND)


def without_counts(report: DeviceReport) -> DeviceReport:
    """Return a report that counts nothing."""
    return replace(report, counts=TelemetryCounts(), observed_values=0, clipped_values=0)
