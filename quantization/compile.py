"""The inference graph: QDQ, u8 activations, s8 weights per channel, float32 bias, every tensor in a file.

Files beside one per weight (its int8 codes) and one per constant of a float operator:

* `ranges`: scales of the sites in the plan's order, float32, then their zero points, uint8.
* `channels`: per layer in the plan's order its weight scales (C,), then its bias (C,), float32.

The skeleton depends on the model and on which layers are kept in float; ranges, bit-widths and corrections change
files. ONNX Runtime fuses every other layer of it into one integer operator. A float layer reads dequantized values;
its result is quantized like any other, unless it is the model's output. Values are quantized once, behind their
producer; operators that move values move the codes.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from quantization.affine import AffineParams, params_from_range
from quantization.calibration import Range
from quantization.draft import Draft, attribute
from quantization.errors import ConfigurationError
from quantization.graph_plan import GraphPlan, Site
from quantization.layer_codes import RoundedWeights
from quantization.layer_weights import (
    NOTHING_ROUNDED,
    channel_slots,
    channels_content,
    input_scale_floors,
    stored_layers,
    weight_files,
    write_weights,
)
from quantization.policy import Policy
from quantization.skeleton import CompiledGraph, SkeletonWriter

__all__ = ["CompiledGraph", "channels_file", "compile_inference", "site_params", "site_range"]

_LEAST_WIDTH = 1e-30  # below it, widening would overflow


def compile_inference(
    model: bytes, plan: GraphPlan, policy: Policy, rounded: RoundedWeights = NOTHING_ROUNDED
) -> CompiledGraph:
    """Return the integer graph that devices run, and its files.

    Args:
        model: Canonical model.
        plan: What `graph.analyze` says of it.
        policy: Has a range for every site.
        rounded: What the policy's `weights_digest` names.

    Raises:
        ConfigurationError: If the policy lacks a range or holds corrections or weights that do not fit.
    """
    draft = Draft.from_model(onnx.load_model_from_string(model))
    writer = _InferenceWriter(draft, plan, policy.float_layers)
    writer.write_input()
    for node in draft.nodes:
        writer.write(node)
    compiled = writer.skeleton.finish(draft.outputs)
    stored = stored_layers(draft, plan, policy, rounded)
    channels = channels_content(stored, plan, policy)
    files = compiled.files | weight_files(stored, plan)
    files["ranges"] = _ranges_content(channels, plan, policy)
    files["channels"] = channels
    return CompiledGraph(compiled.skeleton, dict(sorted(files.items())))


def channels_file(
    model: bytes, plan: GraphPlan, policy: Policy, rounded: RoundedWeights = NOTHING_ROUNDED
) -> NDArray[np.float32]:
    """Return the file `channels` alone: what a policy's corrections and weights make of it."""
    draft = Draft.from_model(onnx.load_model_from_string(model))
    return channels_content(stored_layers(draft, plan, policy, rounded), plan, policy)


def site_range(site: Site, policy: Policy) -> Range:
    """Return the policy's range of a site within what the graph allows: from 0 behind ReLU, to 6 at most.

    A dead site (0, 0) behind ReLU6 gets all of its range, for the parameters of an empty range pass 6.

    Raises:
        ConfigurationError: If the policy has no range for the site.
    """
    chosen = policy.ranges.get(site.name)
    if chosen is None:
        raise ConfigurationError(f"the policy has no range for site {site.name!r}; calibrate the model first")
    lo = 0.0 if site.minimum_is_zero else chosen.lo
    if site.maximum is None:
        return Range(lo, chosen.hi)
    hi = min(chosen.hi, site.maximum)
    return Range(lo, site.maximum if lo == hi else hi)


def site_params(site: Site, policy: Policy, scale_floor: float = 0.0) -> AffineParams:
    """Return the 8-bit parameters of a site under a policy, with a scale of at least the floor."""
    bounds = site_range(site, policy)
    params = params_from_range(bounds.lo, bounds.hi, 8)
    if params.scale >= scale_floor:
        return params
    if bounds.hi - bounds.lo < _LEAST_WIDTH:
        return params_from_range(0.0, 255 * scale_floor, 8)
    factor = 255 * scale_floor / (bounds.hi - bounds.lo)
    return params_from_range(bounds.lo * factor, bounds.hi * factor, 8)


