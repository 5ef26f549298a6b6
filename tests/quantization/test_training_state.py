import numpy as np
import pytest

from quantization.errors import ConfigurationError
from quantization.layer_codes import LayerCodes
from quantization.renormalization import ChannelCorrection
from quantization.training_state import LayerState, TrainingGrid, codes_of, finish_layer, start_layer

RNG = np.random.default_rng(0)
GRID = TrainingGrid(3)


def _codes(rows: int = 4, columns: int = 9, greatest: int = 3) -> LayerCodes:
    codes = RNG.integers(-greatest, greatest + 1, (rows, columns)).astype(np.int8)
    return LayerCodes(codes, RNG.uniform(0.1, 0.5, rows).astype(np.float32), RNG.normal(size=rows))


def _weights(rows: int = 4, columns: int = 9) -> np.ndarray:
    return RNG.normal(0, 3, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize(
    "correction",
    [ChannelCorrection.identity(4), ChannelCorrection(RNG.uniform(0.3, 3, 4), RNG.normal(size=4))],
)
def test_codes_scales_and_shifts_come_back(correction: ChannelCorrection) -> None:
    codes, bias = _codes(), RNG.normal(size=4).astype(np.float32)
    state = start_layer(_weights(), bias, codes, correction, GRID)
    back = finish_layer(state, GRID, bias, correction)
    np.testing.assert_array_equal(back.codes, codes.codes)
    np.testing.assert_allclose(back.scale, codes.scale, rtol=1e-6)
    np.testing.assert_allclose(back.bias_shift, codes.bias_shift, atol=1e-5)


def test_correction_is_folded_into_the_state() -> None:
    codes, bias = _codes(), RNG.normal(size=4).astype(np.float32)
    correction = ChannelCorrection(np.full(4, 2.0), np.full(4, 7.0))
    plain = start_layer(_weights(), bias, codes, ChannelCorrection.identity(4), GRID)
    corrected = start_layer(_weights(), bias, codes, correction, GRID)
    np.testing.assert_allclose(corrected.step, 2 * plain.step)
    np.testing.assert_allclose(corrected.bias, 2 * plain.bias + 7, rtol=1e-5)


def test_weights_inside_their_cell_start_where_they_are() -> None:
    codes = LayerCodes(np.array([[1, 0, -2]], np.int8), np.array([0.5], np.float32), np.zeros(1))
    weight = np.array([[0.55, -0.1, -1.5]], np.float32)
    state = start_layer(weight, None, codes, ChannelCorrection.identity(1), GRID)
    np.testing.assert_allclose(state.weight[0, :2], weight[0, :2])
    assert -1.5 < state.weight[0, 2] < -1.0
    np.testing.assert_array_equal(codes_of(state, GRID), codes.codes)


def test_weights_never_start_beyond_their_grid() -> None:
    codes = LayerCodes(np.full((1, 3), 3, np.int8), np.ones(1, np.float32), np.zeros(1))
    state = start_layer(np.full((1, 3), 99, np.float32), None, codes, ChannelCorrection.identity(1), GRID)
    np.testing.assert_array_equal(state.weight, np.full((1, 3), 3, np.float32))
    assert state.bias.size == 0


def test_codes_beyond_their_grid_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        start_layer(_weights(), None, _codes(), ChannelCorrection.identity(4), TrainingGrid(1))


def test_codes_of_another_layer_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        start_layer(_weights(columns=8), None, _codes(), ChannelCorrection.identity(4), GRID)


@pytest.mark.parametrize("greatest", [0, 128])
def test_grids_that_no_code_fits_are_refused(greatest: int) -> None:
    with pytest.raises(ConfigurationError):
        TrainingGrid(greatest)


@pytest.mark.parametrize(
    ("weight", "step", "bias"),
    [
        (np.full((2, 3), np.nan), np.ones(2), np.zeros(2)),
        (np.zeros((2, 3)), np.array([1.0, 0.0]), np.zeros(2)),
        (np.zeros((2, 3)), np.array([1.0, np.inf]), np.zeros(2)),
        (np.zeros((2, 3)), np.ones(2), np.array([0.0, np.inf])),
        (np.zeros((3, 3)), np.ones(2), np.zeros(2)),
        (np.zeros((2, 3)), np.ones(2), np.zeros(1)),
    ],
)
def test_states_that_cannot_be_trained_are_refused(
    weight: np.ndarray, step: np.ndarray, bias: np.ndarray
) -> None:
    with pytest.raises(ConfigurationError):
        LayerState(weight.astype(np.float32), step.astype(np.float32), bias.astype(np.float32))
