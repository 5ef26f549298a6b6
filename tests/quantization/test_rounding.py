from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.code_choice import greatest_code
from quantization.errors import ConfigurationError
from quantization.rounding import (
    RealArray,
    compensating_codes,
    damped,
    descend,
    optimal_scales,
    refit,
    round_to_nearest,
    row_losses,
    shared_scales,
)

BITS = (2, 3, 4, 5, 6, 8)


def layer(seed: int, rows: int = 6, columns: int = 20, matrices: int = 2) -> tuple[RealArray, RealArray]:
    """Return weights and the second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(matrices, 4 * columns, columns)) @ rng.normal(size=(matrices, columns, columns))
    return rng.normal(size=(matrices, rows, columns)), damped(np.swapaxes(x, 1, 2) @ x / x.shape[1])


def scales(weights: RealArray, bit_width: int) -> RealArray:
    return 0.7 * np.abs(weights).max(2) / greatest_code(bit_width)


def loss(weights: RealArray, scale: RealArray, codes: RealArray, moments: RealArray) -> RealArray:
    return row_losses(weights - scale[..., None] * codes, moments)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(BITS))
def test_each_step_loses_less_than_the_one_before(seed: int, bit_width: int) -> None:
    weights, moments = layer(seed)
    scale = scales(weights, bit_width)
    nearest = round_to_nearest(weights, scale, bit_width)
    compensated = compensating_codes(weights, scale, moments, bit_width)
    descended = descend(weights, scale, compensated, moments, bit_width)
    rescaled = optimal_scales(weights, descended, moments, scale)
    losses = [loss(weights, scale, q, moments) for q in (nearest, compensated, descended)]
    assert losses[1].sum() < losses[0].sum()
    assert (losses[2] <= losses[1] + 1e-9).all()
    assert (loss(weights, rescaled, descended, moments) <= losses[2] * (1 + 1e-6)).all()
    for codes in (compensated, descended):
        assert np.abs(codes).max() <= greatest_code(bit_width)
        np.testing.assert_array_equal(codes, np.rint(codes))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000))
def test_descent_from_anywhere_ends_where_no_single_code_can_improve(seed: int) -> None:
    weights, moments = layer(seed, rows=2, columns=6, matrices=1)
    scale = scales(weights, 3)
    codes = descend(weights, scale, round_to_nearest(weights, scale, 3), moments, 3, sweeps=100)
    least = loss(weights, scale, codes, moments)
    for column, step in product(range(6), (-1.0, 1.0)):
        moved = codes.copy()
        moved[..., column] = np.clip(moved[..., column] + step, -3, 3)
        assert (loss(weights, scale, moved, moments) >= least - 1e-9).all()


def test_descent_comes_close_to_the_best_of_all_codes() -> None:
    weights, moments = layer(0, rows=12, columns=5, matrices=1)
    scale = scales(weights, 2)
    grid = np.array(list(product((-1.0, 0.0, 1.0), repeat=5)))
    every = np.stack([loss(weights, scale, np.broadcast_to(q, weights.shape), moments)[0] for q in grid])
    found = descend(weights, scale, compensating_codes(weights, scale, moments, 2), moments, 2)
    assert loss(weights, scale, found, moments).sum() <= 1.25 * every.min(0).sum()


def test_uncorrelated_inputs_leave_nothing_to_compensate() -> None:
    weights, _ = layer(1)
    moments = np.stack([np.diag(np.linspace(1, 3, 20))] * 2)
    scale = scales(weights, 4)
    nearest = round_to_nearest(weights, scale, 4)
    np.testing.assert_array_equal(compensating_codes(weights, scale, moments, 4), nearest)
    np.testing.assert_array_equal(descend(weights, scale, nearest, moments, 4), nearest)


def test_matrices_of_a_batch_do_not_meet() -> None:
    weights, moments = layer(2, matrices=3)
    scale = scales(weights, 3)
    together = compensating_codes(weights, scale, moments, 3)
    for m in range(3):
        one = compensating_codes(weights[m : m + 1], scale[m : m + 1], moments[m : m + 1], 3)
        np.testing.assert_array_equal(together[m], one[0])


def test_blocks_of_columns_compute_what_single_columns_would() -> None:
    weights, moments = layer(3, rows=3, columns=150, matrices=1)
    scale = scales(weights, 4)
    upper = np.linalg.cholesky(np.linalg.inv(moments[0])).T
    rest = weights[0].copy()
    expected = np.empty_like(rest)
    for j in range(150):
        expected[:, j] = np.clip(np.rint(rest[:, j] / scale[0]), -7, 7)
        rest[:, j:] -= np.outer((rest[:, j] - scale[0] * expected[:, j]) / upper[j, j], upper[j, j:])
    found = compensating_codes(weights, scale, moments, 4, is_ordered=False)
    np.testing.assert_array_equal(found[0], expected)


def test_price_buys_fewer_bits_for_more_loss() -> None:
    weights, moments = layer(4, rows=30, columns=40, matrices=1)
    scale = np.full((1, 30), 0.5)
    price = np.tile(0.3 * np.abs(np.arange(-127.0, 128)), (30, 1))
    plain = descend(weights, scale, compensating_codes(weights, scale, moments, 8), moments, 8)
    priced = descend(weights, scale, plain, moments, 8, price=price)
    assert np.abs(priced).sum() < np.abs(plain).sum()
    totals = [
        (loss(weights, scale, q, moments) + price[0][q.astype(int) + 127].sum(2)).sum()
        for q in (plain, priced)
    ]
    assert totals[1] < totals[0]


def test_rows_of_different_bit_widths_are_those_rounded_alone() -> None:
    weights, moments = layer(8)
    widths = np.array([2, 3, 4, 5, 7, 8])
    scale = np.concatenate([scales(weights[:, [i]], int(b)) for i, b in enumerate(widths)], axis=1)
    compensated = compensating_codes(weights, scale, moments, widths)
    together = descend(weights, scale, compensated, moments, widths)
    for i, width in enumerate(widths):
        rows, steps = weights[:, [i]], scale[:, [i]]
        alone = compensating_codes(rows, steps, moments, int(width))
        np.testing.assert_array_equal(compensated[:, [i]], alone)
        np.testing.assert_array_equal(together[:, [i]], descend(rows, steps, alone, moments, int(width)))
        assert np.abs(together[:, i]).max() <= greatest_code(int(width))


def test_parts_of_the_rows_have_prices_of_their_own() -> None:
    weights, moments = layer(9, rows=8)
    scale = np.full((2, 8), 0.4)
    dear, cheap = 0.5 * np.abs(np.arange(-63.0, 64)), np.zeros(127)
    together = descend(weights, scale, np.zeros_like(weights), moments, 7, price=np.stack([dear, cheap]))
    for part, price in ((slice(0, 4), dear), (slice(4, 8), cheap)):
        alone = descend(weights[:, part], scale[:, part], np.zeros((2, 4, 20)), moments, 7, price=price[None])
        np.testing.assert_array_equal(together[:, part], alone)
    assert np.abs(together[:, :4]).sum() < np.abs(together[:, 4:]).sum()


def test_many_rows_are_those_rounded_alone() -> None:
    weights, moments = layer(10, rows=3000, columns=8, matrices=1)  # more than are worked on at a time
    scale = scales(weights, 3)
    codes = descend(weights, scale, compensating_codes(weights, scale, moments, 3), moments, 3)
    few = slice(1500, 1510)
    alone = compensating_codes(weights[:, few], scale[:, few], moments, 3)
    np.testing.assert_array_equal(codes[:, few], descend(weights[:, few], scale[:, few], alone, moments, 3))


def test_prices_for_other_codes_are_refused() -> None:
    weights, moments = layer(11)
    with pytest.raises(ConfigurationError, match="prices"):
        descend(weights, scales(weights, 7), weights, moments, 7, price=np.zeros((6, 255)))


def test_shared_scale_is_best_for_all_blocks_of_a_row() -> None:
    weights, moments = layer(5, matrices=2)
    scale = np.repeat(scales(weights, 3)[:1], 2, axis=0)
    codes = round_to_nearest(weights, scale, 3)
    best = shared_scales(weights, codes, moments, scale, blocks=2)
    np.testing.assert_array_equal(best[0], best[1])
    least = loss(weights, best, codes, moments).sum(0)
    for factor in (0.98, 1.02):
        assert (loss(weights, best * factor, codes, moments).sum(0) >= least).all()


def test_row_of_zeros_keeps_its_scale() -> None:
    weights, moments = layer(6, matrices=1)
    codes = np.zeros_like(weights)
    scale = scales(weights, 3)
    np.testing.assert_allclose(optimal_scales(weights, codes, moments, scale), scale, rtol=1e-6)


def test_refit_undoes_what_happened_to_the_input() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 8))
    distortion = np.eye(8) + 0.2 * rng.normal(size=(8, 8))
    distorted = x @ distortion
    weights = rng.normal(size=(1, 4, 8))
    moments, cross = distorted.T @ distorted / 500, x.T @ distorted / 500
    found = refit(weights, moments[None], cross[None], damping=1e-9)
    np.testing.assert_allclose(distorted @ found[0].T, x @ weights[0].T, atol=1e-5)


def test_refit_keeps_the_weights_where_nothing_happened() -> None:
    weights, moments = layer(7)
    np.testing.assert_allclose(refit(weights, moments, moments), weights, atol=1e-9)


def test_dead_input_is_rounded_all_the_same() -> None:
    weights = np.ones((1, 2, 4))
    moments = damped(np.zeros((1, 4, 4)))
    codes = compensating_codes(weights, np.full((1, 2), 0.5), moments, 3)
    np.testing.assert_array_equal(codes, np.full((1, 2, 4), 2.0))


@pytest.mark.parametrize("bit_width", [0, 1, 9])
def test_bit_width_outside_2_to_8_is_refused(bit_width: int) -> None:
    with pytest.raises(ConfigurationError, match="2 to 8"):
        greatest_code(bit_width)
