"""Training on a device: a few epochs on its own inputs, answered with how far the weights moved.

A device can train where torch and onnx are installed (the extra `train`) and it has inputs. Neither is imported before
a training message comes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict

from client.device import Device
from quantization.arrays import FloatArray, IntArray
from quantization.errors import ConfigurationError
from quantization.training_update import TrainingUpdate, measure_update
from strategies.training_messages import TrainRequest
from strategies.training_records import decode_train_request, encode_update

if TYPE_CHECKING:
    from quantization.qat import QatModel

_IDLE_MODELS = 4
"""Models kept between messages: a simulation runs thousands of devices in one process, all with the same model."""


@cache
def has_torch() -> bool:
    """Return whether what training needs is installed."""
    return all(find_spec(name) is not None for name in ("torch", "onnx"))


def answer_train(device: Device, content: RecordDict, name: str) -> RecordDict:
    """Return the reply to a training message.

    Args:
        device: Whose inputs are trained on.
        content: The request.
        name: What the device is called in every run; see `train_on`.

    Raises:
        ConfigurationError: If torch is not installed here.
        MalformedError: If the request is not one.
        UnsupportedModelError: If the model holds an operator that cannot be trained.
    """
    if not has_torch():
        raise ConfigurationError("this device cannot train: install quantfleet with the extra 'train'")
    request = decode_train_request(content)
    inputs, labels = _picked(device.inputs(), device.labels(), request.max_weight)
    if len(inputs) == 0:
        return encode_update(TrainingUpdate.empty(request.layers))
    return encode_update(train_on(request, inputs, labels, name))


def train_on(request: TrainRequest, inputs: FloatArray, labels: IntArray | None, name: str) -> TrainingUpdate:
    """Return the update of one device.

    Args:
        request: What to train.
        inputs: float32 (N, ...), finite, N >= 1.
        labels: int64 (N,), -1 where unknown; None without labels.
        name: Of the device; with the seed and the round it decides the order of inputs. Flower's node id does not: it
            is another one after every registration, and a run that is resumed must come to the same weights.
    """
    from quantization.qat import Rows, train_locally  # noqa: PLC0415 - torch, for training alone

    words = np.frombuffer(sha256(name.encode()).digest()[:8], "<u4").tolist()
    seed = int(np.random.SeedSequence([request.settings.seed, request.round, *words]).generate_state(1)[0])
    units = {layer.name: layer.bias_unit for layer in request.layers.layers}
    with _borrowed(request) as model:
        settings = replace(request.settings, seed=seed)
        result = train_locally(model, request.state, Rows(inputs, labels), settings, units)
    return measure_update(
        request.layers,
        request.state,
        result.state,
        len(inputs),
        loss=result.loss,
        measured=result.measured,
    )


def _picked(inputs: FloatArray, labels: IntArray | None, most: int) -> tuple[FloatArray, IntArray | None]:
    """Return the inputs that are finite, at most `most` of them, spread evenly, with their labels."""
    values = inputs.reshape(len(inputs), int(np.prod(inputs.shape[1:])))
    usable = np.flatnonzero(np.isfinite(values).all(axis=1))
    if len(usable) > most:
        usable = usable[np.linspace(0, len(usable) - 1, most).astype(np.int64)]
    rows = np.ascontiguousarray(inputs[usable], np.float32)
    return rows, None if labels is None else np.asarray(labels[usable], np.int64)


class _ModelPool:
    """Models that were built before and are in nobody's hands."""

    def __init__(self) -> None:
        self._idle: list[tuple[str, QatModel]] = []
        self._lock = threading.Lock()

    def take(self, key: str) -> "QatModel | None":
        with self._lock:
            found = next((item for item in self._idle if item[0] == key), None)
            if found is None:
                return None
            self._idle.remove(found)
            return found[1]

    def give(self, key: str, model: "QatModel") -> None:
        with self._lock:
            self._idle = [*self._idle, (key, model)][-_IDLE_MODELS:]


_POOL = _ModelPool()


@contextmanager
def _borrowed(request: TrainRequest) -> "Iterator[QatModel]":
    """Lend the request's model to one device at a time."""
    from quantization.graph import analyze  # noqa: PLC0415 - onnx
    from quantization.qat import QatModel  # noqa: PLC0415 - torch

    params = [(name, p.scale.tobytes(), p.zero_point.tobytes()) for name, p in request.activations.items()]
    key = sha256(request.model + repr((request.layers, params)).encode()).hexdigest()
    model = _POOL.take(key) or QatModel(
        request.model, analyze(request.model), request.layers.grids, request.activations
    )
    yield model
    _POOL.give(key, model)
