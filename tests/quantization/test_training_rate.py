import numpy as np
import pytest

from quantization.stored_size import stored_size_bytes
from quantization.training_rate import fit_size, size_bits
from quantization.training_state import LayerState, TrainingGrid, codes_of

GRID = TrainingGrid(127)


def _state(spread: float, seed: int = 0) -> LayerState:
    weight = np.random.default_rng(seed).laplace(0, spread, (32, 144)).astype(np.float32)
    return LayerState(weight, np.ones(32, np.float32), np.zeros(32, np.float32))


def test_size_is_the_entropy() -> None:
    assert size_bits(np.zeros((4, 8), np.int8)) == 0
    assert size_bits(np.array([[0, 1] * 8, [2, 3] * 8], np.int8)) == pytest.approx(64)


def test_layer_that_fits_is_left_alone() -> None:
    state = _state(0.8)
    assert fit_size(state, GRID, size_bits(codes_of(state, GRID))) is state


@pytest.mark.parametrize("share", [0.99, 0.95, 0.9])
def test_layer_that_grew_is_brought_back_to_its_budget(share: float) -> None:
    state = _state(1.5)
    codes = codes_of(state, GRID)
    budget = share * size_bits(codes)
    fitted = codes_of(fit_size(state, GRID, budget), GRID)
    assert size_bits(fitted) <= budget
    assert size_bits(fitted) > 0.97 * budget
    assert stored_size_bytes(fitted) < stored_size_bytes(codes)
    assert np.abs(fitted.astype(int) - codes).max() <= 1


def test_weights_that_were_moved_lie_in_the_cell_of_their_new_code() -> None:
    state = _state(1.5)
    fitted = fit_size(state, GRID, 0.8 * size_bits(codes_of(state, GRID)))
    is_moved = fitted.weight != state.weight
    assert is_moved.any()
    assert (np.abs(fitted.weight - np.rint(fitted.weight))[is_moved] <= 0.5).all()
    np.testing.assert_array_equal(fitted.step, state.step)


def test_codes_stay_on_their_grid() -> None:
    state = LayerState(np.clip(_state(1.5).weight, -1, 1), np.ones(32, np.float32), np.zeros(32, np.float32))
    grid = TrainingGrid(1)
    fitted = fit_size(state, grid, 0.8 * size_bits(codes_of(state, grid)))
    assert np.abs(codes_of(fitted, grid)).max() == 1
