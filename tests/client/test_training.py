"""Devices that train, through the real ClientApp on the in-process grid."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from models import mlp, observed_policy

import client.training
from client.answers import answer_hello
from client.training import answer_train
from quantization.compile import site_params
from quantization.device_class import ARM
from quantization.errors import ConfigurationError, MalformedError
from quantization.graph import analyze, canonicalize
from quantization.qat import QatModel
from quantization.training_settings import TrainingSettings
from quantization.training_state import TrainingGrid
from quantization.training_update import TrainedLayer, TrainingLayout, TrainingUpdate
from strategies.training_messages import TrainRequest
from strategies.training_records import CAN_TRAIN, decode_update, encode_train_request

X = np.random.default_rng(0).normal(size=(24, 20)).astype(np.float32)
Y = np.arange(24) % 4


class _Device:
    """A device with inputs and nothing else."""

    device_class = ARM

    def __init__(self, inputs: np.ndarray, labels: np.ndarray | None = None) -> None:
        self._inputs, self._labels = inputs, labels

    def manifest(self) -> None:
        return None

    def inputs(self) -> np.ndarray:
        return self._inputs

    def labels(self) -> np.ndarray | None:
        return self._labels


def _device(inputs: np.ndarray = X, labels: np.ndarray | None = None) -> Any:
    return _Device(inputs, labels)


@pytest.fixture(scope="module")
def request_() -> TrainRequest:
    model = canonicalize(mlp())
    plan = analyze(model)
    policy = observed_policy(model, plan, X)
    grids = {layer.name: TrainingGrid(3) for layer in plan.layers}
    activations = {site.name: site_params(site, policy) for site in plan.sites}
    state = QatModel(model, plan, grids, activations).original
    layers = tuple(
        TrainedLayer(
            layer.name, *state[layer.name].weight.shape, grids[layer.name], layer.bias is not None, 0.1
        )
        for layer in plan.layers
    )
    settings = TrainingSettings(epochs=1, batch_size=8, weight_rate=0.02)
    return TrainRequest(model, TrainingLayout(layers), state, activations, settings)


def _answer(request: TrainRequest, device: Any, name: str = "a") -> TrainingUpdate:
    content = answer_train(device, encode_train_request(request), name)
    return decode_update(content, request.layers, request.max_weight)


def test_update_has_the_devices_weight_and_moves_something(request_: TrainRequest) -> None:
    update = _answer(request_, _device(labels=Y))
    assert (update.weight, update.measured) == (24, 24)
    assert update.mean_loss() > 0
    assert np.count_nonzero(update.sums) > 0.5 * request_.layers.size


def test_equal_requests_give_equal_updates_and_other_devices_other_orders(request_: TrainRequest) -> None:
    assert _answer(request_, _device()) == _answer(request_, _device())
    assert _answer(request_, _device()) != _answer(request_, _device(), name="b")


def test_labels_are_used_where_there_are_any(request_: TrainRequest) -> None:
    some = np.where(np.arange(24) < 12, Y, -1)
    losses = [_answer(request_, _device(labels=labels)).loss for labels in (None, some, Y)]
    assert losses[0] < losses[1] < losses[2]


def test_rows_that_are_not_finite_are_left_out(request_: TrainRequest) -> None:
    broken = X.copy()
    broken[::4] = np.nan
    assert _answer(request_, _device(broken)).weight == 18


def test_device_without_inputs_moves_nothing(request_: TrainRequest) -> None:
    assert _answer(request_, _device(X[:0])) == TrainingUpdate.empty(request_.layers)


def test_device_counts_as_the_most_that_the_request_allows(request_: TrainRequest) -> None:
    assert _answer(replace(request_, max_weight=10), _device()).weight == 10


def test_measuring_moves_nothing(request_: TrainRequest) -> None:
    update = _answer(replace(request_, settings=TrainingSettings(epochs=0)), _device())
    assert not update.sums.any()
    assert update.loss > 0


def test_request_that_is_none_is_refused() -> None:
    with pytest.raises(MalformedError):
        answer_train(_device(), RecordDict(), "a")


def test_device_with_torch_and_inputs_says_that_it_can_train(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CAN_TRAIN in answer_hello(_device(), 2).capabilities
    assert CAN_TRAIN not in answer_hello(_device(X[:0]), 2).capabilities
    monkeypatch.setattr("client.answers.has_torch", lambda: False)
    assert CAN_TRAIN not in answer_hello(_device(), 2).capabilities


def test_device_without_torch_says_what_is_missing(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.training, "has_torch", lambda: False)
    with pytest.raises(ConfigurationError, match="extra 'train'"):
        answer_train(_device(), encode_train_request(request_), "a")
