"""The geometry of dyadic bins: where values fall, which width is canonical, and how bins nest.

Bin k of exponent e covers [k 2^e, (k+1) 2^e). Bins of exponent e nest in those of e + s: bin k lies in bin
`k >> s` (floor, also for negative k). Everything here is exact: floats are scaled by powers of two alone.
"""

import math

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import FloatArray, IntArray

MAX_BINS = 2048
MAX_BIN_INDEX = 2**20
MIN_EXPONENT = -126
MAX_EXPONENT = 127

_LANES = 2  # tables that neighbours count in by turns: in a run of equal values, one waits less for the other
_SHIFT_OF_ALL_BINS = 11  # 2^11 bins become one


def canonical_exponent(minimum: float, maximum: float) -> int:
    """Return the smallest e in [-126, 127] at which [minimum, maximum] is at most 2,048 bins, |k| < 2^20.

    What fits at e fits at e + 1, because bins nest: a wider range never has a smaller exponent.

    Args:
        minimum: Least value; finite, a float32.
        maximum: Greatest value; finite, a float32.
    """
    reach = max(abs(minimum), abs(maximum))
    if reach == 0:
        return MIN_EXPONENT
    # Start where nothing finer can fit: below it some |k| is 2^20 or more, or there are over 2,048 bins.
    width = math.frexp(maximum - minimum)[1] - 12 if maximum > minimum else MIN_EXPONENT
    exponent = max(MIN_EXPONENT, math.frexp(reach)[1] - 21, width)
    while not _fits(*span(minimum, maximum, exponent)):
        exponent += 1
    return exponent


def span(minimum: float, maximum: float, exponent: int) -> tuple[int, int]:
    """Return the first bin and the number of bins from the one that holds `minimum` to that of `maximum`.

    Exact: a Python float holds any float32 times 2^-exponent.
    """
    first = math.floor(math.ldexp(minimum, -exponent))
    last = math.floor(math.ldexp(maximum, -exponent))
    return first, last - first + 1


def add_coarsened(target: IntArray, first_bin: int, counts: IntArray, first_counted: int, shift: int) -> None:
    """Add counts to bins that are 2^shift times as wide, in place.

    Args:
        target: Counts of the wide bins, at least up to the last one that is met.
        first_bin: Index of the first wide bin, in wide bins; at most the first one that is met.
        counts: Counts of the narrow bins, at most 2,048.
        first_counted: Index of the first narrow bin.
        shift: Difference of the exponents, >= 0.
    """
    start = (first_counted >> shift) - first_bin
    if shift == 0:
        target[start : start + counts.size] += counts
    elif shift > _SHIFT_OF_ALL_BINS:  # at most one edge of the wide bins lies inside
        split = -first_counted % (1 << shift)
        split = counts.size if split == 0 else split
        target[start] += counts[:split].sum()
        if split < counts.size:
            target[start + 1] += counts[split:].sum()
    else:
        lead = first_counted % (1 << shift)
        padded = np.zeros(-(-(lead + counts.size) >> shift) << shift, np.int64)
        padded[lead : lead + counts.size] = counts
        sums = padded.reshape(-1, 1 << shift).sum(axis=1)
        target[start : start + sums.size] += sums


class BinCounter:
    """Counts values in canonical bins as they come, block by block, each read from memory once.

    Counts in a window of 2,048 bins around the values so far; where a value leaves it, the counts move to a
    new window, at the canonical exponent of the new bounds. As bins nest, the result is the one that knowing
    the bounds beforehand would give.

    Attributes:
        minimum: Least value so far; +inf at first.
        maximum: Greatest value so far; -inf at first.
    """

    def __init__(self, block_length: int) -> None:
        self.minimum = math.inf
        self.maximum = -math.inf
        self._exponent = MIN_EXPONENT
        self._first_bin = 0
        self._lanes: IntArray = np.zeros((_LANES, 0), np.int64)
        self._scaled = np.empty(block_length, np.float32)
        self._indices = np.empty(block_length, np.int32)
        self._offsets = np.empty(0, np.int32)

    def add(
        self, block: NDArray[np.float32], low: float, high: float, steps: NDArray[np.float64] | None = None
    ) -> None:
        """Count the values of a block.

        Args:
            block: Finite values, (N,), 1 to `block_length` of them.
            low: The least of them.
            high: The greatest of them.
            steps: Integers below 2^32 that each value counts, (N,); None: 1.
        """
        if low < self.minimum or high > self.maximum:
            self.minimum, self.maximum = min(low, self.minimum), max(high, self.maximum)
            self._fit_window()
        index = self._indices[: block.size]
        np.copyto(index, self._scale(block, is_negative=low < 0), casting="unsafe")
        np.subtract(index, self._offsets[: block.size], out=index)
        sums = np.bincount(index, steps, minlength=self._lanes.size)
        if steps is not None:
            sums = sums.astype(np.int64)  # exact: the sums of a block stay below 2^53
        self._lanes += sums.reshape(self._lanes.shape)

    def result(self) -> tuple[int, int, IntArray]:
        """Return exponent, first bin and counts, from the bin of the minimum to that of the maximum."""
        first_bin, bins = span(self.minimum, self.maximum, self._exponent)
        start = first_bin - self._first_bin
        return self._exponent, first_bin, self._lanes.sum(axis=0)[start : start + bins].copy()

    def _scale(self, block: NDArray[np.float32], *, is_negative: bool) -> FloatArray:
        """Return each value as a number of bins, rounded toward -inf where the block has negative values.

        (Truncation, which the conversion to integers does anyway, rounds the others.) Scaling by a power of
        two is exact in float32 unless the product is denormal, which takes exponent > 0. Positive products
        still truncate to the right bin, 0, but a small negative one could round to -0.0 and leave bin -1:
        such blocks are scaled in float64, where every product is exact.
        """
        factor = math.ldexp(1.0, -self._exponent)
        if is_negative and self._exponent > 0:
            wide: NDArray[np.float64] = np.floor(block.astype(np.float64) * factor)
            return wide
        scaled = self._scaled[: block.size]
        np.multiply(block, np.float32(factor), out=scaled)
        if is_negative:
            np.floor(scaled, out=scaled)
        return scaled

    def _fit_window(self) -> None:
        """Lay the window around the bounds, unless it holds them at their exponent already."""
        exponent = canonical_exponent(self.minimum, self.maximum)
        first_bin, bins = span(self.minimum, self.maximum, exponent)
        is_inside = self._first_bin <= first_bin and first_bin + bins <= self._first_bin + MAX_BINS
        if self._lanes.size > 0 and exponent == self._exponent and is_inside:
            return
        start = first_bin - (MAX_BINS - bins) // 2
        lanes = np.zeros((_LANES, MAX_BINS), np.int64)
        counted = self._lanes.sum(axis=0)
        used = np.flatnonzero(counted)
        if used.size > 0:
            counts = counted[used[0] : used[-1] + 1]
            add_coarsened(lanes[0], start, counts, self._first_bin + int(used[0]), exponent - self._exponent)
        self._lanes, self._first_bin, self._exponent = lanes, start, exponent
        lane_starts = start - MAX_BINS * np.arange(_LANES, dtype=np.int32)
        self._offsets = np.tile(lane_starts, -(-self._scaled.size // _LANES))


def _fits(first_bin: int, bins: int) -> bool:
    return bins <= MAX_BINS and first_bin > -MAX_BIN_INDEX and first_bin + bins <= MAX_BIN_INDEX
