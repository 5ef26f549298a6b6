"""The sum of devices' histograms, in memory that does not grow with their number.

The sum equals `DyadicHistogram.merge` over all devices, bit for bit and in any order, on bins no finer than
those that the round fixes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantization.arrays import AnyArray, IntArray
from quantization.dyadic import MAX_BIN_INDEX, MAX_BINS
from quantization.errors import MalformedError
from quantization.fixed_grid import FixedGrid
from quantization.histogram import DyadicHistogram
from strategies.histogram_check import GridBins, check_dense, check_free
from strategies.messages import SiteLayout
from strategies.packed_histograms import DensePart, PackedHistograms

_NARROW_PEAK = 1 << 12
"""Replies whose counts stay below this are first summed in 16 bits, at least 15 before an overflow."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckedHistograms:
    """A reply that was found well formed; `HistogramSum.add` takes it.

    Attributes:
        dense: As it came.
        peak: Largest dense count.
        free: Histograms by position of their site.
    """

    dense: DensePart | None
    peak: int
    free: Mapping[int, DyadicHistogram]


class HistogramSum:
    """The sum of devices' replies of one layout; about 20 bytes per bin, whatever the number of devices."""

    def __init__(self, layout: SiteLayout) -> None:
        self._layout = layout
        self._bins = None if layout.grids is None else GridBins(layout.grids)
        self._starts = [] if self._bins is None else self._bins.starts.tolist()
        sites = len(layout.names)
        self._partials: dict[tuple[int, type[np.uint16 | np.uint32]], _PartialSum] = {}
        self._counts = np.zeros(self.dense_size, np.int64)
        self._values = np.zeros((2, sites), np.int64)  # count and nonfinite count
        self._bounds = np.array([[np.inf], [-np.inf]], np.float32).repeat(sites, axis=1)
        self._free: dict[int, FreeSum] = {}

    @property
    def dense_size(self) -> int:
        """Elements of the dense counts."""
        return 0 if self._bins is None else self._bins.total

    def check(self, packed: PackedHistograms) -> CheckedHistograms:
        """Return what a reply's vectors mean, after making sure that they can be added.

        Raises:
            MalformedError: If no device can have sent them.
        """
        free = check_free(packed.free, len(self._layout.names))
        if self._bins is None:
            return CheckedHistograms(None, 0, free)
        if packed.dense is None:
            raise MalformedError("a reply without the counts that the round's grids ask for")
        return CheckedHistograms(packed.dense, check_dense(self._bins, packed.dense), free)

    def add(self, reply: CheckedHistograms) -> None:
        """Add a reply that `check` has seen."""
        if reply.dense is not None:
            self._add_dense(reply.dense, reply.peak)
        for site, histogram in reply.free.items():
            self._free.setdefault(site, FreeSum()).add(histogram)

    def result(self) -> dict[str, DyadicHistogram]:
        """Return the merged histograms by site, on bins no finer than the site's grid."""
        for partial in self._partials.values():
            partial.flush()
        merged = {}
        for site, name in enumerate(self._layout.names):
            histogram = self._free[site].histogram() if site in self._free else DyadicHistogram.empty()
            if self._layout.grids is not None:
                grid = self._layout.grids[site]
                coarse = histogram.coarsen(max(histogram.exponent, grid.exponent))
                histogram = coarse.merge(self._dense_histogram(site, grid))
            merged[name] = histogram
        return merged

    def _add_dense(self, dense: DensePart, peak: int) -> None:
        is_narrow = dense.counts.dtype == np.uint16 and peak < _NARROW_PEAK
        key = (dense.shift, np.uint16 if is_narrow else np.uint32)
        if key not in self._partials:
            self._partials[key] = _PartialSum(self._counts, *key)
        self._partials[key].add(dense.counts, peak)
        self._values += dense.summary[1:]
        np.minimum(self._bounds[0], dense.bounds[0], out=self._bounds[0])
        np.maximum(self._bounds[1], dense.bounds[1], out=self._bounds[1])

    def _dense_histogram(self, site: int, grid: FixedGrid) -> DyadicHistogram:
        start = self._starts[site]
        count, nonfinite = self._values[:, site].tolist()
        low, high = (float(bound) for bound in self._bounds[:, site])
        histogram = grid.histogram(self._counts[start : start + grid.bins], count, low, high)
        return replace(histogram, nonfinite_count=nonfinite)


class _PartialSum:
    """Narrow sums of narrow counts, moved to the 64-bit ones before they could overflow."""

    def __init__(self, total: IntArray, shift: int, dtype: type[np.uint16 | np.uint32]) -> None:
        self._total = total
        self._shift = shift
        self._sum = np.zeros(total.size, dtype)
        self._peak = 0  # no element of the sum can be larger
        self._limit = int(np.iinfo(dtype).max)

    def add(self, counts: AnyArray, peak: int) -> None:
        """Add counts, none of which is larger than `peak`."""
        if self._peak + peak > self._limit:
            self.flush()
        np.add(self._sum, counts, out=self._sum)
        self._peak += peak

    def flush(self) -> None:
        """Add the sums to the 64-bit ones and start again."""
        self._total += self._sum.astype(np.int64) << self._shift
        self._sum.fill(0)
        self._peak = 0


class FreeSum:
    """The sum of histograms of one site, in a buffer with room for new bins on both sides; 48 kB."""

    def __init__(self) -> None:
        self._nonfinite = 0
        self._exponent = self._first = self._end = self._origin = self._count = 0
        self._minimum, self._maximum = math.inf, -math.inf
        self._buffer = np.zeros(0, np.int64)

    def add(self, histogram: DyadicHistogram) -> None:
        """Add one histogram: in place where the bins can stay as they are, else by merging."""
        self._nonfinite += histogram.nonfinite_count
        if histogram.count == 0:
            return
        first = min(self._first, histogram.first_bin)
        end = max(self._end, histogram.first_bin + histogram.counts.size)
        # What fits at one exponent needs no greater one, and neither operand can have a smaller one.
        is_fitting = end - first <= MAX_BINS and first > -MAX_BIN_INDEX and end <= MAX_BIN_INDEX
        if self._count == 0 or histogram.exponent != self._exponent or not is_fitting:
            self._load(self._finite_histogram().merge(replace(histogram, nonfinite_count=0)))
            return
        start = histogram.first_bin - self._origin
        self._buffer[start : start + histogram.counts.size] += histogram.counts
        self._count += histogram.count
        self._first, self._end = first, end
        self._minimum = min(self._minimum, histogram.minimum)
        self._maximum = max(self._maximum, histogram.maximum)

    def histogram(self) -> DyadicHistogram:
        """Return the sum."""
        return replace(self._finite_histogram(), nonfinite_count=self._nonfinite)

    def _finite_histogram(self) -> DyadicHistogram:
        if self._count == 0:
            return DyadicHistogram.empty()
        counts = self._buffer[self._first - self._origin : self._end - self._origin].copy()
        return DyadicHistogram(self._exponent, self._first, counts, self._count, self._minimum, self._maximum)

    def _load(self, histogram: DyadicHistogram) -> None:
        self._exponent, self._first = histogram.exponent, histogram.first_bin
        self._end = self._first + histogram.counts.size
        # A union of at most 2,048 bins starts at most so many before the first bin, and ends as far behind
        # it.
        self._origin = self._first - MAX_BINS
        self._buffer = np.zeros(2 * MAX_BINS + histogram.counts.size, np.int64)
        self._buffer[MAX_BINS : MAX_BINS + histogram.counts.size] = histogram.counts
        self._count = histogram.count
        self._minimum, self._maximum = histogram.minimum, histogram.maximum
