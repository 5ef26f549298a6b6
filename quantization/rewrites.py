"""Rewrites that bring a float graph into the form that `graph.analyze` reads, and keep what it computes."""

from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from quantization.arrays import AnyArray
from quantization.draft import Draft, TensorInfo, attribute, first_line
from quantization.errors import UnsupportedModelError

MAX_FOLDED_ELEMENTS = 1 << 26
"""No constant that folding computes may be larger."""

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Pow"}
_FOLDABLE = _ELEMENTWISE | {
    "Cast", "Concat", "Identity", "Neg", "Reciprocal", "Reshape", "Slice", "Sqrt", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
"""Operators whose result is no larger than their operands, broadcast."""


def lift_constants(draft: Draft) -> None:
    """Turn Constant nodes into constants."""
    for node in draft.nodes:
        if node.op_type == "Constant":
            draft.tensors[node.output[0]] = _constant_value(node)
    draft.nodes = [node for node in draft.nodes if node.op_type != "Constant"]


def _constant_value(node: onnx.NodeProto) -> AnyArray:
    for item in node.attribute:
        value = helper.get_attribute_value(item)
        if item.name == "value":
            return numpy_helper.to_array(value)
        if item.name in {"value_float", "value_floats"}:
            return np.array(value, np.float32)
        if item.name in {"value_int", "value_ints"}:
            return np.array(value, np.int64)
    raise UnsupportedModelError(
        f"constant {node.output[0]!r} is neither dense nor numeric; export it as a tensor"
    )


def fold_constants(draft: Draft) -> None:
    """Replace nodes that read nothing but constants by their result, where that cannot grow beyond bounds."""
    kept: list[onnx.NodeProto] = []
    outputs = draft.output_names()
    for node in draft.nodes:
        operands = [draft.tensors.get(name) for name in node.input if name]
        values = [value for value in operands if value is not None]
        is_constant = len(values) == len(operands) > 0 and node.op_type in _FOLDABLE
        if not is_constant or outputs.intersection(node.output) or not _is_small(node, values):
            kept.append(node)
            continue
        feeds = {name: draft.tensors[name] for name in node.input if name}
        try:
            results = ReferenceEvaluator(_single_node_model(node, draft.opset)).run(None, feeds)
        except Exception as error:  # whatever the operator's reference code throws
            raise UnsupportedModelError(
                f"constant {node.output[0]!r} cannot be computed ({first_line(error)}); "
                "export the model again"
            ) from error
        draft.tensors[node.output[0]] = np.asarray(next(iter(results)))
    draft.nodes = kept


def _single_node_model(node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    inputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.GraphProto(name="constant", node=[node], input=inputs, output=outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _is_small(node: onnx.NodeProto, values: list[AnyArray]) -> bool:
    if node.op_type in _ELEMENTWISE:
        try:
            return prod(np.broadcast_shapes(*(v.shape for v in values))) <= MAX_FOLDED_ELEMENTS
        except ValueError:
            return False
    return sum(v.size for v in values) <= MAX_FOLDED_ELEMENTS


def remove_no_ops(draft: Draft) -> None:
    """Remove Identity nodes, and Dropout nodes as they act at inference.

    Raises:
        UnsupportedModelError: If a Dropout or BatchNormalization is in training mode.
    """
    kept: list[onnx.NodeProto] = []
    for node in draft.nodes:
        _refuse_training_mode(draft, node)
        removable = node.op_type in {"Identity", "Dropout"} and not any(node.output[1:])
        if not removable or not _bypass(draft, node, kept):
            kept.append(node)
    draft.nodes = kept


def _refuse_training_mode(draft: Draft, node: onnx.NodeProto) -> None:
    is_training = node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0)
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        mode = draft.tensors.get(node.input[2])
        is_training = mode is None or bool(mode)
    if is_training:
        raise UnsupportedModelError(
            f"{node.op_type} {node.name!r} is in training mode; export the model for inference (model.eval())"
        )


def _bypass(draft: Draft, node: onnx.NodeProto, kept: list[onnx.NodeProto]) -> bool:
    """Let readers of the node's output read its input; return whether that could be done."""
    source, target = node.input[0], node.output[0]
    if target not in draft.output_names():
        for reader in draft.nodes:
            for i, name in enumerate(reader.input):
                if name == target:
                    reader.input[i] = source
        return True
    if not any(source in earlier.output for earlier in kept) or source in draft.output_names():
        return False  # an output that is the input, a constant or another output keeps its node
    draft.rename(source, target)
    return True


def matmul_to_gemm(draft: Draft, infos: dict[str, TensorInfo], batch: int) -> None:
    """Turn MatMul of one row per example with a constant matrix into Gemm.

    Args:
        draft: Changed in place.
        infos: What is known of its tensors for a batch of this length.
        batch: Length of the first axis of a tensor with one row per example.
    """
    for node in draft.nodes:
        weight = draft.tensors.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
            continue
        if _has_row_per_example(infos, node.input[0], batch):
            draft.tensors[node.input[1]] = np.ascontiguousarray(weight.T)
            node.CopyFrom(helper.make_node("Gemm", node.input, node.output, name=node.name, transB=1))


def _has_row_per_example(infos: dict[str, TensorInfo], tensor: str, batch: int) -> bool:
    shape = infos.get(tensor, TensorInfo(0, None)).shape
    return shape is not None and len(shape) == 2 and shape[0] in {batch, None}


def gemm_to_matmul(draft: Draft, infos: dict[str, TensorInfo], batch: int) -> None:
    """Turn Gemm over rows that are not examples (a transformer's tokens) into MatMul and Add.

    Their results stay float, as those of a transformer's other linear layers.

    Args:
        draft: Changed in place; its Gemms are in normal form.
        infos: What is known of its tensors for a batch of this length.
        batch: Length of the first axis of a tensor with one row per example.
    """
    nodes: list[onnx.NodeProto] = []
    for node in draft.nodes:
        weight = draft.tensors.get(node.input[1]) if node.op_type == "Gemm" else None
        is_normal = weight is not None and has_input(node, 2) and draft.tensors.get(node.input[2]) is not None
        if weight is None or not is_normal or _has_row_per_example(infos, node.input[0], batch):
            nodes.append(node)
            continue
        draft.tensors[node.input[1]] = np.ascontiguousarray(weight.T)
        nodes.extend(_token_linear(draft, node))
    draft.nodes = nodes


def _token_linear(draft: Draft, gemm: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return MatMul and Add of three axes; ONNX Runtime would make a float Gemm of two again."""
    source, weight, bias = gemm.input
    target = gemm.output[0]
    rows, product, total, axis = (
        draft.fresh_name(f"{target}_{suffix}") for suffix in ("rows", "product", "sum", "axis")
    )
    draft.tensors[axis] = np.array([0], np.int64)
    return [
        helper.make_node("Unsqueeze", [source, axis], [rows], name=f"{gemm.name}_unsqueeze"),
        helper.make_node("MatMul", [rows, weight], [product], name=gemm.name),
        helper.make_node("Add", [product, bias], [total], name=f"{gemm.name}_bias"),
        helper.make_node("Squeeze", [total, axis], [target], name=f"{gemm.name}_squeeze"),
    ]


def normalise_gemm(draft: Draft) -> None:
    """Give every Gemm with constant operands alpha = beta = 1, its weight as (O, I) and its bias as (O,)."""
    for node in draft.nodes:
        weight = draft.tensors.get(node.input[1]) if node.op_type == "Gemm" else None
        if weight is None or weight.dtype != np.float32 or weight.ndim != 2 or attribute(node, "transA", 0):
            continue
        rows = weight if attribute(node, "transB", 0) else weight.T
        bias = _gemm_bias(draft, node, rows.shape[0])
        if bias is None:
            continue
        beta = np.float32(attribute(node, "beta", 1.0))
        name = node.input[2] if has_input(node, 2) else draft.fresh_name(f"{node.input[1]}_bias")
        inputs = [node.input[0], node.input[1], name]
        draft.tensors[node.input[1]] = np.ascontiguousarray(rows * np.float32(attribute(node, "alpha", 1.0)))
        draft.tensors[name] = bias * beta
        node.CopyFrom(helper.make_node("Gemm", inputs, [node.output[0]], name=node.name, transB=1))


def _gemm_bias(draft: Draft, node: onnx.NodeProto, channels: int) -> AnyArray | None:
    """Return the bias as (O,), zeros where there is none, None where it is not the same for every row."""
    if not has_input(node, 2):
        return np.zeros(channels, np.float32)
    bias = draft.tensors.get(node.input[2])
    if bias is None or bias.size not in {1, channels} or bias.shape[:-1].count(1) != len(bias.shape[:-1]):
        return None
    if bias.ndim == 2 and bias.shape[1] != channels and channels != 1 and bias.size != 1:
        return None
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (channels,)))


def has_input(node: onnx.NodeProto, index: int) -> bool:
    """Return whether the node has the (optional) input."""
    return len(node.input) > index and bool(node.input[index])


def separate_weights(draft: Draft) -> None:
    """Give every Conv and Gemm a weight of its own, and every Conv a bias."""
    readers = draft.uses()
    for node in draft.nodes:
        weight = draft.tensors.get(node.input[1]) if node.op_type in {"Conv", "Gemm", "MatMul"} else None
        if weight is None or weight.dtype != np.float32:
            continue
        _own(draft, readers, node, 1)
        if has_input(node, 2) and node.input[2] in draft.tensors:
            _own(draft, readers, node, 2)
        elif node.op_type == "Conv" and not has_input(node, 2):
            del node.input[2:]
            node.input.append(draft.fresh_name(f"{node.input[1]}_bias"))
            draft.tensors[node.input[2]] = np.zeros(weight.shape[0], np.float32)


def _own(draft: Draft, readers: dict[str, list[onnx.NodeProto]], node: onnx.NodeProto, index: int) -> None:
    name = node.input[index]
    if len(readers.get(name, [])) > 1:
        readers[name].remove(node)
        node.input[index] = draft.fresh_name(name)
        draft.tensors[node.input[index]] = draft.tensors[name]


def spatial_mean_to_pool(draft: Draft, infos: dict[str, TensorInfo]) -> None:
    """Turn ReduceMean over all spatial axes into GlobalAveragePool, which has an integer kernel."""
    nodes: list[onnx.NodeProto] = []
    for node in draft.nodes:
        rank = infos.get(node.input[0], TensorInfo(0, None)).rank if node.op_type == "ReduceMean" else None
        axes = draft.tensors.get(node.input[1]) if rank and has_input(node, 1) else None
        if (
            rank is None
            or rank < 3
            or axes is None
            or sorted(int(a) % rank for a in axes) != list(range(2, rank))
        ):
            nodes.append(node)
            continue
        is_kept = attribute(node, "keepdims", 1)
        pooled = node.output[0] if is_kept else draft.fresh_name(f"{node.output[0]}_pooled")
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
        if not is_kept:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flatten"))
    draft.nodes = nodes
