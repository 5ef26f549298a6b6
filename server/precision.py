"""Ways to store every layer, and the choice among them: what the server computes between rounds.

Rounding works on the *corrected* weights (a correction's gain times the float weight), because the moments are those of
the corrected model; what is stored is divided by the gain again, so that a later correction changes no code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantization.bit_allocation import Allocation, Budget, Candidate
from quantization.blob import encode_blob
from quantization.errors import ConfigurationError
from quantization.graph_plan import Layer
from quantization.layer_codes import LayerCodes, RoundedWeights, weight_rows
from quantization.layer_rounding import RoundedLayer
from quantization.layer_weights import float_content
from quantization.measured_allocation import allocate_measured
from quantization.model_rounding import round_model
from quantization.policy import Policy
from quantization.rounding import RealArray
from quantization.scale_search import (
    PACKED_GRIDS,
    RATED_GRIDS,
    Grid,
    PackedGrid,
    RatedGrid,
    affordable_grids,
    limited_grids,
)
from quantization.second_moments import SecondMoments
from quantization.stored_size import stored_size_bytes
from server.candidate import PlannedModel
from server.precision_settings import PrecisionSettings

PROBE_STEP = 0.78
"""Step of the grid that probes are rounded on: about 2.5 bits, an error that a few inputs show."""

_FINE_STEP = 0.05
_COARSE_STEPS = (2.6, 3.4)  # about one bit per weight, and less
_COARSE_BITS = (
    2,
    3,
)  # below about 2.5 bits per weight, codes that saturate beat an entropy coder's coarse steps
_FLOAT_BITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """One way to store a layer.

    Attributes:
        storage: "int8", "fp16" or "bf16".
        bit_width: Bits of its codes; 16 for a float type.
        size_bytes: As stored, with 4 bytes per channel for its scale.
        loss: Mean square error of the layer's output, summed over its channels.
        rounded: The codes; None for a float type.
    """

    storage: str
    bit_width: int
    size_bytes: int
    loss: float
    rounded: RoundedLayer | None = None


Options = Mapping[str, Sequence[Option]]
"""By layer, the ways to store it; none empty."""

Choice = Mapping[str, Option]
"""By layer, the way that was chosen."""


@dataclass(frozen=True, slots=True)
class LayerLatency:
    """Time that a layer takes on a class of device, in seconds per inference of one input.

    Attributes:
        integer: With int8 weights, of whatever bit-width.
        floating: With float weights.
    """

    integer: float
    floating: float


def grids_for(settings: PrecisionSettings | None, max_weight_bits: int, weights: int = 0) -> tuple[Grid, ...]:
    """Return the grids that a layer is rounded on.

    Args:
        settings: Equal bits for all layers need one grid, a budget needs all; None for the packed grids of 2 to 8 bits.
        max_weight_bits: Most bits that the class of devices can compute with.
        weights: Of the layer; wide layers are rounded on fewer grids.

    Raises:
        ConfigurationError: If equal bits are asked for that the class cannot compute with.
    """
    if settings is None:
        return tuple(grid for grid in PACKED_GRIDS if grid.bit_width <= max_weight_bits)
    if settings.weight_bits is not None:
        if settings.weight_bits > max_weight_bits:
            raise ConfigurationError(
                f"weight-bits {settings.weight_bits} is more than the {max_weight_bits} that devices of this class take"
            )
        return (PackedGrid(settings.weight_bits),)
    steps = (RatedGrid(_FINE_STEP), *RATED_GRIDS, *(RatedGrid(step) for step in _COARSE_STEPS))
    rated = affordable_grids(weights, steps)
    packed = (*(PackedGrid(bits) for bits in _COARSE_BITS), PackedGrid(max_weight_bits))
    return tuple(limited_grids([*rated, *packed], max_weight_bits))


def probe_grid(max_weight_bits: int) -> Grid:
    """Return the grid that probes are rounded on."""
    return RatedGrid(PROBE_STEP, max_weight_bits)


def corrected_rows(model: PlannedModel, policy: Policy) -> dict[str, RealArray]:
    """Return every layer's float weight times its correction's gain, (O, K) by layer."""
    rows = {}
    for layer in model.plan.layers:
        weight = weight_rows(model.draft.tensors[layer.weight], layer.weight_axis).astype(np.float64)
        rows[layer.name] = weight * policy.correction(layer.name, layer.channels).gain[:, None]
    return rows


def round_options(
    model: PlannedModel,
    policy: Policy,
    moments: Mapping[str, SecondMoments],
    grids: Sequence[Grid] | Mapping[str, Sequence[Grid]],
) -> dict[str, list[Option]]:
    """Return every layer rounded on each grid.

    Args:
        model: The float model.
        policy: Its corrections count.
        moments: Of each layer's input, in the model with these corrections; only these layers are rounded.
        grids: For all layers, or by layer.
    """
    rows = {name: w for name, w in corrected_rows(model, policy).items() if name in moments}
    is_centred = {layer.name: layer.bias is not None for layer in model.plan.layers}
    found = round_model(rows, moments, grids, is_centred=is_centred)
    return {
        name: [Option("int8", r.bit_width, r.size_bytes, r.loss, r) for r in candidates]
        for name, candidates in found.items()
    }


def float_option(
    model: PlannedModel, layer: Layer, policy: Policy, moments: SecondMoments, kind: str
) -> Option:
    """Return a layer kept in a 16-bit float type."""
    weight = model.draft.tensors[layer.weight]
    content = float_content(weight, kind, layer.name)
    wide = (
        content.astype(np.float32) if kind == "fp16" else (content.astype(np.uint32) << 16).view(np.float32)
    )
    gain = policy.correction(layer.name, layer.channels).gain[:, None]
    error = weight_rows(wide.astype(np.float64) - weight, layer.weight_axis).astype(np.float64) * gain
    size = len(encode_blob(content.tobytes())) + 4 * layer.channels
    return Option(kind, _FLOAT_BITS, size, output_loss(error, moments, is_centred=layer.bias is not None))


def output_loss(error: RealArray, moments: SecondMoments, *, is_centred: bool) -> float:
    """Return the mean square of the output error that a weight error (O, K) makes, summed over channels."""
    groups, blocks, block = moments.gram.shape[:3]
    padded = np.zeros((groups, len(error) // groups, blocks * block))
    padded[..., : moments.columns] = error.reshape(groups, -1, moments.columns)
    split = np.moveaxis(padded.reshape(groups, -1, blocks, block), 2, 1)
    hessian = moments.covariance() if is_centred else moments.mean_square()
    return float(np.sum((split @ hessian) * split))


def with_float_options(
    options: Options,
    settings: PrecisionSettings,
    model: PlannedModel,
    policy: Policy,
    moments: Mapping[str, SecondMoments],
) -> dict[str, list[Option]]:
    """Return the options with float types: alone where the settings name a layer, beside the codes where it may choose.

    Raises:
        ConfigurationError: If the settings name a layer that the model has not.
    """
    named = dict(settings.float_layers)
    layers = {layer.name: layer for layer in model.plan.layers}
    unknown = named.keys() - layers.keys()
    if unknown:
        raise ConfigurationError(
            f"float-layer {min(unknown)!r} is no layer of the model; its layers are {', '.join(layers)}"
        )
    found = {name: list(of_layer) for name, of_layer in options.items()}
    for name, layer in layers.items():
        if name in named:
            found[name] = [float_option(model, layer, policy, moments[name], named[name])]
        elif settings.may_choose_float:
            found[name].append(float_option(model, layer, policy, moments[name], "fp16"))
    return found


def as_candidates(
    options: Options, gains: Mapping[str, float], latencies: Mapping[str, LayerLatency] | None = None
) -> dict[str, list[Candidate]]:
    """Return what an allocation needs to know of every option."""
    return {
        name: [_candidate(o, gains[name], (latencies or {}).get(name)) for o in of_layer]
        for name, of_layer in options.items()
    }


def allocate(
    options: Options,
    gains: Mapping[str, float],
    budget: Budget,
    latencies: Mapping[str, LayerLatency] | None = None,
) -> tuple[Choice, Allocation]:
    """Return the option of every layer with which the predicted loss is least within the budget, by exact sizes.

    Raises:
        ConfigurationError: If nothing fits; it names the smallest budget that would do.
    """
    candidates = as_candidates(options, gains, latencies)
    allocation, _ = allocate_measured(
        candidates, budget, lambda name, index: exact_bytes({name: options[name][index]})
    )
    return chosen(options, allocation), allocation


def chosen(options: Options, allocation: Allocation) -> dict[str, Option]:
    """Return the options that an allocation chose."""
    return {name: options[name][index] for name, index in allocation.choice.items()}


def predicted_loss(choice: Choice, gains: Mapping[str, float]) -> float:
    """Return the divergence that is predicted for a choice, in nats."""
    return sum(gains[name] * option.loss for name, option in choice.items())


def exact_bytes(choice: Choice) -> int:
    """Return the bytes of all weights as stored, none of them estimated."""
    return sum(
        option.size_bytes if option.rounded is None else stored_size_bytes(option.rounded.codes)
        for option in choice.values()
    )


def fp32_weight_bytes(model: PlannedModel) -> int:
    """Return the bytes of all layers' weights as float32, biases left out."""
    return sum(4 * model.draft.tensors[layer.weight].size for layer in model.plan.layers)


def codes_of(choice: Choice, policy: Policy) -> RoundedWeights:
    """Return the codes of every layer that is not kept in float, free of the policy's corrections."""
    return {
        name: _codes(name, option.rounded, policy)
        for name, option in choice.items()
        if option.rounded is not None
    }


def floats_of(choice: Choice) -> dict[str, str]:
    """Return the float type of every layer that is kept in float."""
    return {name: option.storage for name, option in choice.items() if option.rounded is None}


def _codes(name: str, rounded: RoundedLayer, policy: Policy) -> LayerCodes:
    gain = policy.correction(name, len(rounded.codes)).gain
    scale = (rounded.scale / gain).astype(np.float32)
    return LayerCodes(rounded.codes, scale, rounded.bias_shift / gain)


def _candidate(option: Option, gain: float, latency: LayerLatency | None) -> Candidate:
    seconds = 0.0
    if latency is not None:
        seconds = latency.integer if option.rounded is not None else latency.floating
    return Candidate(option.bit_width, option.size_bytes, gain * option.loss, seconds)