def _ranges_content(channels: NDArray[np.float32], plan: GraphPlan, policy: Policy) -> NDArray[np.uint8]:
    floors = input_scale_floors(channels, plan, policy)
    params = [site_params(site, policy, floors.get(site.name, 0.0)) for site in plan.sites]
    scales = np.array([p.scale for p in params], "<f4")
    zero_points = np.array([p.zero_point for p in params], np.uint8)
    return np.concatenate([scales.view(np.uint8), zero_points])


class _InferenceWriter:
    """Walks the float graph and writes its integer form.

    A tensor that exists as codes has them in `<name>:codes`. Behind an integer producer the float values are
    read back from the codes, under the tensor's own name; a float producer's values keep that name and
    integer operators read `<name>:rounded`.
    """

    def __init__(self, draft: Draft, plan: GraphPlan, float_layers: Mapping[str, str]) -> None:
        self.plan = plan
        self.float_layers = float_layers
        self.skeleton = SkeletonWriter(draft)
        kept = {layer.raw_output for layer in plan.layers if layer.name in float_layers}
        self.sites = {s.name: s for s in plan.sites if not (s.is_output and s.name in kept)}
        self.layers = {layer.name: layer for layer in plan.layers}
        self.slots = {slot.layer: slot for slot in channel_slots(plan)}
        self.roots: dict[str, str] = {}
        self.rounded: set[str] = set()
        for index, site in enumerate(plan.sites):
            zero_points = 4 * len(plan.sites)
            self.skeleton.external(f"{site.name}:scale", np.float32, (), "ranges", 4 * index)
            self.skeleton.external(f"{site.name}:zero_point", np.uint8, (), "ranges", zero_points + index)

    def write_input(self) -> None:
        if self.plan.input_name in self.sites:
            self.quantize(self.plan.input_name, self.plan.input_name)

    def write(self, node: onnx.NodeProto) -> None:
        if node.name in self.plan.moving_ops:
            self.move(node)
            return
        layer = self.layers.get(node.name)
        is_integer = layer is not None or node.name in self.plan.integer_ops
        inputs = [self.rounded_name(name) for name in node.input] if is_integer else list(node.input)
        if layer is not None:
            float_type = self.float_layers.get(layer.name)
            inputs[1:] = write_weights(self.skeleton, layer, self.slots[layer.name], "channels", float_type)
        outputs = [self.raw_name(name) for name in node.output]
        self.skeleton.keep(node, inputs, outputs)
        for name in node.output:
            if name in self.sites:
                self.quantize(name, self.raw_name(name))

    def raw_name(self, name: str) -> str:
        """Return the name of what a node computes, before any rounding to codes."""
        site = self.sites.get(name)
        return f"{name}:raw" if site is not None and site.is_computed_in_integers else name

    def quantize(self, site: str, raw: str) -> None:
        self.skeleton.add("QuantizeLinear", [raw, f"{site}:scale", f"{site}:zero_point"], [f"{site}:codes"])
        self.roots[site] = site
        if self.sites[site].is_computed_in_integers:
            self.dequantize(site, site)

    def dequantize(self, tensor: str, output: str) -> None:
        root = self.roots[tensor]
        self.skeleton.add(
            "DequantizeLinear", [f"{tensor}:codes", f"{root}:scale", f"{root}:zero_point"], [output]
        )
        self.rounded.add(output)

    def rounded_name(self, tensor: str) -> str:
        """Return the name under which an operator on codes finds a tensor, dequantized."""
        if tensor in self.rounded or tensor not in self.roots:
            return tensor
        if f"{tensor}:rounded" not in self.rounded:
            self.dequantize(tensor, f"{tensor}:rounded")
        return f"{tensor}:rounded"

    def move(self, node: onnx.NodeProto) -> None:
        root = self.roots[node.input[0]]
        inputs = [f"{node.input[0]}:codes", *node.input[1:]]
        if node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
            inputs[2:3] = [f"{root}:zero_point"]
        self.skeleton.keep(node, inputs, [f"{name}:codes" for name in node.output])
        for name in node.output:
            self.roots[name] = root
            self.dequantize(name, name)
