"""What of a canonical model becomes integer: layers, sites, and the operators that stay float.

Rules, each one what ONNX Runtime needs to run an operator in integers (checked by counting its fused
operators):

1. A Conv or Gemm is a layer: its input and its output are quantized, its output behind the activation that
   follows (Relu, or Clip from 0), with nothing between. What comes out of such an activation is never
   negative.
2. A MatMul of more than two axes with a constant weight is a layer whose input alone is quantized: in
   transformers attention, Softmax, LayerNormalization, GELU and the sums between them stay float.
3. Add, Concat and pooling work on codes where all their operands are quantized anyway, and quantize their
   result.
4. Operators that only move values (MaxPool, Reshape, Slice, Pad with zero, ...) move codes, with the
   parameters of the site that they move.
"""

import numpy as np
import onnx

from quantization.canonical import canonicalize
from quantization.draft import Draft, TensorInfo, attribute, subgraphs
from quantization.errors import UnsupportedModelError
from quantization.graph_plan import FloatOp, GraphPlan, Layer, Site
from quantization.rewrites import has_input

__all__ = ["FloatOp", "GraphPlan", "Layer", "Site", "analyze", "canonicalize"]

INTEGER_OPS = frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool"})
"""Operators besides the layers that have an integer kernel and gain by it."""

