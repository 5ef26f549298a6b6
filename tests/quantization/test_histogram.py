"""The mergeable histogram: its laws, its serialisation, and what it refuses."""

import itertools
import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.dyadic import MAX_BINS
from quantization.errors import ConfigurationError, IncompatibleStatsError, InvalidDataError, MalformedError
from quantization.fixed_grid import FixedGrid
from quantization.histogram import MAX_WEIGHT, DyadicHistogram, merge_all

GOLDEN = Path(__file__).parents[1] / "golden" / "histogram.npz"
FLOATS = st.floats(width=32)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
NEAR = st.floats(-64, 64, width=32)
SAMPLES = st.one_of(st.lists(FLOATS, max_size=20), st.lists(NEAR, max_size=40))


def histogram_of(values: list[float]) -> DyadicHistogram:
    return DyadicHistogram.from_values(np.array(values, np.float32))


HISTOGRAMS = st.one_of(
    SAMPLES.map(histogram_of),
    st.builds(
        lambda v, e: histogram_of(v).coarsen(e), st.lists(NEAR, min_size=1, max_size=20), st.integers(0, 127)
    ),
)


@given(HISTOGRAMS, HISTOGRAMS, HISTOGRAMS)
def test_merge_is_a_commutative_monoid(a: DyadicHistogram, b: DyadicHistogram, c: DyadicHistogram) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == merge_all([c, a, b])
    assert a.merge(DyadicHistogram.empty()) == a


@given(st.lists(SAMPLES, max_size=6), st.randoms())
def test_merged_devices_equal_the_pooled_values_in_any_order(
    devices: list[list[float]], random: object
) -> None:
    pooled = histogram_of([value for device in devices for value in device])
    parts = [histogram_of(device) for device in devices]
    assert reduce(DyadicHistogram.merge, parts, DyadicHistogram.empty()) == pooled
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert merge_all(parts) == pooled


@pytest.mark.parametrize("devices", [1, 7, 50])
def test_large_unequal_devices_equal_the_pooled_values(devices: int) -> None:
    rng = np.random.default_rng(devices)
    values = rng.standard_cauchy(200_000).astype(np.float32)
    bounds = np.sort(rng.integers(0, values.size, devices - 1))
    parts = [DyadicHistogram.from_values(part) for part in np.split(values, bounds)]
    assert merge_all(parts) == DyadicHistogram.from_values(values)


@given(HISTOGRAMS)
def test_every_field_survives_the_round_trip(histogram: DyadicHistogram) -> None:
    back = DyadicHistogram.from_array(histogram.to_array())
    assert back == histogram
    assert hash(back) == hash(histogram)
    for name in ("exponent", "first_bin", "count", "minimum", "maximum", "nonfinite_count"):
        assert getattr(back, name) == getattr(histogram, name)
    assert np.array_equal(back.counts, histogram.counts)


@given(st.lists(FINITE, min_size=1, max_size=8))
def test_values_lie_in_the_bins_that_count_them(values: list[float]) -> None:
    histogram = histogram_of(values)
    edges = histogram.edges()
    assert histogram.counts.size == edges.size - 1 <= MAX_BINS
    expected = [256 * sum(low <= v < high for v in values) for low, high in itertools.pairwise(edges)]
    assert histogram.counts.tolist() == expected
    assert (histogram.minimum, histogram.maximum) == (min(values), max(values))


def test_nan_and_infinities_are_counted_and_otherwise_ignored() -> None:
    histogram = histogram_of([math.nan, 1.0, math.inf, -math.inf, 2.0, math.nan])
    clean = histogram_of([1.0, 2.0])
    assert histogram.nonfinite_count == 4
    assert histogram.counts.tolist() == clean.counts.tolist()
    assert histogram_of([math.nan] * 3) == DyadicHistogram.empty(nonfinite_count=3)


def test_overflowing_span_of_finite_values_counts_them_all() -> None:
    histogram = histogram_of([3.4e38, -3.4e38])
    assert (histogram.count, histogram.nonfinite_count) == (2, 0)


