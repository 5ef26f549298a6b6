"""False alarms stay below their rate however often one looks, whatever the devices' losses look like."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.errors import ConfigurationError
from server.sequential_testing import Block, Comparison, Wealth, log_tail_wealth, observe, reaches, relieve

EFFECT = 0.02
RATE = 0.05


def draw(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    if kind == "normal":
        return rng.normal(0, 0.04, size)
    if kind == "heavy":
        return 0.02 * rng.standard_t(1.5, size)
    if kind == "rare":
        return (rng.random(size) < 0.02).astype(float)
    return np.round(rng.exponential(0.03, size), 2)


def peak(losses: np.ndarray) -> Wealth:
    """Return the evidence of blocks whose first column is the canary."""
    wealth = Wealth(EFFECT)
    for row in losses:
        wealth = observe(wealth, Block(float(row[0]), tuple(map(float, row[1:]))))
    return wealth


@pytest.mark.parametrize("kind", ["normal", "heavy", "rare", "lumpy"])
@pytest.mark.parametrize("others", [1, 4])
def test_equal_versions_hardly_ever_reach_the_threshold(kind: str, others: int) -> None:
    rng = np.random.default_rng([others, len(kind)])
    alarms = sum(
        peak(draw(kind, rng, 60 * (others + 1)).reshape(60, -1)).has_reached(RATE) for _ in range(200)
    )
    assert alarms <= 16  # of 200 at a rate of 5 %: more has a probability below 1 %


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=6),
    st.floats(0.001, 0.5),
    st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_a_block_is_fair_when_any_of_its_devices_may_be_the_canary(
    losses: list[float], effect: float, before: list[list[float]]
) -> None:
    wealth = Wealth(effect)
    for row in before:
        wealth = observe(wealth, Block(row[0], tuple(row[1:])))
    growths = []
    for k, loss in enumerate(losses):
        grown = observe(wealth, Block(loss, tuple(losses[:k] + losses[k + 1 :])))
        growths.append(math.exp(grown.log_e_value - wealth.log_e_value))
    assert sum(growths) / len(growths) == pytest.approx(1.0, rel=1e-6)


def test_a_worse_version_is_found_and_a_much_worse_one_sooner() -> None:
    needed = []
    for drop in (0.02, 0.1, 0.5):
        rng = np.random.default_rng(1)
        losses = rng.normal(0, 0.04, (400, 5))
        losses[:, 0] += drop
        found = next(n for n in range(1, 400) if peak(losses[:n]).has_reached(RATE))
        needed.append(found)
    assert needed == sorted(needed, reverse=True)
    assert needed[0] <= 150
    assert needed[-1] <= 4


def test_a_version_that_is_worse_by_the_margin_is_hardly_ever_called_fine() -> None:
    rng = np.random.default_rng(2)
    calls = 0
    for _ in range(100):
        losses = rng.normal(0, 0.04, (80, 5))
        losses[:, 0] += EFFECT
        wealth = Wealth(EFFECT)
        for row in losses:
            wealth = observe(wealth, relieve(Block(float(row[0]), tuple(map(float, row[1:]))), EFFECT))
        calls += wealth.has_reached(RATE)
    assert calls <= 10


def test_an_equal_version_is_called_fine_in_the_end() -> None:
    rng = np.random.default_rng(3)
    comparison = Comparison.with_margin(EFFECT)
    for loss in rng.normal(0, 0.04, 400):
        comparison = comparison.observe(float(loss), is_canary=bool(rng.random() < 0.3), block_size=2)
    assert comparison.fine is not None
    assert comparison.fine.has_reached(RATE)
    assert not comparison.worse.has_reached(RATE)


def test_an_alarm_is_not_forgotten_when_luck_turns() -> None:
    rng = np.random.default_rng(4)
    losses = rng.normal(0, 0.04, (300, 5))
    losses[:100, 0] += 0.1
    losses[100:, 0] -= 0.1
    wealth = peak(losses)
    assert wealth.log_e_value < 0
    assert wealth.has_reached(RATE)


def test_devices_without_a_difference_say_nothing() -> None:
    wealth = peak(np.zeros((50, 4)))
    assert wealth.log_e_value == pytest.approx(0.0, abs=1e-9)
    assert wealth.blocks == 50


def test_extreme_losses_do_not_overflow() -> None:
    wealth = peak(np.array([[1e6, 0.0], [-1e6, 1e6], [1e-300, 0.0]]))
    assert math.isfinite(wealth.log_peak)


def test_blocks_form_in_order_of_arrival_and_leave_the_rest_waiting() -> None:
    comparison = Comparison.with_margin(EFFECT)
    for loss, is_canary in ((0.1, True), (0.2, False), (0.3, True), (0.4, False), (0.5, False)):
        comparison = comparison.observe(loss, is_canary=is_canary, block_size=2)
    assert comparison.canaries == (0.3,)
    assert comparison.others == (0.5,)
    assert comparison.worse == observe(Wealth(EFFECT), Block(0.1, (0.2, 0.4)))


@pytest.mark.parametrize("block", [(0.0, ()), (math.nan, (0.0,)), (0.0, (math.inf,)), (1e7, (0.0,))])
def test_what_cannot_be_compared_is_refused(block: tuple[float, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigurationError, match="finite"):
        Block(*block)


@pytest.mark.parametrize("tolerated", [0.01, 0.02, 0.1])
def test_marks_at_the_tolerated_rate_hardly_ever_alarm(tolerated: float) -> None:
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(200):
        marked = np.cumsum(rng.random(200) < tolerated)
        alarms += any(reaches(log_tail_wealth(int(m), n + 1, tolerated), RATE) for n, m in enumerate(marked))
    assert alarms <= 16


def test_two_marked_devices_of_two_are_enough_and_one_is_not() -> None:
    assert reaches(log_tail_wealth(2, 2, 0.02), 0.0034)
    assert not reaches(log_tail_wealth(1, 1, 0.02), 0.0034)
    assert not reaches(log_tail_wealth(2, 100, 0.02), RATE)
    assert reaches(log_tail_wealth(15, 100, 0.02), 0.0034)
