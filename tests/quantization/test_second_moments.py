from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantization.errors import IncompatibleStatsError, MalformedError
from quantization.second_moments import MAX_MAGNITUDE, SecondMoments, exponent_for

EMPTY = SecondMoments.empty(3, 4, groups=2, with_cross=True)
columns = hnp.arrays(
    np.float64, st.tuples(st.just(2), st.integers(0, 6), st.just(3)), elements=st.floats(-50, 50)
)
moments = columns.map(lambda x: EMPTY.add_columns(x, x[..., ::-1]))


@settings(max_examples=50, deadline=None)
@given(moments, moments, moments)
def test_merge_is_a_commutative_monoid(a: SecondMoments, b: SecondMoments, c: SecondMoments) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(EMPTY) == a


@settings(max_examples=50, deadline=None)
@given(moments)
def test_array_round_trip_keeps_every_field(a: SecondMoments) -> None:
    assert SecondMoments.from_array(a.to_array()) == a


@pytest.mark.parametrize("magnitude", [1e-12, 1.0, 3e7])
def test_merged_equals_pooled(magnitude: float) -> None:
    rng = np.random.default_rng(0)
    x, reference = rng.normal(1.0, 2.0, (2, 1, 1000, 12)) * magnitude
    empty = SecondMoments.empty(12, exponent_for(float(np.square(x).mean((0, 1)).max())), with_cross=True)
    parts = zip(np.split(x, [10, 200, 650], 1), np.split(reference, [10, 200, 650], 1), strict=True)
    merged = reduce(lambda whole, part: whole.merge(empty.add_columns(*part)), parts, empty)
    pooled = empty.add_columns(x, reference)
    for get in (SecondMoments.mean_square, SecondMoments.cross_mean_square, SecondMoments.mean):
        np.testing.assert_allclose(get(merged), get(pooled), rtol=1e-9, atol=1e-9 * np.abs(get(pooled)).max())
    np.testing.assert_allclose(
        merged.covariance()[0, 0], np.cov(x[0].T, bias=True), rtol=1e-5, atol=1e-6 * magnitude**2
    )
    np.testing.assert_allclose(
        merged.cross_covariance()[0, 0],
        (reference[0] - reference[0].mean(0)).T @ (x[0] - x[0].mean(0)) / 1000,
        atol=1e-6 * magnitude**2,
    )


def test_blocks_are_the_diagonal_of_the_full_matrix() -> None:
    x = np.random.default_rng(0).normal(size=(2, 40, 7))
    full = SecondMoments.empty(7, 0, groups=2).add_columns(x)
    blocks = SecondMoments.empty(7, 0, groups=2, block=3).add_columns(x)
    assert blocks.gram.shape == (2, 3, 3, 3)
    for n, (start, end) in enumerate([(0, 3), (3, 6), (6, 7)]):
        size = end - start
        np.testing.assert_array_equal(blocks.gram[:, n, :size, :size], full.gram[:, 0, start:end, start:end])
    assert not blocks.gram[:, 2, 1:].any()
    assert SecondMoments.from_array(blocks.to_array()) == blocks


def test_moments_with_different_parameters_do_not_merge() -> None:
    for other in (
        SecondMoments.empty(4, 4, groups=2, with_cross=True),
        SecondMoments.empty(3, 5, groups=2, with_cross=True),
        SecondMoments.empty(3, 4, groups=2),
        SecondMoments.empty(3, 4, groups=2, block=2, with_cross=True),
    ):
        with pytest.raises(IncompatibleStatsError):
            EMPTY.merge(other)


def test_plain_moments_hold_no_cross_moments() -> None:
    with pytest.raises(IncompatibleStatsError, match="no reference ran beside"):
        SecondMoments.empty(3, 0).cross_covariance()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
def test_columns_that_cannot_be_summed_are_refused(bad: float) -> None:
    with pytest.raises(MalformedError):
        SecondMoments.empty(2, 0).add_columns(np.array([[[1.0, bad]]]))
    with pytest.raises(MalformedError):
        SecondMoments.empty(2, 0, with_cross=True).add_columns(np.ones((1, 1, 2)), np.array([[[1.0, bad]]]))


@pytest.mark.parametrize("shape", [(2, 3), (1, 5, 3), (2, 5, 4)])
def test_columns_of_another_layer_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MalformedError):
        EMPTY.add_columns(np.zeros(shape), np.zeros(shape))


def _contribution() -> np.ndarray:
    return SecondMoments.empty(3, 0).add_columns(np.random.default_rng(0).normal(size=(1, 50, 3))).to_array()


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 1 << 40),  # groups
        (0, 0),
        (1, -1),  # columns
        (1, 1 << 20),
        (2, 0),  # block
        (2, 1 << 16),
        (3, 5000),  # exponent
        (4, -1),  # count
        (4, 0),  # of no columns, yet with sums
        (5, 2),  # kind
        (5, 1),
        (6, -1 << 30),  # a negative sum of squares
        (7, 1 << 40),  # correlation beyond 1
        (12, 1 << 40),  # a mean that its mean square cannot have
        (6, MAX_MAGNITUDE + 1),
        (7, np.iinfo(np.int64).min),
    ],
)
def test_vector_that_no_columns_can_have_is_refused(index: int, value: int) -> None:
    array = _contribution()
    array[index] = value
    with pytest.raises(MalformedError):
        SecondMoments.from_array(array)


