"""Integer-exact simulation of an inference graph in NumPy: what a device computes, without a device.

A layer's result equals ONNX Runtime's bit for bit (on a CPU whose u8 x s8 products do not saturate: VNNI, or
7-bit weights), because it is computed as ONNX Runtime does (Jacob et al. 2018, arXiv:1712.05877, with a float
multiplier):

1. accumulator = sum (x - zero point) * w, an integer;
2. plus bias = rint(float bias / (input scale * weight scale)), in float32, ties to even;
3. codes = clamp(rint(float32(accumulator) * (input scale * weight scale / output scale)) + zero point).

A MatMul's float result is accumulator * (input scale * weight scale). Operators between layers run on
dequantized values and are rounded once, which may differ from an integer kernel's result by one code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from quantization.affine import AffineParams, dequantize, quantize
from quantization.arrays import AnyArray, CodeArray, FloatArray
from quantization.draft import attribute
from quantization.errors import MalformedError
from quantization.integer_conv import ConvGeometry, accumulate_conv
from quantization.skeleton import CompiledGraph


@dataclass(frozen=True, slots=True, eq=False)  # eq=False: arrays have no single truth value
class IntegerLayer:
    """One layer of an inference graph with everything its kernel needs.

    Attributes:
        name: Name of its node.
        op: "Conv", "Gemm" or "MatMul".
        input_codes: Tensor with the codes that it reads.
        output: Tensor with its codes, or with its float values for MatMul.
        input_params: Of what it reads, per tensor.
        weight: Codes: (O, I/groups, ...) for Conv, (O, I) for Gemm, (I, O) for MatMul.
        weight_scale: Per output channel, float32 (O,).
        bias: Float32 (O,), or None.
        output_params: Of its codes; None where its result is float.
        geometry: Of a Conv, else None.
    """

    name: str
    op: str
    input_codes: str
    output: str
    input_params: AffineParams
    weight: CodeArray
    weight_scale: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    output_params: AffineParams | None
    geometry: ConvGeometry | None


def simulate_layer(layer: IntegerLayer, codes: CodeArray) -> AnyArray:
    """Return the layer's result: uint8 codes, or float32 values where it has no output params.

    Args:
        layer: The layer.
        codes: uint8, of the shape that the layer takes: (N, C, ...) for Conv, (N, I) for Gemm, (..., I) for
            MatMul.
    """
    x = codes.astype(np.int32) - int(layer.input_params.zero_point)
    unit = layer.input_params.scale * layer.weight_scale  # float32: one step of the accumulator
    accumulator = _accumulate(layer, x)
    per_channel = (-1, *(1,) * (accumulator.ndim - 2)) if layer.op == "Conv" else (-1,)
    if layer.bias is not None:
        bias = np.rint(layer.bias / unit).astype(np.int32)
        accumulator = accumulator + bias.reshape(per_channel)
    values = accumulator.astype(np.float32)
    if layer.output_params is None:
        return values * unit.reshape(per_channel)
    return requantize(values, (unit / layer.output_params.scale).reshape(per_channel), layer.output_params)


def requantize(accumulator: FloatArray, multiplier: FloatArray, params: AffineParams) -> CodeArray:
    """Return uint8 codes of accumulator * multiplier, computed in float32, ties to even."""
    rounded = np.rint(accumulator * multiplier) + np.float32(params.zero_point)
    return np.clip(rounded, params.qmin, params.qmax).astype(np.uint8)


def _accumulate(layer: IntegerLayer, x: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the exact sums; float64 products of codes are exact and use the fast matrix product."""
    if layer.geometry is not None:
        return accumulate_conv(x, layer.weight, layer.geometry)
    weight = (layer.weight.T if layer.op == "Gemm" else layer.weight).astype(np.float64)
    return np.asarray(x.astype(np.float64) @ weight).astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedGraph:
    """An inference graph taken apart.

    Attributes:
        nodes: In topological order.
        constants: By name, files included.
        layers: By name of the node.
        outputs: Names of the graph's outputs.
        input_name: Name of its input.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, AnyArray]
    layers: Mapping[str, IntegerLayer]
    outputs: tuple[str, ...]
    input_name: str


def load_graph(compiled: CompiledGraph) -> SimulatedGraph:
    """Return a compiled inference graph, ready to simulate.

    Raises:
        MalformedError: If a tensor lies outside its file.
    """
    graph = onnx.load_model_from_string(compiled.skeleton).graph
    constants = {tensor.name: _read_tensor(tensor, compiled.files) for tensor in graph.initializer}
    from_codes = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = {
        node.name: _integer_layer(node, graph.node, constants)
        for node in graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"} and f"{node.input[1]}".endswith(":float")
        if node.input[1] in from_codes  # a layer that is kept in float has another operator there
    }
    outputs = tuple(value.name for value in graph.output)
    return SimulatedGraph(tuple(graph.node), constants, layers, outputs, graph.input[0].name)


def simulate_graph(compiled: CompiledGraph, inputs: FloatArray) -> dict[str, AnyArray]:
    """Return what the inference graph computes for one batch.

    Args:
        compiled: What `compile_inference` returned.
        inputs: float32, as the model takes them.

    Returns:
        By name: the graph's outputs, float32; and for every site `<site>:codes`, uint8.
    """
    graph = load_graph(compiled)
    values: dict[str, AnyArray] = {graph.input_name: np.asarray(inputs, np.float32), **graph.constants}
    for node in graph.nodes:
        layer = graph.layers.get(node.name) if node.name else None
        if layer is not None:
            values[layer.output] = simulate_layer(layer, values[layer.input_codes])
        elif node.output[0] not in values:  # codes of a layer are there before their own node comes
            _run_node(node, values)
    wanted = [name for name in values if name in graph.outputs or name.endswith(":codes")]
    return {name: values[name] for name in wanted}


def compare_layers(compiled: CompiledGraph, observed: Mapping[str, AnyArray]) -> dict[str, int]:
    """Return for every layer how many values its simulation gets differently, from what a runtime computed.

    Args:
        compiled: What `compile_inference` returned.
        observed: What a runtime gave for the outputs of `expose_layers`.
    """
    layers = load_graph(compiled).layers.values()
    return {
        layer.name: int(
            np.count_nonzero(simulate_layer(layer, observed[layer.input_codes]) != observed[layer.output])
        )
        for layer in layers
    }


def expose_layers(compiled: CompiledGraph) -> bytes:
    """Return the skeleton with what layers read and write (codes; of MatMul, values) as further outputs."""
    model = onnx.load_model_from_string(compiled.skeleton)
    shown = {value.name for value in model.graph.output}
    for layer in load_graph(compiled).layers.values():
        for name in (layer.input_codes, layer.output):
            if name not in shown:
                shown.add(name)
                is_float = name == layer.output and layer.output_params is None
                kind = onnx.TensorProto.FLOAT if is_float else onnx.TensorProto.UINT8
                model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return bytes(model.SerializeToString(deterministic=True))


def _integer_layer(
    node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, AnyArray]
) -> IntegerLayer:
    producers = {name: other for other in nodes for name in other.output}
    read, weights = producers[node.input[0]], producers[node.input[1]]
    output, params = _result(node, nodes, constants)
    weight = constants[weights.input[0]]
    return IntegerLayer(
        name=node.name,
        op=node.op_type,
        input_codes=read.input[0],
        output=output,
        input_params=_params(read, constants),
        weight=weight,
        weight_scale=constants[weights.input[1]],
        bias=constants[node.input[2]] if len(node.input) > 2 else None,
        output_params=params,
        geometry=_geometry(node, weight.ndim - 2) if node.op_type == "Conv" else None,
    )


def _result(
    node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, AnyArray]
) -> tuple[str, AffineParams | None]:
    """Return the tensor of codes behind a layer and its activation, or the float tensor of a MatMul."""
    name = node.output[0]
    while node.op_type != "MatMul":
        reader = next(other for other in nodes if name in other.input)
        name = reader.output[0]
        if reader.op_type == "QuantizeLinear":
            return name, _params(reader, constants)
    return name, None


def _params(node: onnx.NodeProto, constants: Mapping[str, AnyArray]) -> AffineParams:
    return AffineParams(np.asarray(constants[node.input[1]]), np.asarray(constants[node.input[2]]))


def _geometry(node: onnx.NodeProto, axes: int) -> ConvGeometry:
    return ConvGeometry(
        strides=tuple(attribute(node, "strides", [1] * axes)),
        dilations=tuple(attribute(node, "dilations", [1] * axes)),
        pads=tuple(attribute(node, "pads", ())),
        auto_pad=attribute(node, "auto_pad", "NOTSET"),
        groups=int(attribute(node, "group", 1)),
    )


def _read_tensor(tensor: onnx.TensorProto, files: Mapping[str, AnyArray]) -> AnyArray:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(entries["offset"]), int(entries["length"])
    content = np.ascontiguousarray(files[entries["location"]]).reshape(-1).view(np.uint8)
    if offset + length > content.size:
        raise MalformedError(f"tensor {tensor.name!r} ends at byte {offset + length} of {content.size}")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return content[offset : offset + length].copy().view(dtype).reshape(tuple(tensor.dims))


def _run_node(node: onnx.NodeProto, values: dict[str, AnyArray]) -> None:
    """Run an operator between layers, in float32 or on codes that it moves."""
    if node.op_type == "QuantizeLinear":
        values[node.output[0]] = quantize(values[node.input[0]], _params(node, values))
        return
    if node.op_type == "DequantizeLinear":
        if node.output[0].endswith(":float"):  # weights: layers read the codes
            return
        values[node.output[0]] = dequantize(values[node.input[0]], _params(node, values))
        return
    if any(name and name not in values for name in node.input):
        return  # the activation behind a layer, which is part of it
    inputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.GraphProto(name="node", node=[node], input=inputs, output=outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    feeds = {name: values[name] for name in node.input if name}
    results = list(ReferenceEvaluator(model).run(None, feeds))
    values.update({value.name: np.asarray(result) for value, result in zip(outputs, results, strict=True)})
