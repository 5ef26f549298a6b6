import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import ConfigurationError
from quantization.rounding import as_float32, damped, greatest_code, round_to_nearest, row_losses
from quantization.scale_search import PackedGrid, RatedGrid, packed_scales, rated_scales


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
    scale = rated_scales(weights, 0.2)
    assert np.abs(weights / scale[..., None]).max() <= 121


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
    for make in (lambda: PackedGrid(1), lambda: RatedGrid(0.0), lambda: RatedGrid(float("nan"))):
        with pytest.raises(ConfigurationError):
            make()
