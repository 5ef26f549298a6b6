"""Writing ONNX skeletons: graphs whose float and integer tensors all lie in files beside them.

A tensor's file is its `location`; several tensors share one at offsets. Shapes, axes and single values (the
bounds of a Clip, an epsilon) stay inline: they are structure, and some optimizers read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantization.arrays import AnyArray
from quantization.draft import IR_VERSION, Draft

ElementType = np.dtype[Any] | type[Any] | int
"""A NumPy type, or the number of an ONNX type that NumPy has not."""


@dataclass(frozen=True, slots=True, eq=False)  # eq=False: arrays have no single truth value
class CompiledGraph:
    """An ONNX graph and the files it reads.

    Attributes:
        skeleton: The graph, serialised; every tensor but shapes and single values is external.
        files: By location: the contents, C-contiguous; a mixed file is uint8.
    """

    skeleton: bytes
    files: dict[str, AnyArray]


class SkeletonWriter:
    """Collects the nodes and tensors of one skeleton."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.nodes: list[onnx.NodeProto] = []
        self.files: dict[str, AnyArray] = {}
        self._initializers: dict[str, TensorProto] = {}

    def add(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:  # noqa: ANN401 - ONNX has no one type
        """Append a node of the standard operator set."""
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))

    def keep(self, node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Append a copy of a node with other inputs and outputs, and the constants that it reads."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        copy.output[:] = outputs
        self.nodes.append(copy)
        for name in inputs:
            if name in self.draft.tensors:
                self.constant(name, self.draft.tensors[name])

    def constant(self, name: str, value: AnyArray) -> None:
        """Add a constant: inline where it is an integer or a single value, else as a file of its own."""
        if name in self._initializers:
            return
        if value.size <= 1 or not np.issubdtype(value.dtype, np.floating):
            contiguous = np.ascontiguousarray(value).reshape(value.shape)
            self._initializers[name] = numpy_helper.from_array(contiguous, name)
            return
        self.files[name] = np.ascontiguousarray(value)
        self.external(name, value.dtype, value.shape, name, 0)

    def external(
        self, name: str, dtype: ElementType, shape: Sequence[int], location: str, offset: int
    ) -> None:
        """Declare a tensor that lies in the file `location`, `offset` bytes from its start."""
        kind = dtype if isinstance(dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        item_bytes = helper.tensor_dtype_to_np_dtype(kind).itemsize
        length = int(np.prod(shape, dtype=np.int64)) * item_bytes
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        self._initializers[name] = tensor

    def finish(self, outputs: Sequence[onnx.ValueInfoProto]) -> CompiledGraph:
        """Return the graph with these outputs, without the nodes and tensors that none of them needs."""
        needed = {value.name for value in outputs}
        nodes: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        tensors = [tensor for name, tensor in self._initializers.items() if name in needed]
        graph = helper.make_graph(nodes[::-1], "main", [self.draft.input], list(outputs), tensors)
        opsets = [helper.make_opsetid("", self.draft.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return CompiledGraph(model.SerializeToString(deterministic=True), dict(sorted(self.files.items())))