@pytest.mark.parametrize(
    "array", [np.zeros(3, np.int64), np.zeros(20), np.zeros((2, 9), np.int64), _contribution()[:-1]]
)
def test_array_of_another_form_is_refused(array: np.ndarray) -> None:
    with pytest.raises(MalformedError):
        SecondMoments.from_array(array)


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("width", [1, 8, 200])
@pytest.mark.parametrize("mean", [0.0, 1.0, -500.0])
def test_moments_of_few_columns_are_possible_whatever_rounding_does(
    count: int, width: int, mean: float
) -> None:
    x = np.random.default_rng(0).normal(mean, 1.0, size=(1, count, width)).astype(np.float32)
    empty = SecondMoments.empty(width, exponent_for(float(np.square(x).mean(1).max())))
    by_column = reduce(
        lambda total, at: total.merge(empty.add_columns(x[:, at : at + 1])), range(count), empty
    )
    for moments in (empty.add_columns(x), by_column):
        assert SecondMoments.from_array(moments.to_array()) == moments


def test_matrix_negative_along_a_direction_is_refused() -> None:
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    gram = (x * [1.0, 1.0, 1.0, -0.01]) @ x.T
    a = SecondMoments.empty(4, 0)
    array = SecondMoments(4, 0, 1, np.rint(gram * 2**24).astype(np.int64)[None, None], a.total).to_array()
    with pytest.raises(MalformedError, match="negative along"):
        SecondMoments.from_array(array)


def test_contribution_that_would_drown_all_others_is_implausible() -> None:
    rng = np.random.default_rng(0)
    usual = SecondMoments.empty(3, 0).add_columns(rng.normal(size=(1, 100, 3))).energy()
    SecondMoments.empty(3, 0).add_columns(rng.normal(size=(1, 20, 3)) * 1.5).check_plausible(usual)
    loud = SecondMoments.empty(3, 0).add_columns(rng.normal(size=(1, 20, 3)) * 3)
    with pytest.raises(MalformedError, match="energy"):
        loud.check_plausible(usual)


def test_energy_whose_sum_would_leave_64_bits_is_implausible_too() -> None:
    gram = np.diag(np.full(4, MAX_MAGNITUDE, np.int64))[None, None]  # the trace wraps around to zero
    loud = SecondMoments(4, 0, 1, gram, np.zeros((1, 1, 4), np.int64))
    with pytest.raises(MalformedError, match="energy"):
        loud.check_plausible(1.0)


@pytest.mark.parametrize("factor", [1.0, 30.0, -30.0])
def test_cross_moments_larger_than_any_plausible_references_are_refused(factor: float) -> None:
    x = np.random.default_rng(0).normal(1.0, 1.0, size=(1, 200, 3))
    moments = SecondMoments.empty(3, 0, with_cross=True).add_columns(x, x * factor)
    if factor == 1.0:
        moments.check_plausible(moments.energy())
        return
    with pytest.raises(MalformedError, match="cross moments"):
        moments.check_plausible(moments.energy())
    hidden = replace(moments, cross=np.zeros_like(moments.gram))
    with pytest.raises(MalformedError, match="mean of the reference"):
        hidden.check_plausible(moments.energy())


def test_weighing_columns_equals_repeating_them() -> None:
    rng = np.random.default_rng(0)
    x, reference = rng.normal(1.0, 2.0, (2, 2, 40, 3))
    weights = rng.integers(1, 600, 40)
    empty = SecondMoments.empty(3, 4, groups=2, with_cross=True)
    weighed = empty.add_columns(x, reference, weights)
    repeated = empty.add_columns(np.repeat(x, weights, 1), np.repeat(reference, weights, 1))
    assert weighed.count == repeated.count == weights.sum()
    for get in (SecondMoments.mean_square, SecondMoments.cross_mean_square, SecondMoments.mean):
        np.testing.assert_allclose(get(weighed), get(repeated), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(weighed.reference_mean(), repeated.reference_mean(), rtol=1e-9, atol=1e-9)
    assert SecondMoments.from_array(weighed.to_array()) == weighed


@pytest.mark.parametrize("weights", [np.ones(3, np.int64), np.array([1, 0]), np.array([1, -5])])
def test_weights_that_are_not_one_positive_number_a_column_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(MalformedError, match="weights"):
        SecondMoments.empty(2, 0).add_columns(np.ones((1, 2, 2)), weights=weights)


def test_sum_beyond_62_bits_is_refused_and_not_wrapped() -> None:
    full = np.full((1, 1, 1, 1), MAX_MAGNITUDE, np.int64)
    a = SecondMoments(1, 0, 1, full, np.zeros((1, 1, 1), np.int64))
    with pytest.raises(IncompatibleStatsError, match="62 bits"):
        a.merge(a)
