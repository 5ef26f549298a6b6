from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import MalformedError
from quantization.im2col import ConvWindow, sample_columns
from quantization.input_observation import LayerInput, distinct, observe_inputs, split_layers, with_exponents
from quantization.second_moments import SecondMoments

WINDOW = ConvWindow((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
LAYERS = (
    LayerInput("conv", "x", WINDOW, 18, exponent=-6),
    LayerInput("depthwise", "x", replace(WINDOW, groups=2), 9, exponent=-6),
    LayerInput("q", "rows", None, 8, exponent=-7, block=3),
    LayerInput("k", "rows", None, 8, exponent=-7, block=3),
)
ALL = 1 << 30


def inputs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, size=(count, 2, 6, 5)).astype(np.float32)


def run(batch: np.ndarray) -> Mapping[str, np.ndarray]:
    return {"x": batch, "rows": np.tanh(batch.reshape(len(batch), -1, 4, 1)[:, :5, :, 0].repeat(2, axis=2))}


def columns(layer: LayerInput, x: np.ndarray, limit: int = ALL) -> np.ndarray:
    return sample_columns(run(x)[layer.tensor], layer.window, limit).astype(np.float64)


def test_moments_are_those_of_all_columns_pooled() -> None:
    x = inputs(23)
    seen = observe_inputs(run, x, LAYERS, batch_size=5)
    assert (seen.sample_count, seen.left_out_count) == (23, 0)
    for layer in LAYERS:
        pooled = layer.empty().add_columns(columns(layer, x))
        moments = seen.moments[layer.name]
        assert moments.count == pooled.count
        np.testing.assert_allclose(moments.mean_square(), pooled.mean_square(), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(moments.mean(), pooled.mean(), rtol=1e-9, atol=1e-9)


def test_each_batch_gives_a_sample_of_its_positions() -> None:
    seen = observe_inputs(run, inputs(20), LAYERS, batch_size=10, columns_per_batch=40)
    assert 20 < seen.moments["conv"].count <= 80
    first = [inputs(20)[part::2] for part in range(2)]
    expected = [columns(LAYERS[0], part, 40) for part in first]
    pooled = LAYERS[0].empty().add_columns(np.concatenate(expected, axis=1))
    np.testing.assert_allclose(seen.moments["conv"].mean_square(), pooled.mean_square(), rtol=1e-9, atol=1e-9)


def test_cross_moments_are_of_the_same_positions() -> None:
    def reference_run(batch: np.ndarray) -> Mapping[str, np.ndarray]:
        return {name: 3 * tensor for name, tensor in run(batch).items()}

    x = inputs(16)
    seen = observe_inputs(run, x, LAYERS, 8, reference_run=reference_run, columns_per_batch=50)
    for moments in seen.moments.values():
        np.testing.assert_allclose(
            moments.cross_mean_square(), 3 * moments.mean_square(), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(moments.reference_mean(), 3 * moments.mean(), rtol=1e-5, atol=1e-5)


def test_layers_that_read_the_same_the_same_way_share_their_moments() -> None:
    seen = observe_inputs(run, inputs(4), LAYERS, 4)
    assert seen.moments["q"] is seen.moments["k"]
    assert [layer.name for layer in distinct(LAYERS)] == ["conv", "depthwise", "q"]


def test_weighing_samples_equals_repeating_them() -> None:
    x, weights = inputs(6), np.array([1, 5, 2, 1, 3, 4])
    weighed = observe_inputs(run, [(x, weights)], LAYERS, 4, columns_per_batch=ALL)
    repeated = observe_inputs(run, np.repeat(x, weights, axis=0), LAYERS, 4, columns_per_batch=ALL)
    for layer in LAYERS:
        one, other = weighed.moments[layer.name], repeated.moments[layer.name]
        assert one.count == other.count
        np.testing.assert_allclose(one.mean_square(), other.mean_square(), rtol=1e-9, atol=1e-9)


def test_inputs_that_are_not_finite_are_left_out_alone() -> None:
    x = inputs(8)
    broken = np.concatenate([x, np.full_like(x[:2], np.nan), np.full_like(x[:1], np.inf)])
    seen = observe_inputs(run, broken, LAYERS, 4)
    assert (seen.sample_count, seen.left_out_count) == (8, 3)
    assert seen.moments == observe_inputs(run, x, LAYERS, 4).moments


def test_a_batch_beyond_a_layers_exponent_is_left_out_for_all_layers() -> None:
    x = inputs(8)
    x[::2] *= 1e15  # rows of the first of two batches
    seen = observe_inputs(run, x, LAYERS, 4)
    assert (seen.sample_count, seen.left_out_count) == (4, 4)
    assert seen.moments == observe_inputs(run, x[1::2], LAYERS, 4).moments


def test_no_inputs_give_empty_moments() -> None:
    seen = observe_inputs(run, inputs(0), LAYERS, 4)
    assert seen.sample_count == 0
    assert seen.moments == {layer.name: layer.empty() for layer in LAYERS}


@pytest.mark.parametrize(
    "layer",
    [
        LayerInput("a", "absent", None, 8),
        LayerInput("a", "rows", None, 9),
        LayerInput("a", "x", WINDOW, 27),
        LayerInput("a", "rows", WINDOW, 18),
        LayerInput("a", "x", replace(WINDOW, kernel=(9, 9)), 162),
    ],
)
def test_a_tensor_that_cannot_be_the_layers_input_is_refused(layer: LayerInput) -> None:
    with pytest.raises(MalformedError):
        observe_inputs(run, inputs(4), [layer], 4)


@pytest.mark.parametrize(
    "change",
    [{"columns": 0}, {"columns": 1 << 17}, {"block": 0}, {"block": 9}, {"exponent": 200}, {"exponent": -127}],
)
def test_forms_that_no_moments_have_are_refused(change: dict) -> None:
    with pytest.raises(MalformedError):
        replace(LAYERS[2], **change)


forms = st.builds(
    lambda columns, block, groups: LayerInput(
        "a",
        "x",
        None if groups == 1 else replace(WINDOW, groups=groups),
        columns,
        block=None if block is None else min(block, columns),
    ),
    st.integers(1, 12),
    st.none() | st.integers(1, 12),
    st.integers(1, 3),
)


@given(forms, st.booleans())
def test_a_form_knows_how_long_its_moments_are_on_the_wire(layer: LayerInput, with_cross: bool) -> None:
    moments = layer.empty(with_cross=with_cross)
    assert isinstance(moments, SecondMoments)
    assert moments.to_array().size == layer.elements(with_cross=with_cross)


@given(st.integers(1, 5000), st.booleans())
def test_layers_are_split_into_runs_that_fit(most_bytes: int, with_cross: bool) -> None:
    parts = list(split_layers(LAYERS, most_bytes, with_cross=with_cross))
    assert tuple(layer for part in parts for layer in part) == LAYERS
    for part in parts:
        size = 8 * sum(layer.elements(with_cross=with_cross) for layer in distinct(part))
        assert size <= most_bytes or len(distinct(part)) == 1


def test_exponents_follow_the_labs_moments() -> None:
    lab = observe_inputs(run, inputs(50), LAYERS, 10).moments
    asked = with_exponents(LAYERS, {name: lab[name] for name in ("conv", "q")})
    assert [layer.exponent for layer in asked] == [3, -6, 0, -7]  # mean squares of 5 and below 1
