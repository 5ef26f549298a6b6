"""The graph that outputs what layers read, and how each of them reads it.

A tap graph is the float model over the stored weight codes, like the plain observation graph and with the same files,
whose outputs are the inputs of all layers and the model's own outputs. It depends on the model alone and travels in
the request of the round that needs it, not in the artifact.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper

from quantization.compile_observation import ObservationWriter
from quantization.draft import Draft, TensorInfo, attribute
from quantization.errors import UnsupportedModelError
from quantization.graph_plan import GraphPlan, Layer
from quantization.im2col import ConvWindow
from quantization.input_observation import LayerInput

MAX_BLOCK = 1024
"""Columns above which a layer's second moments are kept as blocks on the diagonal: 8 MiB each."""


def compile_taps(
    model: bytes, plan: GraphPlan, float_layers: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """Return the skeleton of the tap graph.

    Args:
        model: Canonical model.
        plan: What `graph.analyze` says of it.
        float_layers: As in the policy of the artifact whose files the graph will read.
    """
    draft = Draft.from_model(onnx.load_model_from_string(model))
    writer = ObservationWriter(draft, plan, "channels", float_layers)
    for node in draft.nodes:
        writer.write(node, node.output)
    outputs = draft.output_names()
    taps = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in dict.fromkeys(layer.input for layer in plan.layers)
        if name != plan.input_name and name not in outputs
    ]
    return writer.skeleton.finish([*draft.outputs, *taps]).skeleton


def input_layout(
    model: bytes,
    plan: GraphPlan,
    exponents: Mapping[str, int] = MappingProxyType({}),
    max_block: int = MAX_BLOCK,
) -> tuple[LayerInput, ...]:
    """Return how each layer reads its input, in the plan's order.

    Args:
        model: Canonical model.
        plan: What `graph.analyze` says of it.
        exponents: Of the layers' moments (`second_moments.exponent_for`); 0 where there is none.
        max_block: Columns up to which a layer's matrix is full; wider ones get blocks of so many.

    Raises:
        UnsupportedModelError: If a convolution's padding depends on a length that is not known.
    """
    draft = Draft.from_model(onnx.load_model_from_string(model))
    infos, nodes = draft.infer(), {node.name: node for node in draft.nodes}
    layout = []
    for layer in plan.layers:
        weight = draft.tensors[layer.weight].shape
        window = None
        columns = int(weight[0] if layer.op == "MatMul" else np.prod(weight[1:]))
        if layer.op == "Conv":
            window = _window(
                nodes[layer.name], layer, weight[2:], infos.get(layer.input, TensorInfo(0, None))
            )
        block = max_block if columns > max_block else None
        layout.append(
            LayerInput(layer.name, layer.input, window, columns, exponents.get(layer.name, 0), block)
        )
    return tuple(layout)


def _window(node: onnx.NodeProto, layer: Layer, kernel: tuple[int, ...], info: TensorInfo) -> ConvWindow:
    axes = len(kernel)
    strides, dilations = (tuple(attribute(node, name, [1] * axes)) for name in ("strides", "dilations"))
    kind = attribute(node, "auto_pad", "NOTSET")
    pads = tuple(attribute(node, "pads", [0] * (2 * axes))) if kind == "NOTSET" else (0,) * (2 * axes)
    if kind.startswith("SAME"):
        lengths = (None,) * axes if info.shape is None else info.shape[2:]
        totals = [
            _same_padding(layer, *axis) for axis in zip(lengths, kernel, strides, dilations, strict=True)
        ]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = (*small, *large) if kind == "SAME_UPPER" else (*large, *small)
    return ConvWindow(kernel, strides, pads, dilations, layer.groups)


def _same_padding(layer: Layer, length: int | None, kernel: int, stride: int, dilation: int) -> int:
    """Return how many zeros along an axis make ceil(length / stride) outputs."""
    reach = (kernel - 1) * dilation + 1
    if length is None and stride > 1:
        raise UnsupportedModelError(
            f"the padding of layer {layer.name!r} depends on its input's size, which the model leaves open; export it "
            "with a fixed size"
        )
    outputs = -(-(length or reach) // stride)
    return max((outputs - 1) * stride + reach - (length or reach), 0)