def test_negative_zero_is_zero() -> None:
    assert histogram_of([-0.0]) == histogram_of([0.0])
    assert histogram_of([-0.0, 0.0, -0.0, 1.0]) == histogram_of([0.0, -0.0, 0.0, 1.0])
    assert math.copysign(1, histogram_of([-0.0]).minimum) == 1


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-45, -1e-45, 3.4e38, -3.4e38])
def test_constant_values_are_one_bin(value: float) -> None:
    histogram = histogram_of([value] * 3)
    assert histogram.counts.tolist() == [768]
    assert histogram.merge(histogram_of([value])) == histogram_of([value] * 4)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8, np.int64, np.bool_])
def test_other_types_are_rounded_to_float32_first(dtype: type) -> None:
    values = np.array([0, 1, 1, 0]).astype(dtype)
    assert DyadicHistogram.from_values(values) == histogram_of([0.0, 1.0, 1.0, 0.0])
    assert DyadicHistogram.from_values(np.array([0.1, 1e300])) == histogram_of([0.1, math.inf])


def test_shape_and_strides_do_not_matter() -> None:
    values = np.random.default_rng(0).standard_normal((8, 6, 5)).astype(np.float32)
    expected = DyadicHistogram.from_values(values.ravel())
    assert DyadicHistogram.from_values(values) == expected
    assert DyadicHistogram.from_values(values.transpose(2, 0, 1)) == expected
    assert DyadicHistogram.from_values(values[0, 0, 0]) == histogram_of([float(values[0, 0, 0])])


def test_blocks_do_not_show() -> None:
    values = np.random.default_rng(1).standard_normal(100_001).astype(np.float32)
    values[::1000] *= 100
    values[::7777] = np.nan
    parts = [DyadicHistogram.from_values(part) for part in np.array_split(values, 333)]
    assert DyadicHistogram.from_values(values) == merge_all(parts)
    assert DyadicHistogram.from_values(np.sort(values)) == merge_all(parts)


@given(st.lists(st.tuples(NEAR, st.integers(0, 5)), max_size=20))
def test_integer_weights_repeat_values(pairs: list[tuple[float, int]]) -> None:
    values = np.array([value for value, _ in pairs], np.float32)
    weights = np.array([weight for _, weight in pairs], np.int64)
    weighted = DyadicHistogram.from_values(values, weights)
    repeated = DyadicHistogram.from_values(np.repeat(values, weights))
    assert np.array_equal(weighted.counts, repeated.counts)
    assert (weighted.minimum, weighted.maximum, weighted.exponent) == (
        repeated.minimum,
        repeated.maximum,
        repeated.exponent,
    )
    assert weighted.count == np.count_nonzero(weights)


def test_weights_are_steps_of_a_256th_one_per_sample() -> None:
    values = np.array([[0.0, 1.0], [0.0, 1.0], [5.0, 9.0]], np.float32)
    weighted = DyadicHistogram.from_values(values, np.array([[0.25], [1.001], [0.001]]))
    assert (weighted.count, weighted.maximum) == (4, 1.0)
    assert weighted.counts[[0, -1]].tolist() == [64 + 256, 64 + 256]


def test_weighted_devices_equal_the_pooled_values() -> None:
    rng = np.random.default_rng(2)
    values, weights = rng.standard_normal(70_000), rng.random(70_000) * 3
    parts = [DyadicHistogram.from_values(values[i::3], weights[i::3]) for i in range(3)]
    assert merge_all(parts) == DyadicHistogram.from_values(values, weights)


