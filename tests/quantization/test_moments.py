import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantization.errors import IncompatibleStatsError, MalformedError
from quantization.moments import MAX_MAGNITUDE, ChannelMoments, ChannelReference

REFERENCE = ChannelReference(np.array([1.0, -2.0, 0.0]), np.array([0.5, 2.0, 1.0]), 100)
finite = st.floats(-50, 50)


@st.composite
def batches(draw: st.DrawFn) -> ChannelMoments:
    x = draw(hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(3)), elements=finite))
    moments = ChannelMoments.from_batch(x.mean(0), x.var(0), len(x), REFERENCE)
    return moments.as_device() if draw(st.booleans()) else moments


@given(batches(), batches(), batches())
def test_merge_is_a_commutative_monoid(a: ChannelMoments, b: ChannelMoments, c: ChannelMoments) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(ChannelMoments.empty(3)) == a


@given(batches())
def test_array_round_trip_keeps_every_field(moments: ChannelMoments) -> None:
    again = ChannelMoments.from_array(moments.to_array())
    assert again == moments
    assert again.devices == moments.devices


def test_merged_moments_are_those_of_the_pooled_values() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(REFERENCE.mean + 0.7, 3.0, (1000, 3))
    merged = ChannelMoments.empty(3)
    for part in np.split(values, [100, 350, 900]):
        merged = merged.merge(ChannelMoments.from_batch(part.mean(0), part.var(0), len(part), REFERENCE))
    u = (values - REFERENCE.mean) / REFERENCE.std
    np.testing.assert_allclose(merged.mean(), u.mean(0), atol=1e-6)
    np.testing.assert_allclose(merged.variance(), u.var(0), rtol=1e-5)


def test_standard_error_counts_devices_and_not_values() -> None:
    rng = np.random.default_rng(1)
    device_means = rng.normal(0.0, 0.3, (40, 3))
    merged = ChannelMoments.empty(3)
    for mean in device_means:
        raw = REFERENCE.mean + REFERENCE.std * mean
        batch = ChannelMoments.from_batch(raw, REFERENCE.std**2, 10_000, REFERENCE)
        merged = merged.merge(batch.as_device())
    expected = device_means.std(0, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(merged.standard_error(), expected, rtol=1e-3)


def test_one_device_cannot_tell_its_world_from_the_fleets() -> None:
    one = ChannelMoments.from_batch(REFERENCE.mean, REFERENCE.std**2, 10, REFERENCE).as_device()
    assert np.isinf(one.standard_error()).all()


def test_device_without_values_counts_as_no_device() -> None:
    assert ChannelMoments.empty(3).as_device() == ChannelMoments.empty(3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_moments_that_cannot_be_summed_are_refused(bad: float) -> None:
    with pytest.raises(MalformedError):
        ChannelMoments.from_batch(np.array([bad, 0.0, 0.0]), np.ones(3), 10, REFERENCE)


def test_layers_of_different_width_do_not_merge() -> None:
    with pytest.raises(IncompatibleStatsError, match="3 channels cannot merge with 4"):
        ChannelMoments.empty(3).merge(ChannelMoments.empty(4))


def test_sum_beyond_int64_is_refused_and_not_wrapped() -> None:
    full = np.full(1, MAX_MAGNITUDE, np.int64)
    zero = np.zeros(1, np.int64)
    a = ChannelMoments(1, full, full, 0, zero, zero)
    with pytest.raises(IncompatibleStatsError, match="62 bits"):
        a.merge(a)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, np.int64),
        np.zeros(7, np.float64),
        np.zeros((1, 7), np.int64),
        np.array([2, 0, 0, 0, 0, 0, 0], np.int64),  # says 2 channels, holds 1
        np.array([-1, 0, 0], np.int64),
        np.array([1, -5, 0, 0, 0, 0, 0], np.int64),  # negative count
        np.array([1, 1, 1, 0, -1, 0, 0], np.int64),  # negative sum of squares
        np.array([1, 1, 1, np.iinfo(np.int64).min, 0, 0, 0], np.int64),
        np.array([np.iinfo(np.int64).max, 1, 1, 0, 0, 0, 0], np.int64),
    ],
)
def test_vector_that_no_device_can_have_written_is_refused(array: np.ndarray) -> None:
    with pytest.raises(MalformedError):
        ChannelMoments.from_array(array)


def test_dead_channel_gets_a_floor_and_constant_layer_a_unit() -> None:
    assert ChannelReference.from_moments(np.zeros(2), np.array([0.0, 4.0]), 5).std[0] > 1e-3
    np.testing.assert_array_equal(ChannelReference.from_moments(np.zeros(2), np.zeros(2), 5).std, [1.0, 1.0])


def test_a_layer_that_moves_by_rounding_alone_counts_as_constant() -> None:
    mean = np.array([0.3, -0.7, 0.0])
    rounding = ChannelReference.from_moments(mean, (mean * 1e-7) ** 2, 1000)
    np.testing.assert_array_equal(rounding.std, np.ones(3))
    moving = ChannelReference.from_moments(mean, np.array([0.04, (0.7e-7) ** 2, 1e-12]), 1000)
    assert moving.std[0] == pytest.approx(0.2)
    np.testing.assert_allclose(moving.std[1:], 1e-3 * 0.2 / 3**0.5, rtol=1e-6)
