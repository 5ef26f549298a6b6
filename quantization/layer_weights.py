"""Codes and scales of a model's weights, and the file `channels`: all that a policy decides about layers.

A layer's weights are stored in one of three ways: rounded to nearest at the policy's bit-width; as the codes that
rounding or training made (`layer_codes`); or, in a float island, as fp16 or bf16, which a Cast reads back when the
session is built. In each of them the file `channels` holds a scale and a bias per channel, so a correction changes no
weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from quantization.affine import AffineParams, quantize, symmetric_weight_params
from quantization.arrays import AnyArray, FloatArray
from quantization.draft import Draft
from quantization.errors import ConfigurationError
from quantization.graph_plan import GraphPlan, Layer
from quantization.layer_codes import LayerCodes, RoundedWeights, weight_from_rows
from quantization.policy import Policy
from quantization.renormalization import shortened
from quantization.skeleton import ElementType, SkeletonWriter

SCALE_FLOOR = 2.0**-14
"""Least weight scale of a channel, as a part of its layer's largest.

Weights that need less cannot show in the layer's 8-bit output; without the floor, the bias of a channel whose
weights are next to nothing would overflow the int32 accumulator, whose unit is input scale x weight scale.
"""

MAX_BIAS_STEPS = 2.0**30
"""Greatest bias, in steps of an int32 accumulator."""

_FLOAT_TYPES: Mapping[str, ElementType] = {"fp16": np.float16, "bf16": TensorProto.BFLOAT16}

_SCALE_OF_NOTHING = np.float32(2.0**-14)  # a layer of zeros: the bias still needs a fine unit


@dataclass(frozen=True, slots=True)
class ChannelSlot:
    """Where a layer's scales and bias lie in the file `channels`.

    Attributes:
        layer: Name of the layer.
        channels: Number of output channels, C.
        scale_offset: Bytes from the start of the file to the weight scales, float32 (C,).
        bias_offset: Bytes from the start to the bias, float32 (C,); None where the layer has none.
    """

    layer: str
    channels: int
    scale_offset: int
    bias_offset: int | None


def channel_slots(plan: GraphPlan) -> tuple[ChannelSlot, ...]:
    """Return where each layer's values lie: layer by layer, scales and then bias."""
    slots: list[ChannelSlot] = []
    offset = 0
    for layer in plan.layers:
        size = 4 * layer.channels
        bias_offset = None if layer.bias is None else offset + size
        slots.append(ChannelSlot(layer.name, layer.channels, offset, bias_offset))
        offset += size if layer.bias is None else 2 * size
    return tuple(slots)


def weight_params(layer: Layer, weight: FloatArray, bit_width: int) -> AffineParams:
    """Return symmetric parameters per output channel, none below `SCALE_FLOOR` of the layer's largest."""
    params = symmetric_weight_params(weight, layer.weight_axis, bit_width)
    others = tuple(axis for axis in range(weight.ndim) if axis != layer.weight_axis)
    is_used = np.any(weight != 0, axis=others, keepdims=True)
    if not is_used.any():
        scale = np.full_like(params.scale, _SCALE_OF_NOTHING)
    else:
        largest = params.scale[is_used].max()
        scale = np.where(is_used, np.maximum(params.scale, largest * np.float32(SCALE_FLOOR)), largest)
    return AffineParams(scale.astype(np.float32), params.zero_point, bit_width, is_signed=True)


@dataclass(frozen=True, slots=True, eq=False)
class StoredLayer:
    """A layer as a policy stores it, before any correction.

    Attributes:
        content: The weight's file, in the weight's own shape: int8 codes, float16, or uint16 (the bits of bfloat16).
        scale: (C,), float32: what content times scale makes the weight.
        bias: (C,), float64; None where the layer has none.
    """

    content: AnyArray
    scale: NDArray[np.float32]
    bias: NDArray[np.float64] | None


NOTHING_ROUNDED: RoundedWeights = MappingProxyType({})
"""All layers rounded to nearest."""


def stored_layers(
    draft: Draft, plan: GraphPlan, policy: Policy, rounded: RoundedWeights = NOTHING_ROUNDED
) -> dict[str, StoredLayer]:
    """Return every layer as it is stored; it depends on weights, bit-widths and float layers, not on ranges.

    Args:
        draft: Of the canonical model.
        plan: Of the same.
        policy: Names bit-widths and float layers.
        rounded: What the policy's `weights_digest` names.

    Raises:
        ConfigurationError: If rounded weights or float layers are not of this model, or do not fit their type.
    """
    unknown = (rounded.keys() | policy.float_layers.keys()) - {layer.name for layer in plan.layers}
    if unknown:
        raise ConfigurationError(f"weights for layers that the model has not: {', '.join(sorted(unknown))}")
    return {layer.name: _stored_layer(draft, layer, policy, rounded.get(layer.name)) for layer in plan.layers}


def weight_files(stored: Mapping[str, StoredLayer], plan: GraphPlan) -> dict[str, AnyArray]:
    """Return the content of every layer's weight, by the weight's name."""
    return {layer.weight: stored[layer.name].content for layer in plan.layers}


def channels_content(
    stored: Mapping[str, StoredLayer], plan: GraphPlan, policy: Policy
) -> NDArray[np.float32]:
    """Return the file `channels`: scales and bias of every layer, with the policy's corrections folded in.

    A correction z' = gain * z + offset becomes scale' = gain * scale and bias' = gain * bias + offset, computed
    in float64 and rounded once, to `renormalization.SIGNIFICANT_BITS` significant bits. A layer without a correction
    keeps all bits of its scales and bias.

    Raises:
        ConfigurationError: If a correction is of another number of channels, or for a layer that takes none.
    """
    _refuse_foreign_corrections(plan, policy)
    parts: list[NDArray[np.float32]] = []
    for layer in plan.layers:
        kept = stored[layer.name]
        correction = policy.corrections.get(layer.name)
        if correction is None:
            parts += [kept.scale] if kept.bias is None else [kept.scale, kept.bias.astype(np.float32)]
            continue
        parts.append(shortened(kept.scale * correction.gain))
        if kept.bias is not None:
            parts.append(shortened(kept.bias * correction.gain + correction.offset))
    return np.concatenate(parts)


