import numpy as np
import pytest

from quantization.errors import ConfigurationError
from quantization.layer_rounding import round_layer
from quantization.model_rounding import round_model
from quantization.scale_search import PackedGrid, RatedGrid
from quantization.second_moments import SecondMoments

GRIDS = [PackedGrid(4), RatedGrid(0.5)]


def _model(layers: int = 5) -> tuple[dict[str, np.ndarray], dict[str, SecondMoments]]:
    rng = np.random.default_rng(0)
    weights, moments = {}, {}
    for i in range(layers):
        rows, columns = int(rng.integers(4, 20)), int(rng.integers(4, 40))
        x = rng.normal(size=(1, 200, columns)) @ rng.normal(size=(columns, columns)) / columns**0.5
        weights[f"layer{i}"] = rng.normal(size=(rows, columns))
        moments[f"layer{i}"] = SecondMoments.empty(columns, 3).add_columns(x)
    return weights, moments


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_layers_are_rounded_as_they_would_be_alone(workers: int) -> None:
    weights, moments = _model()
    is_centred = {name: name != "layer1" for name in weights}
    found = round_model(weights, moments, GRIDS, is_centred=is_centred, workers=workers)
    assert list(found) == list(weights)
    for name, layers in found.items():
        alone = round_layer(weights[name], moments[name], GRIDS, is_centred=is_centred[name])
        for layer, expected in zip(layers, alone, strict=True):
            np.testing.assert_array_equal(layer.codes, expected.codes)
            np.testing.assert_array_equal(layer.scale, expected.scale)
            np.testing.assert_array_equal(layer.bias_shift, expected.bias_shift)
            assert (layer.grid, layer.loss) == (expected.grid, expected.loss)


def test_each_layer_can_have_grids_of_its_own() -> None:
    weights, moments = _model(2)
    grids = {"layer0": GRIDS, "layer1": GRIDS[:1]}
    found = round_model(weights, moments, grids, is_centred=dict.fromkeys(weights, True))
    assert [layer.grid for layer in found["layer0"]] == GRIDS
    assert [layer.grid for layer in found["layer1"]] == GRIDS[:1]


def test_progress_grows_to_one_and_names_every_layer() -> None:
    weights, moments = _model()
    told: list[tuple[float, str]] = []
    round_model(
        weights,
        moments,
        GRIDS,
        is_centred=dict.fromkeys(weights, True),
        on_progress=lambda share, name: told.append((share, name)),
    )
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert {name for _, name in told} == set(weights)


def test_layer_without_moments_and_moments_of_another_layer_are_refused() -> None:
    weights, moments = _model(2)
    is_centred = dict.fromkeys(weights, True)
    with pytest.raises(ConfigurationError, match="layer1"):
        round_model(weights, {"layer0": moments["layer0"]}, GRIDS, is_centred=is_centred)
    with pytest.raises(ConfigurationError, match="layer0"):
        round_model(weights, moments, {"layer1": GRIDS}, is_centred=is_centred)
    swapped = {"layer0": moments["layer1"], "layer1": moments["layer0"]}
    with pytest.raises(ConfigurationError, match="with moments of"):
        round_model(weights, swapped, GRIDS, is_centred=is_centred)
    with pytest.raises(ConfigurationError, match="worker"):
        round_model(weights, moments, GRIDS, is_centred=is_centred, workers=0)


def test_model_without_layers_has_no_candidates() -> None:
    assert round_model({}, {}, GRIDS, is_centred={}) == {}
