from itertools import pairwise

import numpy as np
import pytest

from quantization.errors import ConfigurationError
from quantization.layer_rounding import round_layer
from quantization.packing import packed_size_bytes
from quantization.scale_search import PACKED_GRIDS, RATED_GRIDS, PackedGrid, RatedGrid
from quantization.second_moments import SecondMoments


def _inputs(groups: int, columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, columns, columns)) / columns**0.5
    return np.maximum(rng.normal(size=(groups, 400, columns)) @ mixing + 0.5, 0)


def _outputs(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    groups, _, columns = x.shape
    return np.einsum("grk,gpk->grp", weights.reshape(groups, -1, columns), x).reshape(len(weights), -1)


@pytest.mark.parametrize(("groups", "block"), [(1, None), (4, None), (1, 10), (2, 7)])
@pytest.mark.parametrize("grid", [PackedGrid(3), RatedGrid(0.5)])
def test_loss_is_the_error_that_the_bias_leaves(
    groups: int, block: int | None, grid: PackedGrid | RatedGrid
) -> None:
    x = _inputs(groups, 16)
    weights = np.random.default_rng(1).normal(size=(8, 16))
    full = SecondMoments.empty(16, 2, groups=groups).add_columns(x)
    moments = SecondMoments.empty(16, 2, groups=groups, block=block).add_columns(x)
    rounded = round_layer(weights, moments, [grid])[0]
    error = _outputs(rounded.values - weights, x) + rounded.bias_shift[:, None]
    np.testing.assert_allclose(error.mean(1), 0, atol=1e-6)
    if block is None:
        np.testing.assert_allclose(rounded.loss, error.var(1).sum(), rtol=1e-3)
    else:  # blocks ignore what columns of different blocks have in common
        assert error.var(1).sum() < 3 * round_layer(weights, full, [grid])[0].loss


def test_grids_rounded_together_are_those_rounded_alone() -> None:
    weights = np.random.default_rng(1).normal(size=(8, 16))
    moments = SecondMoments.empty(16, 2).add_columns(_inputs(1, 16))
    grids = [PackedGrid(4), RatedGrid(1.0), PackedGrid(2), RatedGrid(0.3)]
    together = round_layer(weights, moments, grids)
    assert [layer.grid for layer in together] == grids
    for layer in together:
        np.testing.assert_array_equal(layer.codes, round_layer(weights, moments, [layer.grid])[0].codes)


def test_finer_grids_cost_more_bytes_and_less_loss() -> None:
    weights = np.random.default_rng(1).normal(size=(32, 64))
    moments = SecondMoments.empty(64, 2).add_columns(_inputs(1, 64))
    for grids in (PACKED_GRIDS, RATED_GRIDS[::-1]):
        layers = round_layer(weights, moments, grids)
        assert all(a.loss > b.loss for a, b in pairwise(layers))
        assert all(a.size_bytes < b.size_bytes for a, b in pairwise(layers))


def test_rated_grid_beats_packed_grid_at_equal_bytes() -> None:
    weights = np.random.default_rng(1).normal(size=(64, 144))
    moments = SecondMoments.empty(144, 2).add_columns(_inputs(1, 144))
    packed = round_layer(weights, moments, [PackedGrid(3)])[0]
    size_bytes = packed_size_bytes(packed.codes.size, 3) + 4 * 64
    rated = [r for r in round_layer(weights, moments, RATED_GRIDS) if r.size_bytes <= size_bytes]
    assert min(r.loss for r in rated) < 0.75 * packed.loss


def test_cross_moments_make_up_for_a_rounded_prefix() -> None:
    reference = _inputs(1, 16)
    x = np.maximum(reference * 0.8 + 0.1 * np.random.default_rng(3).normal(size=reference.shape), 0)
    weights = np.random.default_rng(1).normal(size=(8, 16))
    plain = round_layer(weights, SecondMoments.empty(16, 2).add_columns(x), [PackedGrid(6)])[0]
    with_cross = SecondMoments.empty(16, 2, with_cross=True).add_columns(x, reference)
    refitted = round_layer(weights, with_cross, [PackedGrid(6)])[0]
    wanted = _outputs(weights, reference)
    errors = [_outputs(r.values, x) + r.bias_shift[:, None] - wanted for r in (plain, refitted)]
    assert np.square(errors[1]).mean() < 0.7 * np.square(errors[0]).mean()
    np.testing.assert_allclose(errors[1].mean(1), 0, atol=1e-6)


def test_layer_without_bias_keeps_its_mean_by_its_codes() -> None:
    weights = np.random.default_rng(1).normal(size=(8, 16))
    x = _inputs(1, 16)
    rounded = round_layer(
        weights, SecondMoments.empty(16, 2).add_columns(x), [PackedGrid(3)], is_centred=False
    )[0]
    assert not rounded.bias_shift.any()
    error = _outputs(rounded.values - weights, x)
    np.testing.assert_allclose(rounded.loss, np.square(error).mean(1).sum(), rtol=1e-3)


@pytest.mark.parametrize("step", [0.01, 0.3])
def test_codes_keep_to_the_bits_of_their_grid(step: float) -> None:
    weights = np.random.default_rng(1).standard_t(3, size=(24, 40))
    moments = SecondMoments.empty(40, 2).add_columns(_inputs(1, 40))
    eight, seven, four = round_layer(
        weights, moments, [RatedGrid(step), RatedGrid(step, 7), RatedGrid(step, 4)]
    )
    assert [np.abs(layer.codes).max() <= most for layer, most in ((eight, 127), (seven, 63), (four, 7))] == [
        True
    ] * 3
    assert np.abs(eight.codes).max() > 63 or step > 0.1
    assert eight.loss <= seven.loss <= four.loss


def test_layer_of_zeros_is_rounded_to_zeros() -> None:
    moments = SecondMoments.empty(4, 0).add_columns(_inputs(1, 4))
    for layer in round_layer(np.zeros((3, 4)), moments, [PackedGrid(2), RatedGrid(0.5)]):
        assert not layer.codes.any()
        assert layer.loss == 0


def test_moments_of_another_layer_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        round_layer(np.zeros((3, 4)), SecondMoments.empty(5, 0), [PackedGrid(2)])
