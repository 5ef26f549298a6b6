"""Bins that a round fixes beforehand: what summing histograms as plain vectors needs."""

from dataclasses import dataclass

import numpy as np

from quantization.arrays import IntArray
from quantization.dyadic import (
    MAX_BIN_INDEX,
    MAX_BINS,
    MAX_EXPONENT,
    MIN_EXPONENT,
    add_coarsened,
    span,
)
from quantization.errors import ConfigurationError, IncompatibleStatsError, MalformedError
from quantization.histogram import DyadicHistogram, check_bounds


@dataclass(frozen=True, slots=True)
class FixedGrid:
    """Bins that a round fixes beforehand, so that all devices send vectors of one length and meaning.

    Vectors of one grid add number by number, in clear or under encryption.

    Attributes:
        exponent: Bins are 2^exponent wide, -126 to 127.
        first_bin: Index k of the first bin.
        bins: Length of the vectors, 1 to 2,048.
    """

    exponent: int
    first_bin: int
    bins: int

    def __post_init__(self) -> None:
        if not MIN_EXPONENT <= self.exponent <= MAX_EXPONENT or not 1 <= self.bins <= MAX_BINS:
            raise ConfigurationError(
                f"a grid has 1 to {MAX_BINS} bins and an exponent of"
                f" {MIN_EXPONENT} to {MAX_EXPONENT}, got {self}"
            )
        if self.first_bin <= -MAX_BIN_INDEX or self.first_bin + self.bins > MAX_BIN_INDEX:
            raise ConfigurationError(f"bins of a grid lie within +-2^20, got {self}")

    @classmethod
    def around(cls, histogram: DyadicHistogram, bins: int = MAX_BINS) -> "FixedGrid":
        """Return a grid that holds `histogram` in at most 3/4 of its bins, for the next round.

        The room is on both sides; above alone where no value is negative.

        Args:
            histogram: Last generation's, not empty.
            bins: Length of the vectors, 3 to 2,048.

        Raises:
            IncompatibleStatsError: The histogram is empty.
        """
        if histogram.count == 0:
            raise IncompatibleStatsError("an empty histogram says nothing about where to put a grid")
        exponent = histogram.exponent
        first_bin, used = span(histogram.minimum, histogram.maximum, exponent)
        while used > bins * 3 // 4 and exponent < MAX_EXPONENT:
            exponent += 1
            first_bin, used = span(histogram.minimum, histogram.maximum, exponent)
        start = first_bin - (bins - used) // 2
        if histogram.minimum >= 0:
            start = 0 if first_bin + used <= bins * 3 // 4 else first_bin
        start = max(start, 1 - MAX_BIN_INDEX)
        return cls(exponent, min(start, MAX_BIN_INDEX - bins), bins)

    def counts(self, histogram: DyadicHistogram) -> IntArray:
        """Return the counts of `histogram` on this grid, int64 (bins,).

        Raises:
            IncompatibleStatsError: A value lies outside the grid, or the histogram's bins are wider than its.
        """
        counts = np.zeros(self.bins, np.int64)
        if histogram.count == 0:
            return counts
        first_bin, used = span(histogram.minimum, histogram.maximum, self.exponent)
        if histogram.exponent > self.exponent or not self._holds(first_bin, used):
            raise IncompatibleStatsError(
                f"values in [{histogram.minimum}, {histogram.maximum}] with bins of 2^{histogram.exponent}"
                f" do not fit {self}: send the histogram itself"
            )
        shift = self.exponent - histogram.exponent
        add_coarsened(counts, self.first_bin, histogram.counts, histogram.first_bin, shift)
        return counts

    def histogram(
        self, counts: IntArray, count: int, minimum: float, maximum: float, nonfinite_count: int = 0
    ) -> DyadicHistogram:
        """Return the histogram that a sum of vectors of this grid stands for.

        Args:
            counts: Sum of the vectors, int64 (bins,).
            count: Finite values behind it.
            minimum: Least value behind it.
            maximum: Greatest value behind it.
            nonfinite_count: NaN and infinities seen beside it.

        Raises:
            MalformedError: The vector has another length, a negative count, or weight outside the bounds.
        """
        if counts.shape != (self.bins,) or counts.dtype != np.int64:
            raise MalformedError(f"expected int64 ({self.bins},), got {counts.dtype} {counts.shape}")
        if count == 0 and not counts.any():
            return DyadicHistogram.empty(nonfinite_count)
        check_bounds(minimum, maximum)
        first_bin, used = span(minimum, maximum, self.exponent)
        if not self._holds(first_bin, used):
            raise MalformedError(f"bounds [{minimum}, {maximum}] lie outside {self}")
        start = first_bin - self.first_bin
        if np.any(counts[:start]) or np.any(counts[start + used :]):
            raise MalformedError(f"counts lie outside the bounds [{minimum}, {maximum}]")
        inside = counts[start : start + used].copy()
        return DyadicHistogram(self.exponent, first_bin, inside, count, minimum, maximum, nonfinite_count)

    def _holds(self, first_bin: int, used: int) -> bool:
        return self.first_bin <= first_bin and first_bin + used <= self.first_bin + self.bins
