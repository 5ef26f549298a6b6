import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.code_choice import greatest_code
from quantization.errors import ConfigurationError
from quantization.rounding import as_float32, damped, round_to_nearest, row_losses
from quantization.scale_search import (
    PACKED_GRIDS,
    RATED_GRIDS,
    WIDE_LAYER,
    PackedGrid,
    RatedGrid,
    affordable_grids,
    limited_grids,
    packed_scales,
    rated_scales,
)


def _layer(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 60, 12)) @ rng.normal(size=(2, 12, 12))
    return rng.standard_t(3, size=(2, 5, 12)), damped(np.swapaxes(x, 1, 2) @ x / 60)


@given(st.integers(0, 1000), st.sampled_from([2, 3, 4, 6, 8]))
def test_searched_scale_never_loses_more_than_the_largest_magnitude(seed: int, bit_width: int) -> None:
    weights, moments = _layer(seed)

    def loss(scale: np.ndarray) -> np.ndarray:
        return row_losses(weights - scale[..., None] * round_to_nearest(weights, scale, bit_width), moments)

    plain = as_float32(np.abs(weights).max(2) / greatest_code(bit_width))
    assert (loss(packed_scales(weights, moments, bit_width)) <= loss(plain) * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("blocks", [1, 2])
def test_blocks_of_a_row_share_its_scale(blocks: int) -> None:
    weights, moments = _layer(0)
    for scale in (
        packed_scales(weights, moments, 3, blocks=blocks),
        rated_scales(weights, 0.5, blocks=blocks),
    ):
        assert scale.shape == (2, 5)
        assert np.array_equal(scale[0], scale[1]) is (blocks == 2)


def test_rated_codes_do_not_saturate() -> None:
    weights, _ = _layer(1)
    weights[0, 0, 0] = 1e4
    for bit_width, most in ((8, 121), (7, 60), (4, 6.7)):
        scale = rated_scales(weights, 0.2, bit_width)
        assert np.abs(weights / scale[..., None]).max() <= most


def test_step_scales_with_the_weights() -> None:
    weights, _ = _layer(2)
    np.testing.assert_allclose(rated_scales(8 * weights, 0.5), 8 * rated_scales(weights, 0.5), rtol=1e-6)
    np.testing.assert_allclose(rated_scales(weights, 1.0), 2 * rated_scales(weights, 0.5), rtol=1e-6)


def test_rows_and_layers_of_zeros_get_a_usable_step() -> None:
    weights, moments = _layer(3)
    weights[0, 1] = 0
    for w in (weights, np.zeros_like(weights)):
        for scale in (packed_scales(w, moments, 3), rated_scales(w, 0.5)):
            assert np.isfinite(scale).all()
            assert (scale > 0).all()


def test_grids_outside_their_range_are_refused() -> None:
    for make in (
        lambda: PackedGrid(1),
        lambda: RatedGrid(0.0),
        lambda: RatedGrid(float("nan")),
        lambda: RatedGrid(0.5, 9),
    ):
        with pytest.raises(ConfigurationError):
            make()


def test_class_without_eight_bit_kernels_gets_grids_of_seven() -> None:
    grids = [*PACKED_GRIDS, *RATED_GRIDS]
    limited = limited_grids(grids, 7)
    assert max(grid.bit_width for grid in limited) == 7
    assert [grid.bit_width for grid in limited if isinstance(grid, PackedGrid)] == [2, 3, 4, 5, 6, 7]
    assert [grid.step for grid in limited if isinstance(grid, RatedGrid)] == [g.step for g in RATED_GRIDS]
    assert limited_grids([PackedGrid(8), PackedGrid(7), PackedGrid(6)], 6) == [PackedGrid(6)]
    assert limited_grids(grids, 8) == grids


def test_wide_layers_are_rounded_on_fewer_grids_of_the_same_span() -> None:
    assert affordable_grids(WIDE_LAYER) == list(RATED_GRIDS)
    fewer = affordable_grids(WIDE_LAYER + 1)
    assert set(fewer) < set(RATED_GRIDS)
    assert len(fewer) == len(RATED_GRIDS) // 2
