"""What devices report of one version of a target, as counts that merge."""

from dataclasses import dataclass, replace

from quantization.errors import MalformedError
from quantization.side_by_side import LATENCY_BUCKETS

_NO_LATENCY = (0,) * LATENCY_BUCKETS
_MAX_MEMORY_BYTES = 1 << 50
_MAX_TOTAL = 1 << 62  # where sums stay, should they get there: `server.telemetry_budget` says why they do not


@dataclass(frozen=True, slots=True)
class TelemetryCounts:
    """Counts of one device, or of many merged, under one version.

    `merge` is commutative and associative, with `TelemetryCounts()` as identity; a sum beyond 2^62 is 2^62.

    Attributes:
        samples: Inputs that the model answered.
        labelled: Those whose class became known.
        hits: Labelled inputs that the model got right.
        judged: Inputs that the corrected float model answered too.
        agreements: Those where both said the same.
        failures: Inputs that the model should have answered and did not.
        load_failures: Times that the version could not be built or failed its self-test.
        latency: Answers by latency, in the buckets of `quantization.side_by_side`: half octaves from 1 us on.
        memory_bytes: Greatest resident memory of the process; 0 where unknown.
    """

    samples: int = 0
    labelled: int = 0
    hits: int = 0
    judged: int = 0
    agreements: int = 0
    failures: int = 0
    load_failures: int = 0
    latency: tuple[int, ...] = _NO_LATENCY
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse counts that no device can have counted."""
        counts = (self.samples, self.labelled, self.hits, self.judged, self.agreements, self.failures)
        if not all(0 <= count <= _MAX_TOTAL for count in (*counts, self.load_failures, *self.latency)):
            raise MalformedError("telemetry counts must not be negative, nor beyond 2^62")
        if len(self.latency) != LATENCY_BUCKETS:
            raise MalformedError(f"latencies in {len(self.latency)} buckets, expected {LATENCY_BUCKETS}")
        if not (
            self.hits <= self.labelled <= self.samples and self.agreements <= self.judged <= self.samples
        ):
            raise MalformedError("telemetry counts a part that is larger than the whole")
        if not 0 <= self.memory_bytes <= _MAX_MEMORY_BYTES:
            raise MalformedError(f"{self.memory_bytes} bytes of memory")

    def merge(self, other: "TelemetryCounts") -> "TelemetryCounts":
        """Return the counts of both."""
        return replace(
            self,
            samples=_sum(self.samples, other.samples),
            labelled=_sum(self.labelled, other.labelled),
            hits=_sum(self.hits, other.hits),
            judged=_sum(self.judged, other.judged),
            agreements=_sum(self.agreements, other.agreements),
            failures=_sum(self.failures, other.failures),
            load_failures=_sum(self.load_failures, other.load_failures),
            latency=tuple(_sum(a, b) for a, b in zip(self.latency, other.latency, strict=True)),
            memory_bytes=max(self.memory_bytes, other.memory_bytes),
        )

    @property
    def failure_rate(self) -> float:
        """Part of the inputs that were not answered; 0 where there was none."""
        asked = self.samples + self.failures
        return self.failures / asked if asked else 0.0

    def latency_octaves(self, quantile: float = 0.95) -> float | None:
        """Return log2 of a latency's quantile in microseconds; None where none was counted.

        Linear within the half octave that it falls into.
        """
        total = sum(self.latency)
        if not total:
            return None
        rest = quantile * total
        for bucket, count in enumerate(self.latency):
            if rest <= count:
                return (bucket + rest / count) / 2
            rest -= count
        return LATENCY_BUCKETS / 2


def _sum(a: int, b: int) -> int:
    return min(a + b, _MAX_TOTAL)
