from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from quantization.affine import params_from_range
from quantization.errors import ConfigurationError, MalformedError
from quantization.training_settings import TrainingSettings
from quantization.training_state import LayerState, TrainingGrid
from quantization.training_update import TrainedLayer, TrainingLayout, TrainingUpdate, states_equal
from strategies.training_messages import TrainRequest
from strategies.training_records import (
    decode_train_request,
    decode_update,
    encode_train_request,
    encode_update,
)
from strategies.wire import encode_vector

LAYOUT = TrainingLayout(
    (
        TrainedLayer("conv", 2, 3, TrainingGrid(1), True, 0.25),
        TrainedLayer("matmul", 1, 4, TrainingGrid(127, learns_step=False), False, 1.0),
    )
)


def _request() -> TrainRequest:
    rng = np.random.default_rng(0)
    state = {
        layer.name: LayerState(
            rng.normal(size=(layer.rows, layer.columns)).astype(np.float32),
            rng.uniform(0.1, 1, layer.rows).astype(np.float32),
            rng.normal(size=layer.rows if layer.has_bias else 0).astype(np.float32),
        )
        for layer in LAYOUT.layers
    }
    activations = {"x": params_from_range(-1.0, 2.0), "y": params_from_range(0.0, 6.0)}
    settings = TrainingSettings(
        epochs=2, weight_rate=0.25, augmentations=("flip", "shift=0.125"), mixing=0.5, seed=7
    )
    return TrainRequest(b"model", LAYOUT, state, activations, settings, 3, 500)


def _update(limit: int = 1000) -> TrainingUpdate:
    sums = np.random.default_rng(1).integers(-limit, limit, LAYOUT.size)
    return TrainingUpdate(100, sums, 32, 12345)


def test_request_comes_back() -> None:
    sent = _request()
    back = decode_train_request(encode_train_request(sent))
    assert (back.model, back.layers, back.settings) == (sent.model, sent.layers, sent.settings)
    assert (back.round, back.max_weight) == (3, 500)
    assert states_equal(back.state, sent.state)
    assert list(back.activations) == ["x", "y"]
    for name, params in sent.activations.items():
        assert back.activations[name].scale == params.scale
        assert back.activations[name].zero_point == params.zero_point


@pytest.mark.parametrize(("limit", "dtype"), [(1000, "int32"), (1 << 33, "int64")])
def test_update_comes_back_as_narrow_as_it_fits(limit: int, dtype: str) -> None:
    sent = _update(limit)
    content = encode_update(sent)
    assert content["statistics"]["sums"].dtype == dtype
    sums = sent.sums if dtype == "int32" else np.clip(sent.sums, -(1 << 22), 1 << 22)
    content = encode_update(TrainingUpdate(100, sums, 32, 12345))
    assert decode_update(content, LAYOUT, 500) == TrainingUpdate(100, sums, 32, 12345)


def test_request_without_a_layers_state_is_refused() -> None:
    sent = _request()
    with pytest.raises(ConfigurationError, match="state"):
        TrainRequest(sent.model, LAYOUT, {"conv": sent.state["conv"]}, sent.activations)


def _spoil_sums(sums: Array | None) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content["statistics"] = ArrayRecord({} if sums is None else {"sums": sums})

    return spoil


def _spoil_setting(key: str, value: int) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content["settings"] = ConfigRecord(dict(content["settings"]) | {key: value})

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        _spoil_sums(None),
        _spoil_sums(encode_vector(np.zeros(3, np.int64))),
        _spoil_sums(encode_vector(np.full(LAYOUT.size, np.nan))),
        _spoil_sums(encode_vector(np.full(LAYOUT.size, 1 << 62, np.int64))),
        _spoil_sums(encode_vector(np.full(LAYOUT.size, np.iinfo(np.int64).min, np.int64))),
        _spoil_setting("weight", -1),
        _spoil_setting("weight", 501),
        _spoil_setting("weight", 0),
        _spoil_setting("measured", 1 << 40),
        _spoil_setting("loss", -5),
        _spoil_setting("loss", 1 << 59),
    ],
)
def test_malformed_updates_are_refused(spoil: Callable[[RecordDict], None]) -> None:
    content = encode_update(_update())
    spoil(content)
    with pytest.raises(MalformedError):
        decode_update(content, LAYOUT, 500)


def test_request_of_another_kind_is_refused() -> None:
    for key in ("settings", "model", "layout", "state"):
        content = encode_train_request(_request())
        del content[key]
        with pytest.raises(MalformedError):
            decode_train_request(content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("weight_rate", float("nan")),
        ("temperature", 0.0),
        ("seed", "7"),
        ("round", -1),
        ("max_weight", 1 << 20),
        ("layers", ["conv", "conv"]),
    ],
)
def test_requests_that_cannot_be_trained_are_refused(key: str, value: object) -> None:
    content = encode_train_request(_request())
    content["settings"] = ConfigRecord(dict(content["settings"]) | {key: value})
    with pytest.raises(MalformedError):
        decode_train_request(content)


def test_state_that_is_not_finite_is_refused() -> None:
    content = encode_train_request(_request())
    arrays = dict(content["state"])
    arrays["weights"] = encode_vector(np.full(10, np.inf, np.float32))
    content["state"] = ArrayRecord(arrays)
    with pytest.raises(MalformedError):
        decode_train_request(content)
