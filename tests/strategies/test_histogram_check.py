"""Replies that no honest device sends, one by one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantization.errors import MalformedError
from quantization.fixed_grid import FixedGrid
from quantization.histogram import DyadicHistogram
from strategies.histogram_sum import HistogramSum
from strategies.messages import SiteLayout
from strategies.packed_histograms import DensePart, FreePart, PackedHistograms, pack_histograms

LAYOUT = SiteLayout(("a", "b", "c"), (FixedGrid(0, -4, 8), FixedGrid(-1, 0, 6), FixedGrid(0, 0, 4)))


def _good() -> PackedHistograms:
    a = DyadicHistogram.from_values(np.float32([-3.5, -1, 2.5, 2.75, np.nan]))
    b = DyadicHistogram.from_values(np.float32([0.5, 1.5, 2.5]))
    return pack_histograms(LAYOUT, {"a": a, "b": b})  # c saw nothing


def _dense(**changes: object) -> PackedHistograms:
    good = _good()
    assert good.dense is not None
    return PackedHistograms(replace(good.dense, **changes), good.free)


def _counts(index: int, value: int) -> PackedHistograms:
    dense = _good().dense
    assert dense is not None
    counts = dense.counts.copy()
    counts[index] = value
    return _dense(counts=counts)


def _summary(row: int, site: int, value: int) -> PackedHistograms:
    dense = _good().dense
    assert dense is not None
    summary = dense.summary.copy()
    summary[row, site] = value
    return _dense(summary=summary)


def _bounds(row: int, site: int, value: float) -> PackedHistograms:
    dense = _good().dense
    assert dense is not None
    bounds = dense.bounds.copy()
    bounds[row, site] = value
    return _dense(bounds=bounds)


def test_the_honest_reply_is_accepted() -> None:
    total = HistogramSum(LAYOUT)
    total.add(total.check(_good()))
    assert total.result()["a"].nonfinite_count == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (PackedHistograms(None, FreePart()), "without the counts"),
        (_dense(shift=4), "shifted by 4"),
        (_summary(1, 0, -1), "negative or impossible"),
        (_summary(2, 0, -1), "negative or impossible"),
        (_summary(1, 0, 1 << 49), "negative or impossible"),
        (_summary(2, 2, 1 << 49), "negative or impossible"),
        (_summary(0, 2, 1), "saw no value"),
        (_bounds(0, 2, 1.0), "saw no value"),
        (_summary(0, 0, 5), "do not add up"),
        (_summary(0, 0, 1 << 50), "impossible"),
        (_summary(1, 0, 1 << 20), "weight that the count"),
        (_summary(1, 1, 2), "cannot have|too few"),
        (_bounds(0, 0, np.nan), "bounds"),
        (_bounds(1, 0, np.inf), "bounds"),
        (_bounds(0, 0, -np.inf), "bounds"),
        (_bounds(0, 0, 2.6), "add up|outside the bounds"),
        (_bounds(1, 0, -4.0), "not ordered"),
        (_bounds(1, 0, 4.0), "outside the grid"),
        (_bounds(0, 0, -4.5), "outside the grid"),
        (_bounds(0, 0, -2.5), "no weight in the bin of a bound"),
        (_bounds(1, 0, 1.5), "no weight in the bin of a bound"),
        (_counts(0, 0), "no weight|add up"),
        (_counts(0, 9), "add up"),
        (_counts(7, 1), "outside the bounds"),
        (_counts(8, 1), "outside the bounds"),
        (_counts(-1, 1), "outside the bounds"),
        (_counts(14, 1), "outside the bounds"),
    ],
)
def test_dense_counts_that_contradict_themselves_are_refused(reply: PackedHistograms, message: str) -> None:
    total = HistogramSum(LAYOUT)
    with pytest.raises(MalformedError, match=message):
        total.check(reply)


def _free(sites: list[int], histograms: list[DyadicHistogram]) -> FreePart:
    vectors = [histogram.to_array() for histogram in histograms]
    joined = np.concatenate([np.zeros(0, np.int64), *vectors])
    return FreePart(np.array(sites), np.array([vector.size for vector in vectors]), joined)


ONE = DyadicHistogram.from_values(np.float32([1.0]))


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (_free([3], [ONE]), "there are 3"),
        (_free([-1], [ONE]), "ascending"),
        (_free([1, 1], [ONE, ONE]), "ascending"),
        (_free([1, 0], [ONE, ONE]), "ascending"),
        (replace(_free([1], [ONE]), lengths=np.array([7])), "add up"),
        (replace(_free([0, 1], [ONE, ONE]), lengths=np.array([-1, 17])), "add up"),
        (replace(_free([0, 1], [ONE, ONE]), lengths=np.array([1 << 62, 1 << 62])), "add up"),
        (replace(_free([1], [ONE]), histograms=np.zeros(8, np.int64)), "format 0"),
        (
            _free([1], [replace(ONE, count=1 << 50, counts=np.array([1 << 58]))]),
            "more values than one device",
        ),
        (
            _free([1], [replace(DyadicHistogram.empty(), nonfinite_count=1 << 41)]),
            "more values than one device",
        ),
    ],
)
def test_free_histograms_that_contradict_themselves_are_refused(free: FreePart, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        HistogramSum(SiteLayout(("a", "b", "c"))).check(PackedHistograms(None, free))


@given(
    hnp.arrays(np.uint16, 18, elements=st.integers(0, 3)),
    hnp.arrays(np.int64, (3, 3), elements=st.integers(-1, 6)),
    hnp.arrays(np.float32, (2, 3), elements=st.floats(-5, 5, width=32) | st.sampled_from([np.inf, -np.inf])),
)
def test_whatever_is_accepted_gives_a_valid_sum(
    counts: np.ndarray, summary: np.ndarray, bounds: np.ndarray
) -> None:
    total = HistogramSum(LAYOUT)
    try:
        checked = total.check(PackedHistograms(DensePart(counts, 8, summary, bounds), FreePart()))
    except MalformedError:
        return
    total.add(checked)
    result = total.result()
    assert [result[site].count for site in "abc"] == summary[1].tolist()
