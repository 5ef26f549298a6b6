"""Codes and scales of a model's weights, and the file `channels`: all that a policy decides about layers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.affine import AffineParams, quantize, symmetric_weight_params
from quantization.arrays import CodeArray, FloatArray
from quantization.draft import Draft
from quantization.errors import ConfigurationError
from quantization.graph_plan import GraphPlan, Layer
from quantization.policy import Policy
from quantization.skeleton import SkeletonWriter

SCALE_FLOOR = 2.0**-14
"""Least weight scale of a channel, as a part of its layer's largest.

Weights that need less cannot show in the layer's 8-bit output; without the floor, the bias of a channel whose
weights are next to nothing would overflow the int32 accumulator, whose unit is input scale x weight scale.
"""

MAX_BIAS_STEPS = 2.0**30
"""Greatest bias, in steps of an int32 accumulator."""

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


def weight_codes(draft: Draft, plan: GraphPlan, policy: Policy) -> dict[str, CodeArray]:
    """Return the int8 codes of every layer's weight, by the weight's name.

    They depend on the float weights and the bit-widths alone, never on ranges or corrections.
    """
    codes: dict[str, CodeArray] = {}
    for layer in plan.layers:
        weight = draft.tensors[layer.weight]
        codes[layer.weight] = quantize(
            weight, weight_params(layer, weight, policy.bit_widths.get(layer.name, 8))
        )
    return codes


def channels_content(draft: Draft, plan: GraphPlan, policy: Policy) -> NDArray[np.float32]:
    """Return the file `channels`: scales and bias of every layer, with the policy's corrections folded in.

    A correction z' = gain * z + offset becomes scale' = gain * scale and bias' = gain * bias + offset, computed
    in float64 and rounded once.

    Raises:
        ConfigurationError: If a correction is of another number of channels, or for a layer that takes none.
    """
    _refuse_foreign_corrections(plan, policy)
    parts: list[NDArray[np.float32]] = []
    for layer in plan.layers:
        weight = draft.tensors[layer.weight]
        params = weight_params(layer, weight, policy.bit_widths.get(layer.name, 8))
        correction = policy.correction(layer.name, layer.channels)
        parts.append((params.scale.reshape(-1) * correction.gain).astype(np.float32))
        if layer.bias is not None:
            bias = draft.tensors[layer.bias] * correction.gain + correction.offset
            parts.append(bias.astype(np.float32))
    return np.concatenate(parts)


def input_scale_floors(draft: Draft, plan: GraphPlan, policy: Policy) -> dict[str, float]:
    """Return by site the least activation scale with which every bias behind it fits its int32 accumulator.

    A bias is rounded to steps of input scale x weight scale; `MAX_BIAS_STEPS` of them leave room for the
    sums. Only a site that is all but dead in the calibration data ever meets its floor.
    """
    channels = channels_content(draft, plan, policy)
    floors: dict[str, float] = {}
    for layer, slot in zip(plan.layers, channel_slots(plan), strict=True):
        if slot.bias_offset is None:
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


def write_weights(writer: SkeletonWriter, layer: Layer, slot: ChannelSlot, location: str) -> list[str]:
    """Write a layer's codes and what dequantizes them; return the names of its float weight and bias.

    Args:
        writer: Takes the nodes and tensors.
        layer: The layer.
        slot: Where its scales and bias lie in the file.
        location: That file.
    """
    weight, scale, shape = layer.weight, f"{layer.weight}:scale", (layer.channels,)
    writer.external(weight, np.int8, writer.draft.tensors[weight].shape, weight, 0)
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
