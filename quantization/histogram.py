"""A mergeable histogram whose bins are dyadic, so that merging loses nothing that pooling would keep.

Rules:

1. Bin k covers [k 2^e, (k+1) 2^e): k a signed integer, zero always an edge. Bins of exponent e nest in those
   of e + 1, and `k >> 1` (floor, also for negative k) is the bin that holds bin k.
2. The canonical exponent is a pure function of the least and the greatest value: the smallest e in
   [-126, 127] for which [floor(min / 2^e), floor(max / 2^e)] is at most 2,048 bins, each |k| < 2^20. What
   fits at e fits at e + 1, so a wider range never has a smaller exponent.
3. `merge` takes the greatest of both exponents and the canonical one of the union, and shifts bins into it.
   By 1 the bins equal those of the pooled values, by 2 so does the exponent: in any order and grouping.
   (Only `coarsen` and grids that a round fixes make exponents above the canonical one; they merge likewise.)
4. Values are float32 (others are rounded to it first), -0.0 is 0.0, and NaN and infinities are counted in
   `nonfinite_count` and nowhere else.
5. A count is an integer in steps of 1/256 weight: a value of weight 1 counts 256.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantization.arrays import AnyArray, IntArray
from quantization.dyadic import (
    MAX_BINS,
    MAX_EXPONENT,
    MIN_EXPONENT,
    BinCounter,
    add_coarsened,
    canonical_exponent,
    span,
)
from quantization.errors import ConfigurationError, IncompatibleStatsError, InvalidDataError, MalformedError

WEIGHT_STEPS = 256
MAX_WEIGHT = 65536

_FORMAT_VERSION = 1
_HEADER_LENGTH = 7
_BLOCK_LENGTH = 32768  # values; a block and its scratch (0.6 MB) stay in the L2 cache of one core
_MAX_COUNT = 2**62  # of any count and of all weight together: sums of two never wrap around
_NEGATIVE_ZERO_BITS = 0x8000_0000
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class DyadicHistogram:
    """Where the values of one site lie: at most 2,048 bins of one width, and exact bounds.

    About 16 kB at most. The bins span exactly [minimum, maximum].

    Attributes:
        exponent: Bins are 2^exponent wide, in units of the tensor; at least the canonical one of the bounds.
        first_bin: Index k of the first bin, floor(minimum / 2^exponent); 0 where empty.
        counts: int64 (n,), read-only: weight in each bin, in steps of 1/256; n = 0 where empty.
        count: Finite values, whatever their weight.
        minimum: Least finite value, exact; +inf where empty.
        maximum: Greatest finite value, exact; -inf where empty.
        nonfinite_count: NaN and infinities seen.
    """

    exponent: int
    first_bin: int
    counts: IntArray = field(repr=False)
    count: int
    minimum: float
    maximum: float
    nonfinite_count: int = 0

    def __post_init__(self) -> None:
        counts = np.ascontiguousarray(self.counts, np.int64).view()
        counts.flags.writeable = False
        object.__setattr__(self, "counts", counts)
        _check_fields(self)

    @classmethod
    def empty(cls, nonfinite_count: int = 0) -> "DyadicHistogram":
        """Return the identity of `merge`."""
        counts = np.zeros(0, np.int64)
        return cls(MIN_EXPONENT, 0, counts, 0, math.inf, -math.inf, nonfinite_count)

    @classmethod
    def from_values(cls, values: ArrayLike, weights: ArrayLike | None = None) -> "DyadicHistogram":
        """Return the histogram of `values`, at the canonical exponent.

        Reads the values once, in blocks that fit the cache, at about 2 ns a value; beside them it needs 1 MB
        (and 8 bytes a value where weights are given).

        Args:
            values: Real values of any shape; other types than float32 are rounded to it.
            weights: How much each value counts, 0 to 65,536, rounded to 1/256; broadcasts against `values`:
                (N, 1, 1, 1) for one weight per sample of (N, C, H, W). A value whose weight rounds to 0 is
                ignored altogether. None: 1.

        Raises:
            ConfigurationError: A weight is negative, too large or not finite.
            InvalidDataError: The values are not real numbers.
        """
        array = np.asarray(values)
        if array.dtype.kind not in "fiub":
            raise InvalidDataError(f"a histogram is of real numbers, got {array.dtype}")
        flat = array.reshape(-1)
        steps = None if weights is None else _weight_steps(weights, array.shape)
        return _count(flat, steps)

    def merge(self, other: "DyadicHistogram") -> "DyadicHistogram":
        """Return the histogram of both: commutative, associative, and exactly that of the pooled values.

        Raises:
            IncompatibleStatsError: The counts exceed 2^62 together.
        """
        return merge_all((self, other))

    def coarsen(self, exponent: int) -> "DyadicHistogram":
        """Return the same histogram in wider bins, 2^exponent; the bounds stay exact.

        Raises:
            IncompatibleStatsError: `exponent` is smaller than this one's: bins can't be split.
        """
        if not self.exponent <= exponent <= MAX_EXPONENT:
            raise IncompatibleStatsError(
                f"bins of 2^{self.exponent} can't become bins of 2^{exponent}:"
                f" the exponent must be {self.exponent} to {MAX_EXPONENT}"
            )
        if self.count == 0:
            return self
        first_bin, bins = span(self.minimum, self.maximum, exponent)
        counts = np.zeros(bins, np.int64)
        add_coarsened(counts, first_bin, self.counts, self.first_bin, exponent - self.exponent)
        return DyadicHistogram(
            exponent, first_bin, counts, self.count, self.minimum, self.maximum, self.nonfinite_count
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DyadicHistogram):
            return NotImplemented
        return bool(np.array_equal(self.to_array(), other.to_array()))

    def __hash__(self) -> int:
        return hash(self.to_array().tobytes())

    def edges(self) -> NDArray[np.float64]:
        """Return the n + 1 bin edges, exact, ascending; no edges where empty."""
        if self.count == 0:
            return np.zeros(0)
        indices = np.arange(self.first_bin, self.first_bin + self.counts.size + 1, dtype=np.float64)
        return np.asarray(np.ldexp(indices, self.exponent))

    def to_array(self) -> IntArray:
        """Return every field as int64 (7 + n,); the layout is docs/formats/histogram.md."""
        header = [
            _FORMAT_VERSION,
            self.exponent,
            self.first_bin,
            self.count,
            self.nonfinite_count,
            _float_bits(self.minimum),
            _float_bits(self.maximum),
        ]
        return np.concatenate([np.array(header, np.int64), self.counts])

    @classmethod
    def from_array(cls, array: AnyArray) -> "DyadicHistogram":
        """Return the histogram that `to_array` wrote; equal to it in every bit.

        Raises:
            MalformedError: The array is not one that `to_array` can write.
        """
        if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.ndim != 1:
            raise MalformedError("a histogram is a vector of int64")
        if not _HEADER_LENGTH <= array.size <= _HEADER_LENGTH + MAX_BINS:
            raise MalformedError(
                f"a histogram has {_HEADER_LENGTH} to {_HEADER_LENGTH + MAX_BINS} numbers, got {array.size}"
            )
        version, exponent, first_bin, count, nonfinite_count, low, high = array[:_HEADER_LENGTH].tolist()
        if version != _FORMAT_VERSION:
            raise MalformedError(f"histogram of format {version}, this version reads {_FORMAT_VERSION}")
        return cls(
            exponent=exponent,
            first_bin=first_bin,
            counts=array[_HEADER_LENGTH:].copy(),
            count=count,
            minimum=_float_from_bits(low),
            maximum=_float_from_bits(high),
            nonfinite_count=nonfinite_count,
        )


def merge_all(histograms: Iterable[DyadicHistogram]) -> DyadicHistogram:
    """Return the histogram of all: what `merge` gives in any order, with one pass over the bins.

    Raises:
        IncompatibleStatsError: The counts exceed 2^62 together.
    """
    parts = tuple(histograms)
    nonfinite_count = sum(part.nonfinite_count for part in parts)
    full = [part for part in parts if part.count > 0]
    count = sum(part.count for part in full)
    weight = sum(int(part.counts.sum()) for part in full)
    if max(weight, count, nonfinite_count) > _MAX_COUNT:
        raise IncompatibleStatsError("the merged counts exceed 2^62: start a new generation")
    if not full:
        return DyadicHistogram.empty(nonfinite_count)
    low = min(part.minimum for part in full)
    high = max(part.maximum for part in full)
    exponent = max(canonical_exponent(low, high), *(part.exponent for part in full))
    first_bin, bins = span(low, high, exponent)
    counts = np.zeros(bins, np.int64)
    for part in full:
        add_coarsened(counts, first_bin, part.counts, part.first_bin, exponent - part.exponent)
    return DyadicHistogram(exponent, first_bin, counts, count, low, high, nonfinite_count)


def _count(flat: AnyArray, steps: NDArray[np.float64] | None) -> DyadicHistogram:
    """Return the histogram of values (N,) that count `steps`, (N,), each; None: 1."""
    counter = BinCounter(min(flat.size, _BLOCK_LENGTH))
    count = nonfinite_count = 0
    for start in range(0, flat.size, _BLOCK_LENGTH):
        block = _to_float32(flat[start : start + _BLOCK_LENGTH])
        block_steps = None if steps is None else steps[start : start + _BLOCK_LENGTH]
        if block_steps is not None:
            block, block_steps = block[block_steps > 0], block_steps[block_steps > 0]
        low, high = _bounds(block)
        if not math.isfinite(high - low):
            is_finite = np.isfinite(block)
            nonfinite_count += block.size - int(np.count_nonzero(is_finite))
            block, block_steps = block[is_finite], None if block_steps is None else block_steps[is_finite]
            low, high = _bounds(block)
        if block.size > 0:
            count += block.size
            counter.add(block, low, high, block_steps)
    if count == 0:
        return DyadicHistogram.empty(nonfinite_count)
    exponent, first_bin, counts = counter.result()
    if steps is None:
        counts *= WEIGHT_STEPS
    return DyadicHistogram(
        exponent, first_bin, counts, count, counter.minimum, counter.maximum, nonfinite_count
    )


def _to_float32(array: AnyArray) -> NDArray[np.float32]:
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32)


def _bounds(flat: NDArray[np.float32]) -> tuple[float, float]:
    """Return least and greatest value; NaN where there is one, (inf, -inf) where there are no values."""
    if flat.size == 0:
        return math.inf, -math.inf
    return float(flat.min()) + 0.0, float(flat.max()) + 0.0  # + 0.0 makes -0.0 canonical


def _weight_steps(weights: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    given = np.asarray(weights, np.float64)
    if not np.all((given >= 0) & (given <= MAX_WEIGHT)):  # NaN compares false
        raise ConfigurationError(f"weights must be 0 to {MAX_WEIGHT}")
    try:
        return np.broadcast_to(np.rint(given * WEIGHT_STEPS), shape).reshape(-1)
    except ValueError as error:
        raise ConfigurationError(
            f"weights of shape {given.shape} do not broadcast to values of shape {shape}"
        ) from error


def _check_fields(histogram: DyadicHistogram) -> None:
    """Raise MalformedError unless some set of values has this histogram (so far as cheap checks can tell)."""
    counts, count = histogram.counts, histogram.count
    if not (0 <= count <= _MAX_COUNT and 0 <= histogram.nonfinite_count <= _MAX_COUNT):
        raise MalformedError("a histogram's counts are 0 to 2^62")
    if count == 0:
        fields = (histogram.exponent, histogram.first_bin, counts.size, histogram.minimum, histogram.maximum)
        if fields != (MIN_EXPONENT, 0, 0, math.inf, -math.inf):
            raise MalformedError(f"an empty histogram has no bins and no bounds, got {histogram}")
        return
    low, high = histogram.minimum, histogram.maximum
    check_bounds(low, high)
    if not canonical_exponent(low, high) <= histogram.exponent <= MAX_EXPONENT:
        raise MalformedError(f"exponent {histogram.exponent} does not fit the bounds [{low}, {high}]")
    if (histogram.first_bin, counts.size) != span(low, high, histogram.exponent):
        raise MalformedError(
            f"bins {histogram.first_bin} + {counts.size} do not span the bounds [{low}, {high}]"
        )
    _check_counts(counts, count, is_constant=low == high)


def check_bounds(minimum: float, maximum: float) -> None:
    """Raise MalformedError unless both are float32, finite and ordered, and neither is -0.0."""
    if not -_LARGEST <= minimum <= maximum <= _LARGEST:
        raise MalformedError(f"bounds must be finite float32, and ordered, got [{minimum}, {maximum}]")
    for bound in (minimum, maximum):
        if float(np.float32(bound)) != bound or _float_bits(bound) == _NEGATIVE_ZERO_BITS:
            raise MalformedError(f"bounds must be float32, and not -0.0, got {bound!r}")


def _check_counts(counts: IntArray, count: int, *, is_constant: bool) -> None:
    if counts.ndim != 1 or counts.min() < 0 or counts[0] == 0 or counts[-1] == 0:
        raise MalformedError("bins must count 0 or more, and the first and the last more than 0")
    if count < max(int(np.count_nonzero(counts)), 1 if is_constant else 2):
        raise MalformedError(f"{count} values can't fill {np.count_nonzero(counts)} bins")
    if float(counts.sum(dtype=np.float64)) > _MAX_COUNT:  # the exact sum below might wrap around
        raise MalformedError("the counts of a histogram exceed 2^62 together")
    weight = int(counts.sum())
    if not count <= weight <= min(_MAX_COUNT, count * MAX_WEIGHT * WEIGHT_STEPS):
        raise MalformedError(f"a weight of {weight}/256 is not that of {count} values")


def _float_bits(value: float) -> int:
    """Return the float32 bit pattern of a value that is a float32."""
    return int(np.float32(value).view(np.uint32))


def _float_from_bits(bits: int) -> float:
    """Return the value of a float32 bit pattern.

    Raises:
        MalformedError: It is none, or one that `_float_bits` never gives: NaN or -0.0.
    """
    if not 0 <= bits < 2**32 or bits == _NEGATIVE_ZERO_BITS:
        raise MalformedError(f"{bits:#x} is not the bit pattern of a bound")
    return float(np.uint32(bits).view(np.float32))
