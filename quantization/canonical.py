"""The canonical form of a float model: what its digest names, and what everything is compiled from.

One self-contained graph of operator set 21 or newer with one float32 input whose first axis is a dynamic
batch:

1. BatchNormalization and constants per channel are folded into the Conv or Gemm before them.
2. Every Gemm has alpha = beta = 1, its weight as (O, I) and a bias (O,); every Conv has a bias; no two share
   a weight. Linear layers over tokens are MatMul and Add.
3. Constants are initializers; what only constants decide is computed; Identity, Dropout and dead nodes are
   gone.
4. Names are unique and of [A-Za-z0-9_.-] only, so that a tensor's name is a file's.
5. No metadata, doc strings, producer or stack traces: the same model gives the same bytes on every machine.
"""

import re

import numpy as np
import onnx

from quantization.draft import Draft, TensorInfo, unique_name
from quantization.errors import UnsupportedModelError
from quantization.folding import fold_channel_affines
from quantization.model_reader import read_model
from quantization.rewrites import (
    fold_constants,
    gemm_to_matmul,
    lift_constants,
    matmul_to_gemm,
    normalise_gemm,
    remove_no_ops,
    separate_weights,
    spatial_mean_to_pool,
)

RESERVED_NAMES = frozenset({"ranges", "channels", "reference"})
"""Files of an artifact that are not a tensor's."""

MAX_NAME_LENGTH = 128

TRIAL_BATCH = 1009
"""A batch that no other axis has: what has this length is the batch."""

_FREE_BATCH = "export it with a dynamic batch axis (dynamic_shapes in torch.onnx.export)"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def canonicalize(model_bytes: bytes) -> bytes:
    """Return the model in canonical form; the same bytes give the same bytes, and canonical bytes themselves.

    Raises:
        UnsupportedModelError: If the bytes are not an ONNX model, or one that Quantfleet cannot quantize; the
            message names what is wrong and the remedy.
    """
    draft = Draft.from_model(read_model(model_bytes))
    lift_constants(draft)
    remove_no_ops(draft)
    fold_constants(draft)
    make_batch_dynamic(draft)
    draft.drop_unused()
    infos = draft.infer(batch=TRIAL_BATCH)
    spatial_mean_to_pool(draft, infos)
    separate_weights(draft)
    matmul_to_gemm(draft, infos, TRIAL_BATCH)
    normalise_gemm(draft)
    gemm_to_matmul(draft, infos, TRIAL_BATCH)
    fold_channel_affines(draft)
    draft.drop_unused()
    _refuse_nothing_to_quantize(draft)
    _refuse_values_that_are_not_finite(draft)
    rename_all(draft)
    _strip(draft)
    model = draft.to_model()
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def make_batch_dynamic(draft: Draft) -> None:
    """Free the first axis of the input, after making sure that the graph works for any length of it.

    Constant shapes that hold the fixed batch (Reshape and Expand) are rewritten to follow the input.

    Raises:
        UnsupportedModelError: If shapes contradict each other, or an output's first axis would not follow.
    """
    first = draft.input.type.tensor_type.shape.dim[0]
    if first.HasField("dim_value"):
        draft.infer(is_strict=True)
        _free_constant_shapes(draft, first.dim_value, draft.infer())
    first.Clear()
    first.dim_param = "batch"
    try:
        infos = draft.infer(batch=TRIAL_BATCH, is_strict=True)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error} or {_FREE_BATCH}, if it is fixed inside the model") from error
    for output in draft.outputs:
        shape = infos[output.name].shape
        if not shape or shape[0] not in {TRIAL_BATCH, None}:
            raise UnsupportedModelError(
                f"output {output.name!r} does not follow the batch, which is fixed inside the model; "
                f"{_FREE_BATCH}"
            )
        output.type.tensor_type.ClearField("shape")
        _declare(output, shape)


