"""From a canonical model, a policy and rounded weights to what is trained, and back."""

from collections.abc import Mapping

import numpy as np
import onnx

from quantization.draft import Draft
from quantization.graph_plan import GraphPlan, Layer
from quantization.layer_codes import LayerCodes, weight_rows
from quantization.policy import Policy
from quantization.renormalization import ChannelCorrection
from quantization.training_state import (
    CELL,
    LayerState,
    TrainedState,
    TrainingGrid,
    finish_layer,
    start_layer,
)


def corrected_model(model: bytes, plan: GraphPlan, corrections: Mapping[str, ChannelCorrection]) -> bytes:
    """Return the float model with channel corrections folded into weights and biases: z' = gain * z + offset.

    Args:
        model: Canonical ONNX bytes.
        plan: What `graph.analyze` says of it.
        corrections: By layer.
    """
    if not corrections:
        return model
    draft = Draft.from_model(onnx.load_model_from_string(model))
    for layer in plan.layers:
        correction = corrections.get(layer.name)
        if correction is None or layer.bias is None:
            continue
        weight, bias = draft.tensors[layer.weight], draft.tensors[layer.bias]
        shape = [1] * weight.ndim
        shape[layer.weight_axis] = -1
        draft.tensors[layer.weight] = (weight * correction.gain.reshape(shape)).astype(np.float32)
        draft.tensors[layer.bias] = (bias * correction.gain + correction.offset).astype(np.float32)
    return bytes(draft.to_model().SerializeToString(deterministic=True))


def start_state(
    model: bytes,
    plan: GraphPlan,
    policy: Policy,
    start: Mapping[str, LayerCodes],
    grids: Mapping[str, TrainingGrid],
    *,
    cell: float = CELL,
) -> dict[str, LayerState]:
    """Return where training of some layers starts.

    Args:
        model: Canonical ONNX bytes, without corrections.
        plan: What `graph.analyze` says of it.
        policy: Has the corrections.
        start: Rounded weights by layer.
        grids: By layer, the codes that it may have.
        cell: See `training_state.CELL`.

    Raises:
        ConfigurationError: If shapes differ, or codes lie beyond their grid.
    """
    draft = Draft.from_model(onnx.load_model_from_string(model))
    return {
        layer.name: start_layer(
            np.asarray(weight_rows(draft.tensors[layer.weight], layer.weight_axis), np.float32),
            _bias(draft, layer),
            start[layer.name],
            policy.correction(layer.name, layer.channels),
            grids[layer.name],
            cell=cell,
        )
        for layer in plan.layers
        if layer.name in start
    }


def finish_state(
    model: bytes,
    plan: GraphPlan,
    policy: Policy,
    state: TrainedState,
    grids: Mapping[str, TrainingGrid],
) -> dict[str, LayerCodes]:
    """Return the rounded weights of a trained state; arguments are those of `start_state`."""
    draft = Draft.from_model(onnx.load_model_from_string(model))
    return {
        layer.name: finish_layer(
            state[layer.name],
            grids[layer.name],
            _bias(draft, layer),
            policy.correction(layer.name, layer.channels),
        )
        for layer in plan.layers
        if layer.name in state
    }


def _bias(draft: Draft, layer: Layer) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    return None if layer.bias is None else np.asarray(draft.tensors[layer.bias], np.float32)
