"""The training message in Flower's records: its keys, and an encode/decode pair for request and reply.

The rules are those of `strategies.records`; `docs/formats/records.md` has the layout.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from quantization.affine import AffineParams
from quantization.arrays import AnyArray
from quantization.errors import ConfigurationError, MalformedError
from quantization.training_settings import TrainingSettings
from quantization.training_state import LayerState, TrainedState, TrainingGrid
from quantization.training_update import TrainedLayer, TrainingLayout, TrainingUpdate, check_update
from strategies.training_messages import MAX_WEIGHT, TrainRequest
from strategies.wire import (
    array_record,
    config_record,
    decode_bytes,
    decode_vector,
    encode_bytes,
    encode_vector,
    read_int,
    read_texts,
)

TRAIN = "train.qat"
"""Type of the message; the part behind the dot is the action a ClientApp registers."""

CAN_TRAIN = "train"
"""The capability of a device that can be asked."""

MAX_MODEL_BYTES = 256 << 20
MAX_LAYERS = 1 << 14
MAX_ELEMENTS = 1 << 28
MAX_AUGMENTATIONS = 16

_SETTINGS = "settings"
_MODEL = "model"
_DATA = "data"
_LAYOUT = "layout"
_STATE = "state"
_STATISTICS = "statistics"

_LAYERS = "layers"
_SITES = "sites"
_SHAPES = "shapes"
_BIAS_UNITS = "bias_units"
_SITE_SCALES = "site_scales"
_SITE_ZERO_POINTS = "site_zero_points"
_WEIGHTS = "weights"
_STEPS = "steps"
_BIASES = "biases"
_ROUND = "round"
_MAX_WEIGHT = "max_weight"
_AUGMENTATIONS = "augmentations"
_WEIGHT = "weight"
_SUMS = "sums"
_MEASURED = "measured"
_LOSS = "loss"

_COLUMNS_OF_SHAPES = 5  # rows, columns, greatest code, 1 where steps are learned, 1 with a bias


def encode_train_request(request: TrainRequest) -> RecordDict:
    """Return the content of a training message."""
    layers = request.layers.layers
    settings: dict[str, object] = {
        _LAYERS: [layer.name for layer in layers],
        _SITES: list(request.activations),
    }
    settings |= asdict(request.settings) | {_AUGMENTATIONS: list(request.settings.augmentations)}
    settings |= {_ROUND: request.round, _MAX_WEIGHT: request.max_weight}
    return RecordDict(
        {
            _SETTINGS: ConfigRecord(settings),  # type: ignore[arg-type]  # texts and numbers
            _MODEL: ArrayRecord({_DATA: encode_bytes(request.model)}),
            _LAYOUT: _arrays(_layout_vectors(request)),
            _STATE: _arrays(_state_vectors(request.layers, request.state)),
        }
    )


def decode_train_request(content: RecordDict) -> TrainRequest:
    """Return what `encode_train_request` wrote.

    Raises:
        MalformedError: If anything is missing, of another type, or beyond its bounds.
    """
    settings, arrays = config_record(content, _SETTINGS), array_record(content, _LAYOUT)
    try:
        layout = _read_layout(read_texts(settings, _LAYERS, MAX_LAYERS, 512), arrays)
        return TrainRequest(
            decode_bytes(array_record(content, _MODEL).get(_DATA), _MODEL, MAX_MODEL_BYTES),
            layout,
            _read_state(layout, array_record(content, _STATE)),
            _read_activations(read_texts(settings, _SITES, MAX_LAYERS, 512), arrays),
            _read_settings(settings),
            read_int(settings, _ROUND, 0, (1 << 31) - 1),
            read_int(settings, _MAX_WEIGHT, 1, MAX_WEIGHT),
        )
    except ConfigurationError as error:
        raise MalformedError(str(error)) from error


def encode_update(update: TrainingUpdate) -> RecordDict:
    """Return the reply to a training message; sums travel as int32 where they fit."""
    is_small = np.abs(update.sums).max(initial=0) < 1 << 31
    numbers = {_WEIGHT: update.weight, _MEASURED: update.measured, _LOSS: update.loss}
    sums = update.sums.astype(np.int32) if is_small else update.sums
    return RecordDict({_SETTINGS: ConfigRecord(dict(numbers)), _STATISTICS: _arrays({_SUMS: sums})})


def decode_update(content: RecordDict, layout: TrainingLayout, max_weight: int) -> TrainingUpdate:
    """Return what `encode_update` wrote, checked.

    Raises:
        MalformedError: If it is missing, of another type or length, or moves farther than a device may.
    """
    settings, size = config_record(content, _SETTINGS), layout.size
    sums = decode_vector(
        array_record(content, _STATISTICS).get(_SUMS), _SUMS, ("int32", "int64"), (size, size)
    )
    update = TrainingUpdate(
        read_int(settings, _WEIGHT, 0, MAX_WEIGHT),
        sums.astype(np.int64),
        read_int(settings, _MEASURED, 0, MAX_WEIGHT),
        read_int(settings, _LOSS, 0, 1 << 60),
    )
    check_update(update, layout, max_weight)
    return update


def _arrays(vectors: Mapping[str, AnyArray]) -> ArrayRecord:
    return ArrayRecord({key: encode_vector(vector) for key, vector in vectors.items()})


def _layout_vectors(request: TrainRequest) -> dict[str, AnyArray]:
    layers = request.layers.layers
    table = [
        (layer.rows, layer.columns, layer.grid.greatest_code, layer.grid.learns_step, layer.has_bias)
        for layer in layers
    ]
    params = list(request.activations.values())
    return {
        _SHAPES: np.array(table, np.int64),
        _BIAS_UNITS: np.array([layer.bias_unit for layer in layers], np.float64),
        _SITE_SCALES: np.array([float(p.scale) for p in params], np.float32),
        _SITE_ZERO_POINTS: np.array([int(p.zero_point) for p in params], np.uint8),
    }


def _state_vectors(layout: TrainingLayout, state: TrainedState) -> dict[str, AnyArray]:
    held = [state[layer.name] for layer in layout.layers]
    return {
        _WEIGHTS: np.concatenate([layer.weight.ravel() for layer in held]),
        _STEPS: np.concatenate([layer.step for layer in held]),
        _BIASES: np.concatenate([layer.bias for layer in held]),
    }


def _read_layout(names: tuple[str, ...], arrays: Mapping[str, Array]) -> TrainingLayout:
    count, elements = len(names), _COLUMNS_OF_SHAPES * len(names)
    table = decode_vector(arrays.get(_SHAPES), _SHAPES, ("int64",), (elements, elements))
    units = decode_vector(arrays.get(_BIAS_UNITS), _BIAS_UNITS, ("float64",), (count, count))
    rows = table.reshape(-1, _COLUMNS_OF_SHAPES).tolist()
    layout = TrainingLayout(
        tuple(
            TrainedLayer(name, o, k, TrainingGrid(greatest, bool(learns)), bool(has_bias), float(unit))
            for name, (o, k, greatest, learns, has_bias), unit in zip(names, rows, units, strict=True)
        )
    )
    if layout.size > MAX_ELEMENTS:
        raise MalformedError(f"training of {layout.size} values; at most {MAX_ELEMENTS}")
    return layout


def _read_state(layout: TrainingLayout, arrays: Mapping[str, Array]) -> dict[str, LayerState]:
    layers = layout.layers
    sizes = [layer.rows * layer.columns for layer in layers]
    rows = [layer.rows for layer in layers]
    biases = [layer.rows if layer.has_bias else 0 for layer in layers]
    weights, steps, shifts = (
        _split(arrays, key, parts) for key, parts in ((_WEIGHTS, sizes), (_STEPS, rows), (_BIASES, biases))
    )
    return {
        layer.name: LayerState(weight.reshape(layer.rows, layer.columns), step, bias)
        for layer, weight, step, bias in zip(layers, weights, steps, shifts, strict=True)
    }


def _split(arrays: Mapping[str, Array], key: str, sizes: list[int]) -> list[AnyArray]:
    total = sum(sizes)
    vector = decode_vector(arrays.get(key), key, ("float32",), (total, total))
    return np.split(vector, np.cumsum(sizes)[:-1])


def _read_activations(names: tuple[str, ...], arrays: Mapping[str, Array]) -> dict[str, AffineParams]:
    count = (len(names), len(names))
    scales = decode_vector(arrays.get(_SITE_SCALES), _SITE_SCALES, ("float32",), count)
    zeros = decode_vector(arrays.get(_SITE_ZERO_POINTS), _SITE_ZERO_POINTS, ("uint8",), count)
    pairs = zip(names, scales, zeros, strict=True)
    return {name: AffineParams(np.array(scale), np.array(zero)) for name, scale, zero in pairs}


def _read_settings(settings: Mapping[str, object]) -> TrainingSettings:
    found: dict[str, int | float] = {}
    augmentations = read_texts(settings, _AUGMENTATIONS, MAX_AUGMENTATIONS, 64)
    for item in fields(TrainingSettings):
        if item.name == _AUGMENTATIONS:
            continue
        kinds = (int, float) if item.type in (float, "float") else (int,)
        value = settings.get(item.name)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise MalformedError(f"{item.name} must be a number, not {str(value)[:40]!r}")
        found[item.name] = value
    return TrainingSettings(augmentations=augmentations, **found)  # type: ignore[arg-type]
