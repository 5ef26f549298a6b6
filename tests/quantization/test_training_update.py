import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantization.errors import ConfigurationError, IncompatibleStatsError, MalformedError
from quantization.training_state import LayerState, TrainingGrid
from quantization.training_update import (
    MAX_MOVE,
    MAX_RMS,
    Movement,
    TrainedLayer,
    TrainingLayout,
    TrainingUpdate,
    apply_movement,
    check_update,
    measure_update,
    states_equal,
)

LAYOUT = TrainingLayout(
    (
        TrainedLayer("conv", 2, 3, TrainingGrid(1), True, 0.25),
        TrainedLayer("matmul", 1, 4, TrainingGrid(7), False, 1.0),
    )
)


def _start() -> dict[str, LayerState]:
    rng = np.random.default_rng(0)
    return {
        layer.name: LayerState(
            rng.uniform(-0.3, 0.3, (layer.rows, layer.columns)).astype(np.float32),
            np.full(layer.rows, 0.5, np.float32),
            np.ones(layer.rows if layer.has_bias else 0, np.float32),
        )
        for layer in LAYOUT.layers
    }


def _moved(seed: int, size: float = 0.1) -> dict[str, LayerState]:
    rng = np.random.default_rng(seed)
    return {
        name: LayerState(
            layer.weight + rng.normal(0, size, layer.weight.shape).astype(np.float32),
            layer.step * np.exp(rng.normal(0, 0.05, layer.step.shape)).astype(np.float32),
            layer.bias + rng.normal(0, size, layer.bias.shape).astype(np.float32),
        )
        for name, layer in _start().items()
    }


def _update(seed: int, weight: int = 20) -> TrainingUpdate:
    return measure_update(LAYOUT, _start(), _moved(seed), weight, loss=0.5 + seed, measured=min(weight, 8))


updates = st.builds(_update, st.integers(0, 50), st.integers(1, 200))


@given(updates, updates, updates)
def test_merge_is_a_commutative_monoid(a: TrainingUpdate, b: TrainingUpdate, c: TrainingUpdate) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(TrainingUpdate.empty(LAYOUT)) == a


def test_average_of_one_device_is_its_own_movement() -> None:
    moved = _moved(3)
    update = measure_update(LAYOUT, _start(), moved, 20)
    result = apply_movement(_start(), Movement.none(LAYOUT).after(update, LAYOUT, 0.0), LAYOUT)
    for name, layer in moved.items():
        end = result[name].step[:, None] * LAYOUT.grids[name].greatest_code
        expected = np.clip(layer.weight, -end, end)
        np.testing.assert_allclose(result[name].weight, expected, atol=1e-5)
        np.testing.assert_allclose(result[name].step, layer.step, rtol=1e-5)
        np.testing.assert_allclose(result[name].bias, layer.bias, atol=1e-5)


def test_devices_count_as_many_rows_as_they_trained_on() -> None:
    three, one = _update(1, weight=30), _update(2, weight=10)
    values = Movement.none(LAYOUT).after(three.merge(one), LAYOUT, 0.0).values
    alone = [Movement.none(LAYOUT).after(u, LAYOUT, 0.0).values for u in (three, one)]
    np.testing.assert_allclose(values, 0.75 * alone[0] + 0.25 * alone[1], atol=1e-5)


def test_steps_that_double_and_halve_cancel() -> None:
    start = _start()
    doubled, halved = (
        {n: LayerState(s.weight, s.step * np.float32(f), s.bias) for n, s in start.items()}
        for f in (1.9, 1 / 1.9)
    )
    total = measure_update(LAYOUT, start, doubled, 7).merge(measure_update(LAYOUT, start, halved, 7))
    result = apply_movement(start, Movement.none(LAYOUT).after(total, LAYOUT, 0.0), LAYOUT)
    for name, layer in start.items():
        np.testing.assert_allclose(result[name].step, layer.step, rtol=1e-6)


