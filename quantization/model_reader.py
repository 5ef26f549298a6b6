"""Reading ONNX bytes from outside: what Quantfleet takes, and one clear line for what it refuses.

A model is taken if it is one self-contained graph of float32 operators from the standard set, with one
float32 input.
"""

from collections.abc import Mapping

import onnx
from onnx import checker, version_converter

from quantization.draft import OPSET, first_line, subgraphs
from quantization.errors import UnsupportedModelError

MAX_MODEL_BYTES = (1 << 31) - 1
"""What one protobuf message may hold."""

_QUANTIZED_OPS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
}
_HALF_TYPES: Mapping[int, str] = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
_STANDARD_DOMAINS = {"", "ai.onnx"}


def read_model(model_bytes: bytes) -> onnx.ModelProto:
    """Return the checked model, with operator set 21 or newer and its data as the only input.

    Raises:
        UnsupportedModelError: If the bytes are not an ONNX model, or one that Quantfleet cannot quantize.
    """
    model = _parse(model_bytes)
    _refuse_what_is_not_self_contained(model)
    for node in model.graph.node:
        _refuse_node(node)
    _take_initializers_off_the_inputs(model)
    _refuse_types(model)
    model = _upgraded(model)
    _check(model)
    return model


def _parse(model_bytes: bytes) -> onnx.ModelProto:
    if len(model_bytes) > MAX_MODEL_BYTES:
        raise UnsupportedModelError(f"model of {len(model_bytes)} bytes; at most {MAX_MODEL_BYTES} are read")
    try:
        model = onnx.load_model_from_string(model_bytes)
    except Exception as error:  # protobuf's error has no name here: only `artifact` may import it
        raise UnsupportedModelError("not an ONNX model, or a truncated one; export it again") from error
    if not model.graph.node or not model.opset_import:
        raise UnsupportedModelError("not an ONNX model, or a truncated one: it has no nodes; export it again")
    return model


def _refuse_what_is_not_self_contained(model: onnx.ModelProto) -> None:
    if model.functions:
        raise UnsupportedModelError(
            "the model defines functions of its own; inline them with onnx.inliner.inline_local_functions"
        )
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise UnsupportedModelError(
                f"tensor {tensor.name!r} lies in another file; save the model as one file "
                "(onnx.save with save_as_external_data=False)"
            )
    if model.graph.sparse_initializer:
        raise UnsupportedModelError("the model has sparse initializers; export it with dense weights")


def _refuse_node(node: onnx.NodeProto) -> None:
    label = f"{node.op_type} {node.name!r}" if node.name else node.op_type
    if any(True for _ in subgraphs(node)):
        raise UnsupportedModelError(
            f"control flow ({label}) cannot be quantized; "
            "export the model traced, with fixed branches and loops"
        )
    if node.domain not in _STANDARD_DOMAINS:
        raise UnsupportedModelError(
            f"{label} is of the custom domain {node.domain!r}; export with standard ONNX operators only"
        )
    if node.op_type in _QUANTIZED_OPS or node.op_type.startswith("QLinear"):
        raise UnsupportedModelError(f"the model is already quantized ({label}); give the float32 model")


def _take_initializers_off_the_inputs(model: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    data = [value for value in model.graph.input if value.name not in constants]
    if len(data) != 1:
        names = ", ".join(repr(value.name) for value in data) or "none"
        raise UnsupportedModelError(f"the model must have one input, it has {len(data)} ({names})")
    del model.graph.input[:]
    model.graph.input.extend(data)


def _refuse_types(model: onnx.ModelProto) -> None:
    value = model.graph.input[0]
    tensors = [(t.name, t.data_type) for t in model.graph.initializer]
    for name, elem_type in [(value.name, value.type.tensor_type.elem_type), *tensors]:
        if elem_type in _HALF_TYPES:
            raise UnsupportedModelError(
                f"tensor {name!r} is {_HALF_TYPES[elem_type]}; "
                "export the model in float32 (model.float() in torch)"
            )
        if elem_type in {onnx.TensorProto.STRING, onnx.TensorProto.DOUBLE}:
            kind = onnx.TensorProto.DataType.Name(elem_type).lower()
            raise UnsupportedModelError(f"tensor {name!r} is of type {kind}; export the model in float32")
    if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        raise UnsupportedModelError(f"input {value.name!r} is {kind}; the model must take float32")
    if len(value.type.tensor_type.shape.dim) < 2:
        raise UnsupportedModelError(
            f"input {value.name!r} needs a declared shape with a batch axis and another"
        )


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    version = next((o.version for o in model.opset_import if o.domain in _STANDARD_DOMAINS), 0)
    if version < 1:
        raise UnsupportedModelError("the model names no standard operator set; export it again")
    if version >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # whatever the C++ converter throws
        raise UnsupportedModelError(
            f"operator set {version} cannot be converted to {OPSET} ({first_line(error)}); "
            f"export with opset_version={OPSET}"
        ) from error


def _check(model: onnx.ModelProto) -> None:
    """Run ONNX's checker, which wants output shapes that exporters may leave out."""
    shapeless = [v for v in model.graph.output if not v.type.tensor_type.HasField("shape")]
    for value in shapeless:
        value.type.tensor_type.shape.SetInParent()
    try:
        checker.check_model(model)
    except Exception as error:  # the checker raises types of its own and whatever its C++ throws
        raise UnsupportedModelError(
            f"not a valid ONNX model: {first_line(error)}; export it again"
        ) from error
    for value in shapeless:
        value.type.tensor_type.ClearField("shape")
