"""Folding of per-channel affine operators into the Conv or Gemm before them."""

import numpy as np
import onnx

from quantization.arrays import FloatArray
from quantization.draft import Draft, attribute
from quantization.rewrites import has_input


def fold_channel_affines(draft: Draft) -> None:
    """Fold every BatchNormalization, and Mul or Add of a constant per channel, behind a Conv or Gemm into it.

    Computed in float64 and rounded once. An operator stays where the tensor before it is read by others too.
    """
    producers = draft.producers()
    readers = draft.uses()
    outputs = draft.output_names()
    kept: list[onnx.NodeProto] = []
    for node in draft.nodes:
        source = next((n for n in node.input if producers.get(n) is not None and n not in draft.tensors), "")
        layer = producers.get(source)
        affine = None
        if (
            layer is not None
            and _is_foldable_layer(draft, layer)
            and len(readers[source]) == 1
            and source not in outputs
        ):
            affine = _channel_affine(draft, node, source, draft.tensors[layer.input[1]])
        if layer is None or affine is None:
            kept.append(node)
            continue
        _apply(draft, layer, *affine)
        layer.output[0] = node.output[0]
        producers[node.output[0]] = layer
    draft.nodes = kept


def _is_foldable_layer(draft: Draft, node: onnx.NodeProto) -> bool:
    is_layer = node.op_type in {"Conv", "Gemm"} and has_input(node, 2)
    return is_layer and node.input[1] in draft.tensors and node.input[2] in draft.tensors


def _channel_affine(
    draft: Draft, node: onnx.NodeProto, source: str, weight: FloatArray
) -> tuple[FloatArray, FloatArray] | None:
    """Return gain and offset, each (C,), if the node computes gain * x + offset of its input; else None."""
    channels, rank = weight.shape[0], weight.ndim
    if node.op_type == "BatchNormalization":
        values = [draft.tensors.get(name) for name in node.input[1:5]]
        if node.input[0] != source or any(v is None or v.shape != (channels,) for v in values):
            return None
        scale, bias, mean, variance = (np.asarray(v, np.float64) for v in values)
        with np.errstate(
            invalid="ignore", divide="ignore"
        ):  # what is not finite is refused behind all rewrites
            gain = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return gain, bias - mean * gain
    if node.op_type not in {"Add", "Sub", "Mul", "Div"}:
        return None
    position = list(node.input).index(source)
    constant = draft.tensors.get(node.input[1 - position])
    if constant is None or (node.op_type in {"Sub", "Div"} and position == 1):
        return None
    value = _per_channel(constant, channels, rank)
    if value is None:
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    with np.errstate(divide="ignore"):
        return {
            "Add": (ones, value), "Sub": (ones, -value), "Mul": (value, zeros), "Div": (1.0 / value, zeros),
        }[node.op_type]  # fmt: skip


def _per_channel(constant: FloatArray, channels: int, rank: int) -> FloatArray | None:
    """Return (C,) values if the constant broadcasts over (N, C, ...) of this rank as one value a channel."""
    if constant.dtype != np.float32 or constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if shape[0] != 1 or shape[1] not in {1, channels} or any(n != 1 for n in shape[2:]):
        return None
    return np.broadcast_to(constant.reshape(-1).astype(np.float64), (channels,))


def _apply(draft: Draft, layer: onnx.NodeProto, gain: FloatArray, offset: FloatArray) -> None:
    weight, bias = draft.tensors[layer.input[1]], draft.tensors[layer.input[2]]
    per_row = gain.reshape(-1, *(1,) * (weight.ndim - 1))
    draft.tensors[layer.input[1]] = (weight * per_row).astype(np.float32)
    draft.tensors[layer.input[2]] = (bias * gain + offset).astype(np.float32)