def _declare(output: onnx.ValueInfoProto, shape: tuple[int | None, ...]) -> None:
    for axis, length in enumerate(shape):
        dim = output.type.tensor_type.shape.dim.add()
        if axis == 0:
            dim.dim_param = "batch"
        elif length is not None:
            dim.dim_value = length


def _free_constant_shapes(draft: Draft, batch: int, infos: dict[str, TensorInfo]) -> None:
    for node in draft.nodes:
        target = draft.tensors.get(node.input[1]) if node.op_type in {"Reshape", "Expand"} else None
        source = infos.get(node.input[0], TensorInfo(0, None)).shape
        is_batch = (
            target is not None and source and target.size > 0 and source[0] == batch == target.reshape(-1)[0]
        )
        if target is None or not is_batch or node.input[0] in draft.tensors:
            continue
        if node.op_type == "Reshape" and not (target[1:] != 0).all():
            continue
        freed = target.copy()
        freed[0] = 0 if node.op_type == "Reshape" else 1
        kept = [item for item in node.attribute if item.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.input[1] = draft.fresh_name(node.input[1])
        draft.tensors[node.input[1]] = freed


def _refuse_nothing_to_quantize(draft: Draft) -> None:
    for node in draft.nodes:
        weight = draft.tensors.get(node.input[1]) if node.op_type in {"Conv", "Gemm", "MatMul"} else None
        if weight is not None and weight.dtype == np.float32:
            return
    raise UnsupportedModelError(
        "the model has no Conv, Gemm or MatMul with constant weights, so there is nothing to quantize; "
        "give a trained model with such layers"
    )


def _refuse_values_that_are_not_finite(draft: Draft) -> None:
    for node in draft.nodes:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        for name in node.input:
            if name in draft.tensors and not np.isfinite(draft.tensors[name]).all():
                raise UnsupportedModelError(
                    f"the weights of {node.op_type} {node.name!r} are not all finite (BatchNormalization included); "
                    "repair the model before quantizing it"
                )


def safe_name(name: str, fallback: str) -> str:
    """Return the name with everything but [A-Za-z0-9_.-] replaced, short enough for a file."""
    safe = _UNSAFE.sub("_", name).strip("._-")
    return safe[:MAX_NAME_LENGTH] or fallback


def rename_all(draft: Draft) -> None:
    """Give nodes and tensors safe and unique names, in the order of the graph."""
    taken = set(RESERVED_NAMES)
    names: dict[str, str] = {"": ""}

    def rename(name: str, fallback: str) -> None:
        if name not in names:
            names[name] = unique_name(safe_name(name, fallback), taken)
            taken.add(names[name])

    rename(draft.input.name, "input")
    for value in draft.outputs:
        rename(value.name, "output")
    node_names: set[str] = set()
    for index, node in enumerate(draft.nodes):
        node.name = unique_name(safe_name(node.name, f"{node.op_type}_{index}"), node_names)
        node_names.add(node.name)
        for name in [*node.input, *node.output]:
            rename(name, f"tensor_{index}")
    for node in draft.nodes:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    draft.tensors = {names[name]: value for name, value in draft.tensors.items() if name in names}
    for value in [draft.input, *draft.outputs]:
        value.name = names[value.name]


def _strip(draft: Draft) -> None:
    for node in draft.nodes:
        node.doc_string = ""
        node.domain = ""
        del node.metadata_props[:]
        attributes = sorted(node.attribute, key=lambda item: item.name)
        for item in attributes:
            item.doc_string = ""
        del node.attribute[:]
        node.attribute.extend(attributes)
    draft.input = _plain_value(draft.input)
    draft.outputs = [_plain_value(value) for value in draft.outputs]


def _plain_value(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    plain = onnx.ValueInfoProto(name=value.name)
    plain.type.tensor_type.CopyFrom(value.type.tensor_type)
    for axis, dim in enumerate(plain.type.tensor_type.shape.dim):
        length = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        dim.Clear()
        if length is not None:
            dim.dim_value = length
        else:
            dim.dim_param = "batch" if axis == 0 else f"length_{axis}"
    return plain
