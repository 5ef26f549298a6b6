"""A mutable ONNX graph of one float input: what the rewrites of `canonical` and the compilers work on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from quantization.arrays import AnyArray
from quantization.errors import UnsupportedModelError

OPSET = 21
IR_VERSION = 10

SHAPE_SIZE = 64
"""Constants of at most so many elements may decide shapes."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What shape inference knows of a tensor.

    Attributes:
        elem_type: Number of the ONNX element type; 0 where it is unknown.
        shape: Length of each axis, None where it is dynamic; None altogether where the rank is unknown.
    """

    elem_type: int
    shape: tuple[int | None, ...] | None

    @property
    def rank(self) -> int | None:
        """Number of axes, None where it is unknown."""
        return None if self.shape is None else len(self.shape)


@dataclass(slots=True)
class Draft:
    """Nodes in topological order, and the values of every constant tensor by name."""

    nodes: list[onnx.NodeProto]
    tensors: dict[str, AnyArray]
    input: onnx.ValueInfoProto
    outputs: list[onnx.ValueInfoProto]
    opset: int = OPSET

    @classmethod
    def from_model(cls, model: onnx.ModelProto) -> "Draft":
        """Return the graph of a model whose only input that is not an initializer is its data."""
        tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in tensors]
        opset = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
        return cls(list(model.graph.node), tensors, inputs[0], list(model.graph.output), opset)

    def to_model(self) -> onnx.ModelProto:
        """Return the graph as a model without metadata, its initializers in the order of first use."""
        return self._to_model(lambda _: True)

    def _to_model(self, keeps_value: Callable[[AnyArray], bool]) -> onnx.ModelProto:
        """Return the model, with the constants whose value is not kept as further inputs."""
        used = dict.fromkeys(name for node in self.nodes for name in node.input if name in self.tensors)
        initializers: list[onnx.TensorProto] = []
        inputs = [self.input]
        for name in used:
            value = self.tensors[name]
            if keeps_value(value):
                contiguous = np.ascontiguousarray(value).reshape(value.shape)
                initializers.append(numpy_helper.from_array(contiguous, name))
            else:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                inputs.append(helper.make_tensor_value_info(name, kind, value.shape))
        graph = helper.make_graph(self.nodes, "main", inputs, self.outputs, initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=IR_VERSION
        )

    def uses(self) -> dict[str, list[onnx.NodeProto]]:
        """Return the nodes that read each tensor, a node once for every time it does."""
        uses: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                uses.setdefault(name, []).append(node)
        return uses

    def producers(self) -> dict[str, onnx.NodeProto]:
        """Return the node behind each computed tensor."""
        return {name: node for node in self.nodes for name in node.output if name}

    def output_names(self) -> set[str]:
        """Return the names of the graph's outputs."""
        return {value.name for value in self.outputs}

    def rename(self, old: str, new: str) -> None:
        """Let every node that writes or reads `old` use `new`."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new

    def fresh_name(self, wanted: str) -> str:
        """Return `wanted`, with a number where a tensor of that name exists."""
        taken = set(self.tensors) | {self.input.name} | {n for node in self.nodes for n in node.output}
        return unique_name(wanted, taken)

    def drop_unused(self) -> None:
        """Remove the nodes and constants that no output depends on."""
        needed = self.output_names()
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.tensors = {name: value for name, value in self.tensors.items() if name in needed}

    def infer(self, *, batch: int | None = None, is_strict: bool = False) -> dict[str, TensorInfo]:
        """Return what shape inference knows of every tensor.

        Args:
            batch: Length to give axis 0 of the input; None keeps what it declares.
            is_strict: Refuse a graph whose shapes contradict each other.

        Raises:
            UnsupportedModelError: If inference fails.
        """
        model = self._to_model(lambda value: value.size <= SHAPE_SIZE)  # shapes never depend on weights
        if batch is not None:
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
            for output in model.graph.output:
                output.type.tensor_type.ClearField("shape")
        try:
            graph = shape_inference.infer_shapes(model, strict_mode=is_strict, data_prop=True).graph
        except Exception as error:
            raise UnsupportedModelError(
                f"the model's shapes contradict each other: {first_line(error)}; export it again"
            ) from error
        values = [*graph.input, *graph.value_info, *graph.output]
        infos = {value.name: tensor_info(value) for value in values}
        constants = {
            name: TensorInfo(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in self.tensors.items()
        }
        return infos | constants


def unique_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or the first of `wanted_2`, `wanted_3`, ... that is not taken."""
    names = (wanted if k == 1 else f"{wanted}_{k}" for k in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    """Return what a value_info entry says."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorInfo(tensor.elem_type, None)
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TensorInfo(tensor.elem_type, shape)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:  # noqa: ANN401 - ONNX has no one type
    """Return an attribute's value, bytes as text, or the default where the node has none."""
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a control-flow node carries."""
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            yield item.g
        yield from item.graphs


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that says something, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