def input_scale_floors(channels: NDArray[np.float32], plan: GraphPlan, policy: Policy) -> dict[str, float]:
    """Return by site the least activation scale with which every bias behind it fits its int32 accumulator.

    A bias is rounded to steps of input scale x weight scale; `MAX_BIAS_STEPS` of them leave room for the
    sums. Only a site that is all but dead in the calibration data ever meets its floor.
    """
    floors: dict[str, float] = {}
    for layer, slot in zip(plan.layers, channel_slots(plan), strict=True):
        if slot.bias_offset is None or layer.name in policy.float_layers:
            continue
        scale, bias = (
            channels[offset // 4 :][: layer.channels].astype(np.float64)
            for offset in (slot.scale_offset, slot.bias_offset)
        )
        floor = float(np.max(np.abs(bias) / scale)) / MAX_BIAS_STEPS
        floors[layer.input_site] = max(floor, floors.get(layer.input_site, 0.0))
    return floors


def _refuse_foreign_corrections(plan: GraphPlan, policy: Policy) -> None:
    channels = {layer.name: layer.channels for layer in plan.corrected_layers}
    for name, correction in policy.corrections.items():
        if correction.gain.size != channels.get(name):
            raise ConfigurationError(
                f"correction of {correction.gain.size} channels for layer {name!r}, "
                f"which takes {channels.get(name)}"
            )


def _stored_layer(draft: Draft, layer: Layer, policy: Policy, rounded: LayerCodes | None) -> StoredLayer:
    weight = draft.tensors[layer.weight]
    bias = None if layer.bias is None else draft.tensors[layer.bias].astype(np.float64)
    if layer.name in policy.float_layers:
        ones = np.ones(layer.channels, np.float32)
        return StoredLayer(float_content(weight, policy.float_layers[layer.name], layer.name), ones, bias)
    if rounded is None:
        params = weight_params(layer, weight, policy.bit_widths.get(layer.name, 8))
        return StoredLayer(quantize(weight, params), params.scale.reshape(-1), bias)
    if rounded.codes.shape != (layer.channels, weight.size // layer.channels):
        raise ConfigurationError(
            f"layer {layer.name!r} has codes {rounded.codes.shape} for a weight of shape {weight.shape}"
        )
    if layer.bias is None and rounded.bias_shift.any():
        raise ConfigurationError(f"layer {layer.name!r} has no bias that could be shifted")
    codes = weight_from_rows(rounded.codes, weight.shape, layer.weight_axis)
    return StoredLayer(codes, rounded.scale, None if bias is None else bias + rounded.bias_shift)


def float_content(weight: FloatArray, kind: str, name: str) -> AnyArray:
    """Return a weight in a float type of 16 bits: float16, or the bits of bfloat16 as uint16; ties round to even.

    Args:
        weight: Of any shape.
        kind: "fp16" or "bf16".
        name: Of the layer, for messages.

    Raises:
        ConfigurationError: If a value is too large for fp16.
    """
    single = np.ascontiguousarray(weight, np.float32)
    if kind == "bf16":
        bits = single.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        half = single.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(single).max())
        raise ConfigurationError(
            f"layer {name!r} has a weight of {largest:.3g}, too large for fp16; store it as bf16"
        )
    return half


def write_weights(
    writer: SkeletonWriter, layer: Layer, slot: ChannelSlot, location: str, float_type: str | None = None
) -> list[str]:
    """Write a layer's stored weight and what makes it float; return the names of its float weight and bias.

    Args:
        writer: Takes the nodes and tensors.
        layer: The layer.
        slot: Where its scales and bias lie in the file.
        location: That file.
        float_type: "fp16" or "bf16" for a float layer, None for codes.
    """
    weight, scale, shape = layer.weight, f"{layer.weight}:scale", (layer.channels,)
    dimensions = writer.draft.tensors[weight].shape
    if float_type is not None:
        along = [layer.channels if axis == layer.weight_axis else 1 for axis in range(len(dimensions))]
        writer.external(weight, _FLOAT_TYPES[float_type], dimensions, weight, 0)
        writer.external(scale, np.float32, shape, location, slot.scale_offset)
        writer.external(f"{scale}:along", np.float32, along, location, slot.scale_offset)
        writer.add("Cast", [weight], [f"{weight}:wide"], to=TensorProto.FLOAT)
        writer.add("Mul", [f"{weight}:wide", f"{scale}:along"], [f"{weight}:float"])
    else:
        writer.external(weight, np.int8, dimensions, weight, 0)
        writer.external(scale, np.float32, shape, location, slot.scale_offset)
        operands = [weight, scale]
        if layer.op == "Gemm":  # ONNX Runtime fuses Conv and MatMul without a zero point, Gemm with one only
            operands.append(f"{weight}:zero_point")
            writer.constant(operands[-1], np.zeros(shape, np.int8))
        writer.add("DequantizeLinear", operands, [f"{weight}:float"], axis=layer.weight_axis)
    if layer.bias is None or slot.bias_offset is None:
        return [f"{weight}:float"]
    writer.external(layer.bias, np.float32, shape, location, slot.bias_offset)
    return [f"{weight}:float", layer.bias]
