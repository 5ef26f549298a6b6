"""The graphs that devices observe with: float activations over the stored weight codes.

Two graphs read the codes that the inference graph runs:

* *plain* runs the model with the file `channels`, so with whatever corrections that file holds, and also
  outputs: `mean:<layer>` and `var:<layer>` (C,) float32 and `count:<layer>` int64 () of every corrected
  layer's raw output, over batch and positions, the variance that of the population; and `values:<site>` (n,)
  float32 of every site: a sample of the tensor, then its exact minimum and maximum.
* *normalizing* runs the model as the lab left it, with the file `reference`, and gives every corrected
  layer's raw output the lab's mean and spread, by the batch's own moments (AdaBN, arXiv:1603.04779), before
  the next layer sees it. It outputs the raw moments, under the same names.

A sample takes every k-th value of the flattened tensor, k a prime that divides no axis, so that all channels
and positions take their turn; about 4,096 values per 32 examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quantization.draft import Draft
from quantization.errors import ConfigurationError
from quantization.graph_plan import GraphPlan, Layer, Site
from quantization.layer_codes import RoundedWeights
from quantization.layer_weights import (
    NOTHING_ROUNDED,
    ChannelSlot,
    StoredLayer,
    channel_slots,
    channels_content,
    stored_layers,
    weight_files,
    write_weights,
)
from quantization.moments import ChannelReference
from quantization.policy import Policy
from quantization.renormalization import MAX_GAIN
from quantization.skeleton import CompiledGraph, SkeletonWriter

VALUES_PER_EXAMPLE = 128
"""How many values of each site a sample holds per example, about."""

DEFAULT_STEP = 61
"""Sampling step of a site whose shape is not known before it runs."""

DEAD_SPREAD = 1e-4
"""Spread below which a channel counts as constant, as a part of its layer's in the lab.