@pytest.mark.parametrize("weights", [[-1.0], [math.nan], [math.inf], [MAX_WEIGHT * 1.01], [1.0, 1.0]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="weights"):
        DyadicHistogram.from_values(np.zeros((1, 3)), weights)


@pytest.mark.parametrize("values", [["a"], [1j], [None]])
def test_values_that_are_no_real_numbers_are_refused(values: list[object]) -> None:
    with pytest.raises(InvalidDataError, match="real numbers"):
        DyadicHistogram.from_values(np.array(values))


def test_counts_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        histogram_of([1.0]).counts[0] = 0


def test_counts_that_would_overflow_are_refused() -> None:
    array = histogram_of([1.0]).to_array()
    array[3] = array[-1] = 2**61 + 1
    half = DyadicHistogram.from_array(array)
    with pytest.raises(IncompatibleStatsError, match="2\\^62"):
        half.merge(half)


# What a reader refuses. Each case changes one thing of a good array.


def good() -> np.ndarray:
    return histogram_of([-1.0, -0.5, 0.0, 0.25, 0.75, 1.0]).to_array()


def with_number(index: int, value: int) -> np.ndarray:
    array = good()
    array[index] = value
    return array


BAD_ARRAYS: dict[str, Callable[[], object]] = {
    "no array": lambda: good().tolist(),
    "other type": lambda: good().astype(np.float64),
    "unsigned": lambda: good().view(np.uint64),
    "swapped bytes": lambda: good().astype(">i8"),
    "matrix": lambda: good()[None],
    "nothing": lambda: good()[:0],
    "half a header": lambda: good()[:6],
    "header alone": lambda: good()[:7],
    "truncated": lambda: good()[:-1],
    "longer": lambda: np.append(good(), 256),
    "endless": lambda: np.zeros(7 + 2049, np.int64),
    "other version": lambda: with_number(0, 2),
    "exponent too small": lambda: with_number(1, -11),
    "exponent too large": lambda: with_number(1, 128),
    "exponent absurd": lambda: with_number(1, 2**62),
    "shifted": lambda: with_number(2, -1),
    "shifted far": lambda: with_number(2, -(2**63)),
    "no values": lambda: with_number(3, 0),
    "negative count": lambda: with_number(3, -6),
    "fewer values than bins": lambda: with_number(3, 5),
    "more values than weight": lambda: with_number(3, 6 * 256 + 1),
    "count too large": lambda: with_number(3, 2**62 + 1),
    "negative nonfinite count": lambda: with_number(4, -1),
    "nonfinite count too large": lambda: with_number(4, 2**63 - 1),
    "bound is NaN": lambda: with_number(5, 0x7FC0_0000),
    "bound is infinite": lambda: with_number(6, 0x7F80_0000),
    "bound is -0.0": lambda: with_number(5, 0x8000_0000),
    "bound is no float32": lambda: with_number(6, 2**32),
    "bound is negative bits": lambda: with_number(6, -1),
    "bounds swapped": lambda: np.concatenate([good()[:5], good()[[6, 5]], good()[7:]]),
    "bound elsewhere": lambda: with_number(6, int(np.float32(1e30).view(np.uint32))),
    "negative bin": lambda: with_number(10, -256),
    "first bin empty": lambda: with_number(7, 0),
    "last bin empty": lambda: with_number(-1, 0),
    "overflowing bins": lambda: np.concatenate([good()[:7], np.full(good().size - 7, 2**62)]),
    "weight beyond reach": lambda: with_number(7, 6 * 256 * MAX_WEIGHT + 1),
    "bins of nothing": lambda: np.append(DyadicHistogram.empty().to_array(), 256),
    "bounds of nothing": lambda: np.concatenate([DyadicHistogram.empty().to_array()[:5], good()[5:7]]),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_array_that_no_histogram_writes_is_refused(name: str) -> None:
    assert DyadicHistogram.from_array(good()).count == 6
    with pytest.raises(MalformedError):
        DyadicHistogram.from_array(BAD_ARRAYS[name]())  # type: ignore[arg-type]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=12), st.integers(0, 12))
def test_noise_is_refused_or_round_trips(numbers: list[int], kept: int) -> None:
    array = np.array([*good()[:kept].tolist(), *numbers], np.int64)
    try:
        histogram = DyadicHistogram.from_array(array)
    except MalformedError:
        return
    assert np.array_equal(histogram.to_array(), array)


def test_reading_copies() -> None:
    array = good()
    histogram = DyadicHistogram.from_array(array)
    array[7] = 0
    assert histogram.counts[0] == 256


# Golden arrays: tests/golden/make_histogram.py writes them.


def golden_names() -> list[str]:
    with np.load(GOLDEN, allow_pickle=False) as archive:
        return sorted({name.split("/")[0] for name in archive.files})


@pytest.mark.parametrize("name", golden_names())
def test_golden_values_still_give_the_golden_bytes(name: str) -> None:
    with np.load(GOLDEN, allow_pickle=False) as archive:
        values, expected = archive[f"{name}/values"], archive[f"{name}/histogram"]
        weights = archive[f"{name}/weights"] if f"{name}/weights" in archive.files else None
    histogram = DyadicHistogram.from_values(values, weights)
    assert np.array_equal(histogram.to_array(), expected)
    assert DyadicHistogram.from_array(expected) == histogram


# Wider bins, and bins that a round fixes.


def test_coarser_bins_keep_weight_and_bounds() -> None:
    histogram = histogram_of([-1.0, -0.5, 0.0, 0.25, 0.75, 1.0])
    coarse = histogram.coarsen(0)
    assert (coarse.first_bin, coarse.counts.tolist()) == (-1, [512, 768, 256])
    assert (coarse.minimum, coarse.maximum, coarse.count) == (-1.0, 1.0, 6)
    assert DyadicHistogram.empty(1).coarsen(5) == DyadicHistogram.empty(1)


def test_bins_are_never_split() -> None:
    with pytest.raises(IncompatibleStatsError, match="can't become"):
        histogram_of([1.0]).coarsen(-20)
    with pytest.raises(IncompatibleStatsError, match="can't become"):
        histogram_of([1.0]).coarsen(128)


@given(st.lists(st.lists(st.floats(-7, 7.875, width=32), max_size=12), min_size=1, max_size=5))
def test_vectors_of_one_grid_add_to_the_pooled_histogram(devices: list[list[float]]) -> None:
    grid = FixedGrid(exponent=-3, first_bin=-64, bins=128)
    total = sum(grid.counts(histogram_of(device)) for device in devices)
    values = [value for device in devices for value in device]
    pooled = histogram_of(values)
    found = grid.histogram(total, len(values), pooled.minimum, pooled.maximum)
    assert found == (pooled.coarsen(-3) if values else DyadicHistogram.empty())


@pytest.mark.parametrize("value", [8.0, -8.125, 1e30])
def test_values_outside_a_grid_are_refused(value: float) -> None:
    grid = FixedGrid(exponent=-3, first_bin=-64, bins=128)
    with pytest.raises(IncompatibleStatsError, match="send the histogram itself"):
        grid.counts(histogram_of([0.0, value]))


def test_bins_wider_than_the_grid_are_refused() -> None:
    with pytest.raises(IncompatibleStatsError, match="do not fit"):
        FixedGrid(-3, -64, 128).counts(histogram_of([1.0]).coarsen(0))


def test_impossible_sums_are_refused() -> None:
    grid = FixedGrid(0, -4, 8)
    counts = grid.counts(histogram_of([-1.0, 2.0]))
    assert grid.histogram(counts, 2, -1.0, 2.0).counts.tolist() == [256, 0, 0, 256]
    for bad in (counts[:-1], counts.astype(np.int32), -counts, counts * 0):
        with pytest.raises(MalformedError):
            grid.histogram(bad, 2, -1.0, 2.0)
    for bounds in [(-1.0, 1.0), (-2.0, 2.0), (-1.0, 9.0), (math.nan, 2.0), (-1.0, math.inf), (0.1, 1e300)]:
        with pytest.raises(MalformedError):
            grid.histogram(counts, 2, *bounds)


@pytest.mark.parametrize(
    "fields", [(-127, 0, 1), (128, 0, 1), (0, 0, 0), (0, 0, 2049), (0, -(2**20), 1), (0, 2**20, 1)]
)
def test_impossible_grids_are_refused(fields: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigurationError):
        FixedGrid(*fields)


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_grid_around_a_histogram_holds_it_with_room(values: list[float]) -> None:
    histogram = histogram_of(values)
    grid = FixedGrid.around(histogram)
    counts = grid.counts(histogram)
    assert counts.sum() == histogram.counts.sum()
    found = grid.histogram(counts, histogram.count, histogram.minimum, histogram.maximum)
    assert found == histogram.coarsen(grid.exponent)
    assert np.count_nonzero(counts) <= MAX_BINS * 3 // 4


def test_grid_around_activations_behind_a_relu_starts_at_zero() -> None:
    grid = FixedGrid.around(histogram_of([0.0, 0.5, 3.0]))
    assert grid.first_bin == 0
    assert grid.counts(histogram_of([0.0, 4.0])).sum() == 512


def test_grid_around_nothing_is_refused() -> None:
    with pytest.raises(IncompatibleStatsError, match="empty"):
        FixedGrid.around(DyadicHistogram.empty())
