"""What a search for weights found, and the record of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantization.bit_allocation import Allocation
from quantization.layer_codes import LayerCodes, RoundedWeights, to_bytes
from quantization.stored_size import stored_size_bytes
from server.field_probes import Measured
from server.precision import Choice, Option, floats_of, fp32_weight_bytes, predicted_loss
from server.precision_record import FrontPoint, LayerPrecision, PrecisionRecord

if TYPE_CHECKING:
    from server.weight_search import WeightSearch


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """What a search found.

    Attributes:
        content: The rounded weights (`quantization.layer_codes`).
        bit_widths: Of the layers that have codes.
        float_layers: Float type of the others.
        gain_factors: By layer whose gain was corrected: what to multiply later estimates by.
        record: How, and why.
    """

    content: bytes
    bit_widths: Mapping[str, int]
    float_layers: Mapping[str, str]
    gain_factors: Mapping[str, float]
    record: PrecisionRecord


def found_weights(
    search: "WeightSearch", choice: Choice, weights: RoundedWeights, seen: Measured | None
) -> FoundWeights:
    """Return the result of the search."""
    began = time.perf_counter()
    content = to_bytes(weights)
    search.tune_seconds += time.perf_counter() - began
    model, values = search.tuning.model, search.values()
    parameters = {layer.name: int(model.draft.tensors[layer.weight].size) for layer in model.plan.layers}
    layers = tuple(
        _layer_record(
            search, name, option, weights.get(name), parameters=parameters[name], value=values[name]
        )
        for name, option in choice.items()
    )
    fp32_bytes, size = fp32_weight_bytes(model), sum(layer.size_bytes for layer in layers)
    record = PrecisionRecord(
        layers=layers,
        size_ratio=fp32_bytes / size,
        weight_bytes=size,
        fp32_weight_bytes=fp32_bytes,
        overhead_bytes=0,
        predicted_loss=predicted_loss(choice, values),
        measured_loss=None if seen is None else seen.loss,
        tune_seconds=search.tune_seconds,
        front=tuple(_front_point(allocation, one, fp32_bytes) for allocation, one in search.tried_front),
    )
    bit_widths = {name: codes.bit_width for name, codes in weights.items()}
    return FoundWeights(content, bit_widths, floats_of(choice), search.factors, record)


def _layer_record(
    search: "WeightSearch",
    name: str,
    option: Option,
    codes: LayerCodes | None,
    *,
    parameters: int,
    value: float,
) -> LayerPrecision:
    """Return how a layer of so many weights, whose corrected gain is `value`, is stored."""
    gain, factor = search.gains.get(name), search.factors.get(name, 1.0)
    size = option.size_bytes if codes is None else stored_size_bytes(codes.codes)
    is_bounded = gain is not None and gain.high != float("inf")
    return LayerPrecision(
        name=name,
        parameters=parameters,
        storage=option.storage,
        bit_width=option.bit_width if codes is None else codes.bit_width,
        stored_bits=8 * size / parameters,
        size_bytes=size,
        gain=value,
        gain_low=gain.low * factor if gain is not None else 0.0,
        gain_high=gain.high * factor if gain is not None and is_bounded else None,
        devices=gain.devices if gain is not None else 0,
        predicted_loss=value * option.loss,
    )


def _front_point(allocation: Allocation, seen: Measured | None, fp32_bytes: int) -> FrontPoint:
    size = allocation.size_bytes
    if seen is None:
        return FrontPoint(size, fp32_bytes / size, allocation.loss)
    return FrontPoint(size, fp32_bytes / size, allocation.loss, seen.loss, seen.drop)