A constant channel is set to the lab's mean. A much smaller bound would let float32 rounding through: ONNX Runtime
computes x * s + (b - mean * s), which cancels badly where the mean is many standard deviations.
"""


@dataclass(frozen=True, slots=True)
class ReferenceSlot:
    """Where a corrected layer's moments of the lab lie in the file `reference`.

    Attributes:
        layer: Name of the layer.
        channels: Number of channels, C.
        mean_offset: Bytes from the start of the file to the mean, float64 (C,).
        std_offset: Bytes to the standard deviation, float64 (C,).
        count_offset: Bytes to the number of values per channel, int64.
    """

    layer: str
    channels: int
    mean_offset: int
    std_offset: int
    count_offset: int


@dataclass(frozen=True, slots=True)
class ObservationGraphs:
    """The graphs that observe one model.

    Attributes:
        plain: The float model with the current channels.
        normalizing: The lab's model, normalised as it goes; None without references, or where no layer is
            corrected.
        layer_names: Layers that both give moments of.
        site_names: Sites that `plain` gives values of.
        reference_slots: Where the references lie in the file `reference`; empty without them.
    """

    plain: CompiledGraph
    normalizing: CompiledGraph | None
    layer_names: tuple[str, ...]
    site_names: tuple[str, ...]
    reference_slots: tuple[ReferenceSlot, ...]


def compile_observation(
    model: bytes,
    plan: GraphPlan,
    policy: Policy,
    references: Mapping[str, ChannelReference] | None,
    rounded: RoundedWeights = NOTHING_ROUNDED,
) -> ObservationGraphs:
    """Return the graphs that observe a model with a policy's weights.

    Args:
        model: Canonical model.
        plan: What `graph.analyze` says of it.
        policy: Decides codes and channels; needs no ranges.
        references: The lab's moments by layer, of every corrected layer; None for `plain` alone.
        rounded: What the policy's `weights_digest` names.

    Raises:
        ConfigurationError: If a corrected layer lacks a reference, or has one of another number of channels.
    """
    draft = Draft.from_model(onnx.load_model_from_string(model))
    stored = stored_layers(draft, plan, policy, rounded)
    codes = weight_files(stored, plan)
    plain = _compile_plain(draft, plan, policy.float_layers)
    files = plain.files | codes | {"channels": channels_content(stored, plan, policy)}
    normalizing = None
    if references is not None and plan.corrected_layers:
        reference = reference_content(stored, plan, policy, references)
        graph = _compile_normalizing(draft, plan, references, policy.float_layers)
        normalizing = CompiledGraph(graph.skeleton, _sorted(graph.files | codes | {"reference": reference}))
    return ObservationGraphs(
        plain=CompiledGraph(plain.skeleton, _sorted(files)),
        normalizing=normalizing,
        layer_names=tuple(layer.name for layer in plan.corrected_layers),
        site_names=tuple(site.name for site in plan.sites),
        reference_slots=reference_slots(plan) if references is not None else (),
    )


def reference_slots(plan: GraphPlan) -> tuple[ReferenceSlot, ...]:
    """Return where each corrected layer's exact moments lie: layer by layer, mean, deviation, count."""
    slots: list[ReferenceSlot] = []
    offset = -(-_normalizers_end(plan) // 8) * 8
    for layer in plan.corrected_layers:
        size = 8 * layer.channels
        slots.append(ReferenceSlot(layer.name, layer.channels, offset, offset + size, offset + 2 * size))
        offset += 2 * size + 8
    return tuple(slots)


def reference_content(
    stored: Mapping[str, StoredLayer],
    plan: GraphPlan,
    policy: Policy,
    references: Mapping[str, ChannelReference],
) -> NDArray[np.uint8]:
    """Return the file `reference`, bytes: four parts, little-endian.

    First the lab's `channels` (no corrections); then per corrected layer deviation (C,) and mean (C,),
    float32, which the graph normalises to; then zeros up to a multiple of 8; then the exact moments that
    `reference_slots` describes.

    Raises:
        ConfigurationError: If a corrected layer lacks a reference, or has one of another number of channels.
    """
    lab = replace(policy, corrections={})
    singles = [channels_content(stored, plan, lab)]
    exact: list[bytes] = []
    for layer in plan.corrected_layers:
        reference = references.get(layer.name)
        if reference is None or reference.channels != layer.channels:
            found = "none" if reference is None else f"one of {reference.channels} channels"
            raise ConfigurationError(
                f"layer {layer.name!r} needs a reference of {layer.channels} channels, got {found}"
            )
        singles += [reference.std.astype(np.float32), reference.mean.astype(np.float32)]
        exact += [reference.mean.astype("<f8").tobytes(), reference.std.astype("<f8").tobytes()]
        exact.append(np.array(reference.count, "<i8").tobytes())
    head = np.concatenate(singles).astype("<f4").tobytes()
    return np.frombuffer(head + b"\0" * (-len(head) % 8) + b"".join(exact), np.uint8)


def sampling_step(site: Site) -> int:
    """Return the step of a site's sample: 1, or a prime that divides none of its axes."""
    if site.sample_size is None:
        return DEFAULT_STEP
    step = -(-site.sample_size // VALUES_PER_EXAMPLE)
    while step > 1 and (not _is_prime(step) or any(length % step == 0 for length in site.row_lengths)):
        step += 1
    return max(step, 1)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _channels_end(plan: GraphPlan) -> int:
    return sum(4 * layer.channels * (1 if layer.bias is None else 2) for layer in plan.layers)


def _normalizers_end(plan: GraphPlan) -> int:
    return _channels_end(plan) + sum(8 * layer.channels for layer in plan.corrected_layers)


def _sorted(files: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    return dict(sorted(files.items()))


def _compile_plain(draft: Draft, plan: GraphPlan, float_layers: Mapping[str, str]) -> CompiledGraph:
    writer = ObservationWriter(draft, plan, "channels", float_layers)
    sites = {site.name: site for site in plan.sites}
    if plan.input_name in sites:
        writer.sample(sites[plan.input_name])
    for node in draft.nodes:
        layer = writer.write(node, node.output)
        if layer is not None and layer.is_corrected:
            writer.observe(layer, f"{layer.weight}:scale", source=layer.raw_output)
        for name in node.output:
            if name in sites:
                writer.sample(sites[name])
    return writer.skeleton.finish([*draft.outputs, *writer.outputs])


def _compile_normalizing(
    draft: Draft,
    plan: GraphPlan,
    references: Mapping[str, ChannelReference],
    float_layers: Mapping[str, str],
) -> CompiledGraph:
    writer = ObservationWriter(draft, plan, "reference", float_layers)
    offset = _channels_end(plan)
    for node in draft.nodes:
        corrected = {layer.name: layer for layer in plan.corrected_layers}.get(node.name)
        if corrected is None:
            writer.write(node, node.output)
            continue
        writer.write(node, [f"{corrected.raw_output}:raw"])
        shape, names = (corrected.channels,), (f"{corrected.name}:std", f"{corrected.name}:mean")
        for index, name in enumerate(names):
            writer.skeleton.external(
                name, np.float32, shape, "reference", offset + 4 * index * corrected.channels
            )
        writer.observe(corrected, names[0], source=f"{corrected.raw_output}:raw")
        writer.restore(corrected, names, epsilon=_epsilon(references[corrected.name]))
        offset += 8 * corrected.channels
    return writer.skeleton.finish(writer.outputs)


def _epsilon(reference: ChannelReference) -> float:
    """Return what is added to a variance before its root: nothing that counts beside the layer's own."""
    return float(DEAD_SPREAD**2 * np.mean(reference.std**2)) / MAX_GAIN**2


class ObservationWriter:
    """Writes the float graph over stored codes, and what is observed of it."""

    def __init__(
        self,
        draft: Draft,
        plan: GraphPlan,
        location: str,
        float_layers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.float_layers = float_layers
        self.skeleton = SkeletonWriter(draft)
        self.location = location
        self.layers: dict[str, Layer] = {layer.name: layer for layer in plan.layers}
        self.slots: dict[str, ChannelSlot] = {slot.layer: slot for slot in channel_slots(plan)}
        self.outputs: list[onnx.ValueInfoProto] = []

    def write(self, node: onnx.NodeProto, outputs: Sequence[str]) -> Layer | None:
        """Append the node, reading its weights from codes; return the layer that it is."""
        layer = self.layers.get(node.name)
        inputs = list(node.input)
        if layer is not None:
            float_type = self.float_layers.get(layer.name)
            slot = self.slots[layer.name]
            inputs[1:] = write_weights(self.skeleton, layer, slot, self.location, float_type)
        self.skeleton.keep(node, inputs, outputs)
        return layer

    def observe(self, layer: Layer, any_channels: str, *, source: str) -> None:
        """Output the moments of `source` in this batch, and how many values each channel has.

        Args:
            layer: Whose raw output this is.
            any_channels: Any tensor (C,): the values that the operator normalises are not read.
            source: Tensor to observe.
        """
        mean, variance, count = (f"{kind}:{layer.name}" for kind in ("mean", "var", "count"))
        self.skeleton.add(
            "BatchNormalization",
            [source, *[any_channels] * 4],  # momentum 0: the running moments that go in do not come out
            [f"{layer.raw_output}:unread", mean, variance],
            training_mode=1,
            momentum=0.0,
            epsilon=1.0,
        )
        self.output(mean, TensorProto.FLOAT, [layer.channels])
        self.output(variance, TensorProto.FLOAT, [layer.channels])
        self.skeleton.add("Size", [source], [f"{count}:all"])
        self.skeleton.constant(f"{count}:channels", np.array(layer.channels, np.int64))
        self.skeleton.add("Div", [f"{count}:all", f"{count}:channels"], [count])
        self.output(count, TensorProto.INT64, [])

    def restore(self, layer: Layer, parameters: tuple[str, str], *, epsilon: float) -> None:
        """Give a layer's raw output the reference's moments in the place of the batch's own.

        As in `renormalization.restore`, no channel is amplified or damped by more than MAX_GAIN.

        Args:
            layer: The layer, observed before.
            parameters: Tensors (C,) with the reference's deviation and mean.
            epsilon: Added to the variance before its root.
        """
        std, mean = parameters
        square, ratio, bounded = (f"{layer.name}:{kind}" for kind in ("square", "ratio", "bounded"))
        self.skeleton.constant("gain:lowest", np.array(MAX_GAIN**-2, np.float32))
        self.skeleton.constant("gain:highest", np.array(MAX_GAIN**2, np.float32))
        self.skeleton.add("Mul", [std, std], [square])
        self.skeleton.add("Div", [f"var:{layer.name}", square], [ratio])
        self.skeleton.add("Clip", [ratio, "gain:lowest", "gain:highest"], [f"{ratio}:clipped"])
        self.skeleton.add("Mul", [f"{ratio}:clipped", square], [bounded])
        self.skeleton.add(
            "BatchNormalization",
            [f"{layer.raw_output}:raw", std, mean, f"mean:{layer.name}", bounded],
            [layer.raw_output],
            epsilon=epsilon,
        )

    def sample(self, site: Site) -> None:
        """Output a strided sample of a site's values with their exact minimum and maximum."""
        name, flat = f"values:{site.name}", f"{site.name}:flat"
        self.skeleton.constant("shape:flat", np.array([-1], np.int64))
        self.skeleton.constant("slice:start", np.array([0], np.int64))
        self.skeleton.constant("slice:end", np.array([np.iinfo(np.int64).max], np.int64))
        step = sampling_step(site)
        self.skeleton.constant(f"slice:step_{step}", np.array([step], np.int64))
        self.skeleton.add("Reshape", [site.name, "shape:flat"], [flat])
        picked = flat
        if step > 1:
            picked = f"{flat}:picked"
            names = [flat, "slice:start", "slice:end", "slice:start", f"slice:step_{step}"]
            self.skeleton.add("Slice", names, [picked])
        self.skeleton.add("ReduceMin", [flat], [f"{flat}:min"], keepdims=1)
        self.skeleton.add("ReduceMax", [flat], [f"{flat}:max"], keepdims=1)
        self.skeleton.add("Concat", [picked, f"{flat}:min", f"{flat}:max"], [name], axis=0)
        self.output(name, TensorProto.FLOAT, [None])

    def output(self, name: str, kind: int, shape: list[int | None]) -> None:
        """Make a tensor an output of the graph."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))