def test_momentum_keeps_going() -> None:
    first = Movement.none(LAYOUT).after(_update(1), LAYOUT, 0.9)
    second = first.after(TrainingUpdate.empty(LAYOUT), LAYOUT, 0.9)
    np.testing.assert_allclose(second.values, 0.9 * first.values)


@pytest.mark.parametrize("size", [0.0, 5.0, 1e6, np.nan, np.inf])
def test_whatever_training_did_a_device_sends_what_the_server_takes(size: float) -> None:
    moved = _moved(0)
    with np.errstate(invalid="ignore"):
        for layer in moved.values():
            layer.weight[...] *= np.float32(size)
            layer.bias[...] *= np.float32(size)
    update = measure_update(LAYOUT, _start(), moved, 100, loss=size, measured=8)
    check_update(update, LAYOUT, 100)


def test_weights_that_leave_their_grid_are_put_back() -> None:
    sums = np.zeros(LAYOUT.size, np.int64)
    sums[:6] = 5 << 16
    result = apply_movement(
        _start(), Movement.none(LAYOUT).after(TrainingUpdate(1, sums, 0, 0), LAYOUT, 0.0), LAYOUT
    )
    np.testing.assert_array_equal(result["conv"].weight, np.full((2, 3), 0.5, np.float32))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, round(MAX_MOVE * 1.1 * 2**16)),
        (slice(0, 6), round(MAX_RMS * 1.1 * 2**16)),
        (6, 2**20),
        (8, 65 * 2**16),
        (slice(0, 6), -(1 << 62)),
    ],
)
def test_movement_beyond_its_bound_is_refused(position: int | slice, value: int) -> None:
    sums = np.zeros(LAYOUT.size, np.int64)
    sums[position] = value
    with pytest.raises(MalformedError, match="conv"):
        check_update(TrainingUpdate(1, sums, 0, 0), LAYOUT, 100)


@pytest.mark.parametrize(
    ("weight", "measured", "loss", "moves"),
    [
        (101, 0, 0, False),
        (-1, 0, 0, False),
        (1, 101, 0, False),
        (1, 1, -1, False),
        (1, 1, 1 << 60, False),
        (0, 0, 0, True),
    ],
)
def test_absurd_counts_and_losses_are_refused(weight: int, measured: int, loss: int, moves: bool) -> None:
    sums = np.full(LAYOUT.size, int(moves), np.int64)
    with pytest.raises(MalformedError):
        check_update(TrainingUpdate(weight, sums, measured, loss), LAYOUT, 100)


def test_sums_that_would_overflow_are_refused() -> None:
    half = TrainingUpdate(1, np.full(LAYOUT.size, (1 << 61) + 1, np.int64), 0, 0)
    with pytest.raises(IncompatibleStatsError, match="62 bits"):
        half.merge(half)


@settings(max_examples=20)
@given(hnp.arrays(np.float32, (2, 3), elements=st.floats(-2, 2, width=32)), st.integers(1, 1000))
def test_rounding_to_fixed_point_is_fine_enough(weight: np.ndarray, rows: int) -> None:
    start = _start()
    state = start | {"conv": LayerState(weight, start["conv"].step, start["conv"].bias)}
    update = measure_update(LAYOUT, start, state, rows)
    moved = (weight - start["conv"].weight) / 0.5
    size = float(np.sqrt(np.mean(np.square(moved, dtype=np.float64))))
    expected = moved * min(1.0, MAX_RMS / size) if size else moved
    found = Movement.none(LAYOUT).after(update, LAYOUT, 0.0).values[:6].reshape(2, 3)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_states_are_equal_bit_for_bit_or_not() -> None:
    assert states_equal(_start(), _start())
    assert not states_equal(_start(), _moved(0))


@pytest.mark.parametrize(("rows", "columns", "unit"), [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0), (1, 1, np.nan)])
def test_layers_without_a_size_are_refused(rows: int, columns: int, unit: float) -> None:
    with pytest.raises(ConfigurationError):
        TrainedLayer("x", rows, columns, TrainingGrid(1), True, unit)
