"""Whether some device can have sent these histograms: what a reply must pass before it is added.

The checks are a few operations on vectors of one element per site, and one pass over the bins, which sums
three stretches of each site: before, within and behind its bounds.
"""

import numpy as np

from quantization.arrays import AnyArray, IntArray
from quantization.dyadic import MAX_BINS
from quantization.errors import MalformedError
from quantization.fixed_grid import FixedGrid
from quantization.histogram import MAX_WEIGHT, WEIGHT_STEPS, DyadicHistogram
from strategies.packed_histograms import (
    MAX_DEVICE_COUNT,
    MAX_DEVICE_WEIGHT,
    MAX_FREE_LENGTH,
    SHIFTS,
    DensePart,
    FreePart,
)

_MAX_WEIGHT_BITS = int(MAX_WEIGHT * WEIGHT_STEPS).bit_length() - 1  # a value weighs at most 2^24 steps
_all, _any = np.logical_and.reduce, np.logical_or.reduce  # half the cost of the methods on 64 elements


class GridBins:
    """Where the sites' bins lie on the dense vector, prepared once per round."""

    def __init__(self, grids: tuple[FixedGrid, ...]) -> None:
        self.sizes = np.array([grid.bins for grid in grids], np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.total = int(self.sizes.sum())
        self.edges = np.repeat(self.starts, 3)  # of each site: its start, and where its bounds begin and end
        self._first_bins = np.array([grid.first_bin for grid in grids], np.float64)
        self._factors = np.ldexp(1.0, np.array([-grid.exponent for grid in grids], np.int32))

    def positions(self, bounds: AnyArray) -> AnyArray:
        """Return the bin that each bound, float32 (2, S), has in its site's grid; float64 and exact."""
        scaled = bounds * self._factors
        np.floor(scaled, out=scaled)  # before the subtraction, which rounds tiny negative bounds away
        return np.asarray(np.subtract(scaled, self._first_bins, out=scaled))


def check_dense(bins: GridBins, dense: DensePart) -> int:
    """Return the largest dense count, after making sure that the part can be added.

    Raises:
        MalformedError: If no device can have sent it.
    """
    if dense.shift not in SHIFTS:
        raise MalformedError(f"dense counts shifted by {dense.shift}, expected one of {SHIFTS}")
    _check_weights(dense)
    weight, count, _ = dense.summary
    is_full = count > 0
    positions = bins.positions(dense.bounds)
    is_inside = (positions[0] >= 0) & (positions[1] < bins.sizes) & (dense.bounds[0] <= dense.bounds[1])
    if not _all(is_full):
        _check_empty_sites(weight, dense.bounds, ~is_full)
        is_inside |= ~is_full
        positions[:, ~is_full] = ((0,), (-1,))
    if not _all(is_inside):  # NaN compares false
        raise MalformedError("bounds that are not ordered, or outside the grid")
    peak = int(np.maximum.reduce(dense.counts, initial=0))
    _check_bins(bins, dense, positions.astype(np.int64), is_full, peak)
    return peak


def _check_empty_sites(weight: IntArray, bounds: AnyArray, is_empty: AnyArray) -> None:
    low, high = bounds
    if _any(is_empty & ((weight != 0) | (low != np.inf) | (high != -np.inf))):
        raise MalformedError("weight or bounds of a site that saw no value")


def _check_weights(dense: DensePart) -> None:
    weight, count, _ = dense.summary
    # Read as unsigned, negative numbers are beyond every limit.
    if np.maximum.reduce(dense.summary.view(np.uint64), axis=None, initial=0) > MAX_DEVICE_WEIGHT:
        raise MalformedError("negative or impossible counts")
    steps = weight << dense.shift
    if not _all((steps >= count) & (steps >> _MAX_WEIGHT_BITS <= count)):
        raise MalformedError("a weight that the count of values cannot have")


def _check_bins(bins: GridBins, dense: DensePart, positions: IntArray, is_full: AnyArray, peak: int) -> None:
    weight, count, _ = dense.summary
    edges = bins.edges.copy()
    begin, end = edges[1::3], edges[2::3]
    begin += positions[0]
    end += positions[1] + 1
    has_ends = (dense.counts.take(begin) != 0) & (dense.counts.take(end - 1) != 0)
    if not _all(has_ends | ~is_full):
        raise MalformedError("no weight in the bin of a bound")
    sums = _stretch_sums(dense.counts, edges, peak)
    if _any(sums[:, ::2], axis=None) or not _all(sums[:, 1] == weight):
        raise MalformedError("counts outside the bounds, or that do not add up to the weight")
    if _any(count < np.maximum(end - begin, 2)):  # only few values make this worth a look
        _check_few_values(dense, begin, end)


def _stretch_sums(counts: AnyArray, edges: IntArray, peak: int) -> AnyArray:
    """Return the sums between the edges, (S, 3): before, within and behind the bounds of each site."""
    if counts.size == 0:
        return np.zeros((edges.size // 3, 3), np.int64)
    # 32 bits hold the sum of a site's bins unless one is large. reduceat gives nonsense for empty stretches.
    wide = np.uint32 if peak * MAX_BINS < 1 << 32 else np.int64
    sums = np.zeros(edges.size, wide)
    inner = edges[:-1] if edges[-1] == counts.size else edges  # the last bounds may end where the bins end
    np.add.reduceat(counts, inner, dtype=wide, out=sums[: inner.size])
    sums[:-1][edges[1:] <= edges[:-1]] = 0
    return sums.reshape(-1, 3)


def _check_few_values(dense: DensePart, begin: IntArray, end: IntArray) -> None:
    """Refuse sites with more bins in use than values, or with two bounds from one value."""
    count, (low, high) = dense.summary[1], dense.bounds
    if _any((count == 1) & (low < high)):
        raise MalformedError("too few values to have two bounds")
    for site in np.flatnonzero(count < end - begin):
        used = int(np.count_nonzero(dense.counts[begin[site] : end[site]]))
        if used > count[site]:
            raise MalformedError(f"too few values to fill {used} bins")


def check_free(free: FreePart, sites: int) -> dict[int, DyadicHistogram]:
    """Return the free histograms by position of their site.

    Raises:
        MalformedError: If no device can have sent them.
    """
    if free.sites.size == free.lengths.size == free.histograms.size == 0:
        return {}
    if free.sites.size != free.lengths.size or _any(np.diff(free.sites, prepend=-1) <= 0):
        raise MalformedError("free histograms must name each site once, in ascending order")
    if int(free.sites[-1]) >= sites:
        raise MalformedError(f"a free histogram of site {free.sites[-1]}, there are {sites}")
    lengths = free.lengths.tolist()
    if not all(0 < length <= MAX_FREE_LENGTH for length in lengths) or sum(lengths) != free.histograms.size:
        raise MalformedError("lengths of free histograms that do not add up")
    vectors = np.split(free.histograms, np.cumsum(lengths)[:-1])
    return {site: _read(vector) for site, vector in zip(free.sites.tolist(), vectors, strict=True)}


def _read(vector: IntArray) -> DyadicHistogram:
    histogram = DyadicHistogram.from_array(vector)
    values = max(histogram.count, histogram.nonfinite_count)
    if values > MAX_DEVICE_COUNT or float(histogram.counts.sum(dtype=np.float64)) > MAX_DEVICE_WEIGHT:
        raise MalformedError("a histogram of more values than one device can have seen")
    return histogram