MOVING_OPS = frozenset(
    {"Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that compute no new value."""


def analyze(canonical_bytes: bytes) -> GraphPlan:
    """Return how the model is quantized.

    Args:
        canonical_bytes: What `canonicalize` returned.

    Raises:
        UnsupportedModelError: If no layer of the model can be quantized.
    """
    draft = Draft.from_model(onnx.load_model_from_string(canonical_bytes))
    return _Analysis(draft).plan()


class _Analysis:
    """One pass over a draft; what it finds so far."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.infos = draft.infer()
        self.uses = draft.uses()
        self.outputs = draft.output_names()
        self.before_layer = _tensors_before_layers(draft)
        self.layer_inputs = {node.input[0] for node in draft.nodes if is_layer(draft, node)}
        self.layers: list[Layer] = []
        self.sites: dict[str, Site] = {}
        self.roots: dict[str, str] = {}  # tensor that exists as codes -> its site
        self.integer_ops: set[str] = set()
        self.moving_ops: set[str] = set()
        self.activations: set[str] = set()

    def plan(self) -> GraphPlan:
        draft = self.draft
        if draft.input.name in self.layer_inputs:
            self.add_site(draft.input.name, is_integer=False)
        for node in draft.nodes:
            self.visit(node)
        if not self.layers:
            raise UnsupportedModelError("no Conv, Gemm or MatMul of the model can be quantized")
        self.drop_idle_moves()
        return GraphPlan(
            layers=tuple(self.layers),
            sites=tuple(self.sites.values()),
            float_ops=self.float_ops(),
            integer_ops=frozenset(self.integer_ops),
            moving_ops=frozenset(self.moving_ops),
            input_name=draft.input.name,
            input_shape=self.infos[draft.input.name].shape or (),
            output_names=tuple(value.name for value in draft.outputs),
        )

    def visit(self, node: onnx.NodeProto) -> None:
        if is_layer(self.draft, node):
            self.visit_layer(node)
        elif node.name in self.activations:
            return
        elif node.op_type in INTEGER_OPS and self.is_integer_op(node):
            self.integer_ops.add(node.name)
            self.add_result(node, [self.sites[self.roots[name]] for name in node.input])
        elif self.moves_codes(node):
            self.moving_ops.add(node.name)
            for name in node.output:
                self.roots[name] = self.roots[node.input[0]]
        else:
            for name in (name for name in node.output if name in self.layer_inputs):
                self.add_site(
                    name, is_integer=False, maximum=None, is_positive=node.op_type in {"Relu", "Sigmoid"}
                )

    def visit_layer(self, node: onnx.NodeProto) -> None:
        weight = self.draft.tensors[node.input[1]]
        is_matmul = node.op_type == "MatMul"
        axis = 1 if is_matmul else 0
        output_site = None if is_matmul else self.add_result(node, [])
        self.layers.append(
            Layer(
                name=node.name,
                op=node.op_type,
                weight=node.input[1],
                bias=None if is_matmul else node.input[2],
                input=node.input[0],
                input_site=self.roots[node.input[0]],
                raw_output=node.output[0],
                output_site=output_site,
                channels=int(weight.shape[axis]),
                weight_axis=axis,
                groups=int(attribute(node, "group", 1)),
                is_corrected=not is_matmul and node.output[0] in self.before_layer,
            )
        )
        if is_matmul and node.output[0] in self.layer_inputs:
            self.add_site(node.output[0], is_integer=False)

    def add_result(self, node: onnx.NodeProto, operands: list[Site]) -> str:
        """Add the site behind an integer operator and the activation that fuses with it; return its name."""
        tensor, maximum = node.output[0], None
        is_positive = bool(operands) and all(site.minimum_is_zero for site in operands)
        if node.op_type != "Add":
            maxima = [site.maximum for site in operands]
            maximum = None if None in maxima else max((m for m in maxima if m is not None), default=None)
        readers = self.uses.get(tensor, [])
        if len(readers) == 1 and tensor not in self.outputs:
            bounds = activation_bounds(self.draft, readers[0])
            if bounds is not None:
                self.activations.add(readers[0].name)
                tensor, is_positive, maximum = readers[0].output[0], True, bounds[1]
        return self.add_site(tensor, is_integer=True, maximum=maximum, is_positive=is_positive)

    def add_site(
        self, tensor: str, *, is_integer: bool, maximum: float | None = None, is_positive: bool = False
    ) -> str:
        shape = self.infos.get(tensor, TensorInfo(0, None)).shape
        lengths = tuple(n for n in (shape or ())[1:] if n)
        is_known = shape is not None and len(lengths) == len(shape) - 1
        self.sites[tensor] = Site(
            name=tensor,
            minimum_is_zero=is_positive,
            maximum=maximum,
            is_output=tensor not in self.before_layer,
            is_computed_in_integers=is_integer,
            sample_size=int(np.prod(lengths, dtype=np.int64)) if is_known else None,
            row_lengths=lengths,
        )
        self.roots[tensor] = tensor
        return tensor

    def is_integer_op(self, node: onnx.NodeProto) -> bool:
        return all(name in self.roots for name in node.input)

    def moves_codes(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in MOVING_OPS or node.input[0] not in self.roots:
            return False
        if node.op_type == "Pad":
            return self.pads_with_zero(node)
        return node.op_type != "MaxPool" or len(node.output) == 1

    def pads_with_zero(self, node: onnx.NodeProto) -> bool:
        if attribute(node, "mode", "constant") != "constant" or not has_input(node, 2):
            return True
        value = self.draft.tensors.get(node.input[2])
        return value is not None and not np.any(value)

    def drop_idle_moves(self) -> None:
        """Leave moves float that no operator on codes reads."""
        for node in reversed(self.draft.nodes):
            readers = [reader for name in node.output for reader in self.uses.get(name, [])]
            is_read = any(
                r.name in self.integer_ops or r.name in self.moving_ops or is_layer(self.draft, r)
                for r in readers
            )
            if node.name in self.moving_ops and not is_read:
                self.moving_ops.remove(node.name)
                for name in node.output:
                    del self.roots[name]

    def float_ops(self) -> tuple[FloatOp, ...]:
        integer = (
            self.integer_ops | self.moving_ops | self.activations | {layer.name for layer in self.layers}
        )
        return tuple(
            FloatOp(node.name, node.op_type, _reason(self.draft, node))
            for node in self.draft.nodes
            if node.name not in integer and node.op_type not in MOVING_OPS and self.writes_floats(node)
        )

    def writes_floats(self, node: onnx.NodeProto) -> bool:
        types = [self.infos.get(name, TensorInfo(0, None)).elem_type for name in node.output if name]
        return any(kind in {0, onnx.TensorProto.FLOAT} for kind in types)


def is_layer(draft: Draft, node: onnx.NodeProto) -> bool:
    """Return whether the node is a Conv, Gemm or MatMul that the canonical form made ready to quantize."""
    if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.input[0] in draft.tensors:
        return False
    weight = draft.tensors.get(node.input[1])
    if weight is None or weight.dtype != np.float32 or weight.size == 0:
        return False
    if node.op_type == "MatMul":
        return weight.ndim == 2
    bias = draft.tensors.get(node.input[2]) if has_input(node, 2) else None
    is_plain = node.op_type == "Conv" or (
        bool(attribute(node, "transB", 0)) and not attribute(node, "transA", 0)
    )
    return bias is not None and bias.shape == weight.shape[:1] and is_plain


def activation_bounds(draft: Draft, node: onnx.NodeProto) -> tuple[float, float | None] | None:
    """Return (0, maximum or None) if the node is an activation that fuses with the operator before it."""
    if node.op_type == "Relu":
        return 0.0, None
    if node.op_type != "Clip" or not has_input(node, 1):
        return None
    low = draft.tensors.get(node.input[1])
    high = draft.tensors.get(node.input[2]) if has_input(node, 2) else np.float32(np.inf)
    if low is None or high is None or float(low) != 0.0 or not float(high) > 0.0:
        return None
    return 0.0, float(high) if np.isfinite(high) else None


def _tensors_before_layers(draft: Draft) -> set[str]:
    """Return the tensors that some layer's input depends on."""
    before: set[str] = set()
    for node in reversed(draft.nodes):
        if is_layer(draft, node) or before.intersection(node.output):
            before.update(node.input)
    return before


def _reason(draft: Draft, node: onnx.NodeProto) -> str:
    if any(True for _ in subgraphs(node)):
        return "control flow"
    if node.op_type in {"Conv", "Gemm", "MatMul"}:
        if any(name in draft.tensors for name in node.input[:2]):
            return "its weight is not in a form that has an integer kernel"
        return "both operands are activations"
    if node.op_type == "BatchNormalization":
        return "it follows no Conv or Gemm that it could be folded into"
    if node.op_type in INTEGER_OPS:
        return "an operand is float"
    return "it has no integer kernel"
