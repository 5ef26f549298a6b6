import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statistics_strategies import device_moments

from quantization.errors import IncompatibleStatsError, MalformedError
from quantization.moments import ChannelMoments, ChannelReference
from strategies.messages import LayerLayout
from strategies.moment_sum import MomentSum, pack_moments, vector_size

LAYOUT = LayerLayout(("a", "b"), (3, 1))
replies = st.lists(st.tuples(device_moments(3), device_moments(1)), max_size=6)


@given(replies, st.randoms(use_true_random=False))
def test_the_sum_is_the_merge_of_all_in_any_order(devices: list, random: object) -> None:
    merged = {"a": ChannelMoments.empty(3), "b": ChannelMoments.empty(1)}
    for first, second in devices:
        merged = {"a": merged["a"].merge(first), "b": merged["b"].merge(second)}
    random.shuffle(devices)
    total = MomentSum(LAYOUT)
    for first, second in devices:
        vector = pack_moments(LAYOUT, {"b": second, "a": first})
        total.add(vector, total.check(vector))
    assert total.result() == merged


def _vector() -> np.ndarray:
    reference = ChannelReference(np.zeros(3), np.ones(3), 10)
    seen = ChannelMoments.from_batch(np.arange(3.0), np.ones(3), 4, reference).as_device()
    return pack_moments(LAYOUT, {"a": seen, "b": ChannelMoments.empty(1)})


def _with(index: int, value: int) -> np.ndarray:
    vector = _vector()
    vector[index] = value
    return vector


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (_with(0, -1), "impossible count"),
        (_with(0, 1 << 50), "impossible count"),
        (_with(2, 2), "not come from one device"),
        (_with(3, 1), "not come from one device"),
        (_with(8, -5), "negative sum of squares"),
        (_with(7, 1), "layer that saw no value"),
        (_with(4, (1 << 62) + 1), "too large"),
        (_with(4, -(1 << 63)), "too large"),
    ],
)
def test_what_no_device_can_have_summed_is_refused(vector: np.ndarray, message: str) -> None:
    assert MomentSum(LAYOUT).check(_vector()) > 0
    with pytest.raises(MalformedError, match=message):
        MomentSum(LAYOUT).check(vector)


def test_sums_that_together_would_overflow_are_refused_one_by_one() -> None:
    total = MomentSum(LAYOUT)
    large = _with(4, 1 << 61)
    total.add(large, total.check(large))
    total.add(large, total.check(large))
    with pytest.raises(MalformedError, match="too large"):
        total.check(large)
    assert total.result()["a"].total[0] == 1 << 62


def test_packing_refuses_other_layers_than_asked_for() -> None:
    with pytest.raises(IncompatibleStatsError, match="'b' has no channels, asked for were 1"):
        pack_moments(LAYOUT, {"a": ChannelMoments.empty(3)})
    with pytest.raises(IncompatibleStatsError, match="'a' has 2 channels"):
        pack_moments(LAYOUT, {"a": ChannelMoments.empty(2), "b": ChannelMoments.empty(1)})


def test_a_layout_without_layers_is_fine() -> None:
    none = LayerLayout((), ())
    total = MomentSum(none)
    vector = pack_moments(none, {})
    total.add(vector, total.check(vector))
    assert vector_size(none) == 0
    assert total.result() == {}
