"""The canonical form: same function, same bytes, and one clear line for what is refused."""

import re
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import onnx
import pytest
from models import ModelBuilder
from onnx import TensorProto, helper

from quantization.canonical import canonicalize, safe_name
from quantization.errors import UnsupportedModelError


def output_of(model: bytes, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return next(iter(models.run(model, x).values()))


def ops_of(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


def simple_cnn(shape: tuple[int | str, ...] = ("N", 1, 8, 8)) -> ModelBuilder:
    b = ModelBuilder(shape)
    b.add("Relu", [b.conv("x", 1, 4, 3)])
    return b


def last(b: ModelBuilder) -> str:
    return b.nodes[-1].output[0]


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_the_canonical_model_computes_the_same(name: str) -> None:
    raw = models.ALL_MODELS[name]()
    canonical = canonicalize(raw)
    x = models.example_inputs(canonical, 5)
    np.testing.assert_allclose(output_of(canonical, x), output_of(raw, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_canonical_bytes_are_their_own_canonical_form(name: str) -> None:
    canonical = canonicalize(models.ALL_MODELS[name]())
    assert canonicalize(canonical) == canonical


def test_batch_norm_is_folded_behind_conv_and_gemm_and_nowhere_else() -> None:
    b = ModelBuilder(["N", 2, 8, 8])
    x = b.batch_norm(b.conv(b.batch_norm("x", 2), 2, 4, 3), 4)
    x = b.add("Flatten", [b.add("Relu", [x])])
    x = b.batch_norm(b.gemm(x, 256, 6), 6)
    raw = b.bytes(x)
    assert ops_of(canonicalize(raw)) == ["BatchNormalization", "Conv", "Relu", "Flatten", "Gemm"]
    values = models.example_inputs(raw, 3)
    np.testing.assert_allclose(
        output_of(canonicalize(raw), values), output_of(raw, values), rtol=1e-4, atol=1e-4
    )


def test_batch_norm_stays_where_others_read_the_conv() -> None:
    b = ModelBuilder(["N", 2, 8, 8])
    x = b.conv("x", 2, 4, 3)
    raw = b.bytes(b.add("Add", [b.batch_norm(x, 4), x]))
    assert ops_of(canonicalize(raw)) == ["Conv", "BatchNormalization", "Add"]


def test_batch_norm_behind_transposed_conv_is_left_alone() -> None:
    b = ModelBuilder(["N", 2, 8, 8])
    x = b.add("ConvTranspose", [b.conv("x", 2, 2, 3), b.random(2, 4, 2, 2)], strides=[2, 2])
    raw = b.bytes(b.batch_norm(x, 4))
    assert ops_of(canonicalize(raw)) == ["Conv", "ConvTranspose", "BatchNormalization"]


def test_constants_per_channel_are_folded_into_the_conv() -> None:
    b = ModelBuilder(["N", 2, 8, 8])
    x = b.add("Mul", [b.random(1, 4, 1, 1), b.conv("x", 2, 4, 3)])
    x = b.add("Sub", [b.add("Add", [x, b.random(4, 1, 1)]), b.constant(0.25)])
    raw = b.bytes(b.add("Div", [x, b.constant(1.5)]))
    assert ops_of(canonicalize(raw)) == ["Conv"]
    values = models.example_inputs(raw, 3)
    np.testing.assert_allclose(
        output_of(canonicalize(raw), values), output_of(raw, values), rtol=1e-4, atol=1e-5
    )


def test_a_constant_that_the_conv_is_taken_from_is_not_folded() -> None:
    b = simple_cnn()
    raw = b.bytes(b.add("Sub", [b.constant(1.0), b.conv(last(b), 4, 4, 3)]))
    assert ops_of(canonicalize(raw))[-1] == "Sub"


def test_gemm_is_brought_to_normal_form() -> None:
    b = ModelBuilder(["N", 6])
    x = b.add("Gemm", ["x", b.random(6, 4), b.random(1, 4)], alpha=0.5, beta=2.0)
    raw = b.bytes(b.add("Gemm", [x, b.random(4, 3)]))
    graph = onnx.load_model_from_string(canonicalize(raw)).graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    assert [[shapes[n] for n in node.input[1:]] for node in graph.node] == [[[4, 6], [4]], [[3, 4], [3]]]
    values = models.example_inputs(raw, 3)
    np.testing.assert_allclose(
        output_of(canonicalize(raw), values), output_of(raw, values), rtol=1e-4, atol=1e-5
    )


def test_matmul_and_add_over_rows_of_examples_become_one_gemm() -> None:
    assert ops_of(canonicalize(models.mlp())) == ["Gemm", "Relu", "Gemm", "Relu", "Gemm"]


def test_gemm_over_rows_of_tokens_becomes_matmul() -> None:
    b = ModelBuilder(["N", 5, 6])
    x = b.add("Reshape", [b.add("Reshape", ["x", b.ints(-1, 6)]), b.ints(-1, 6)])
    x = b.add("Reshape", [b.gemm(x, 6, 4), b.ints(-1, 5, 4)])
    raw = b.bytes(x)
    assert {"MatMul", "Add"} <= set(ops_of(canonicalize(raw)))
    assert canonicalize(canonicalize(raw)) == canonicalize(raw)
    values = models.example_inputs(raw, 3)
    np.testing.assert_allclose(
        output_of(canonicalize(raw), values), output_of(raw, values), rtol=1e-4, atol=1e-5
    )


def test_layers_that_share_a_weight_get_one_each() -> None:
    b = ModelBuilder(["N", 4, 8, 8])
    weight, bias = b.random(4, 4, 3, 3), b.random(4)
    x = b.add("Conv", ["x", weight, bias], pads=[1, 1, 1, 1])
    raw = b.bytes(b.batch_norm(b.add("Conv", [x, weight, bias], pads=[1, 1, 1, 1]), 4))
    graph = onnx.load_model_from_string(canonicalize(raw)).graph
    names = [name for node in graph.node for name in node.input[1:]]
    assert len(set(names)) == 4
    values = models.example_inputs(raw, 2)
    np.testing.assert_allclose(
        output_of(canonicalize(raw), values), output_of(raw, values), rtol=1e-3, atol=1e-4
    )


def test_dropout_identity_constants_and_dead_nodes_disappear() -> None:
    b = simple_cnn()
    x = b.add("Dropout", [b.add("Identity", [last(b)]), b.constant(0.5)])
    b.add("Sigmoid", [x])
    value = helper.make_tensor("v", TensorProto.FLOAT, [1, 4, 1, 1], [2.0] * 4)
    x = b.add("Add", [x, b.add("Neg", [b.add("Constant", [], value=value)])])
    assert ops_of(canonicalize(b.bytes(x))) == ["Conv", "Relu", "Add"]


def test_a_model_of_one_identity_behind_a_conv_keeps_its_output_name() -> None:
    b = simple_cnn()
    raw = b.bytes(b.add("Identity", [last(b)]))
    assert onnx.load_model_from_string(canonicalize(raw)).graph.output[0].name == "identity_2"


def test_stack_traces_and_names_of_machines_are_stripped() -> None:
    model = simple_cnn().model("relu_1")
    for owner in (model, model.graph, model.graph.node[0], model.graph.input[0], model.graph.output[0]):
        entry = owner.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.stack_trace", "/home/somebody/secret/model.py:12"
        owner.doc_string = "/home/somebody"
    model.producer_name, model.producer_version, model.domain = "somebody", "1.2.3", "home"
    info = model.graph.value_info.add()
    info.name, info.doc_string = "conv_0", "somebody"
    canonical = canonicalize(model.SerializeToString())
    assert b"somebody" not in canonical
    assert canonical == canonicalize(simple_cnn().bytes("relu_1"))


def test_initializers_listed_as_inputs_are_taken_off() -> None:
    model = simple_cnn().model("relu_1")
    plain = canonicalize(model.SerializeToString())
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    assert canonicalize(model.SerializeToString()) == plain


def test_unnamed_nodes_get_unique_stable_names() -> None:
    model = simple_cnn().model("relu_1")
    for node in model.graph.node:
        node.name = ""
    names = [
        node.name for node in onnx.load_model_from_string(canonicalize(model.SerializeToString())).graph.node
    ]
    assert names == ["Conv_0", "Relu_1"]


def test_names_become_safe_file_names() -> None:
    model = simple_cnn().model("relu_1")
    text = model.SerializeToString()
    for old, new in ((b"const_0", b"/../a:b"), (b"const_1", b"../..\\c")):
        text = text.replace(old, new)
    graph = onnx.load_model_from_string(canonicalize(text)).graph
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", tensor.name) for tensor in graph.initializer)


def test_weights_cannot_take_the_names_of_other_files() -> None:
    model = simple_cnn().model("relu_1")
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "ranges"
    names = {
        t.name for t in onnx.load_model_from_string(canonicalize(model.SerializeToString())).graph.initializer
    }
    assert "ranges" not in names


def test_safe_names_are_short_and_never_empty() -> None:
    assert safe_name("/layer1/conv.weight:0", "x") == "layer1_conv.weight_0"
    assert safe_name("///", "fallback") == "fallback"
    assert len(safe_name("a" * 10_000, "x")) == 128


def test_a_fixed_batch_is_freed_with_the_reshapes_that_hold_it() -> None:
    b = simple_cnn((1, 1, 8, 8))
    x = b.add("Reshape", [last(b), b.ints(1, 256)], allowzero=1)
    raw = b.bytes(b.gemm(x, 256, 3))
    free = ModelBuilder(["N", 1, 8, 8])
    y = free.add("Reshape", [free.add("Relu", [free.conv("x", 1, 4, 3)]), free.ints(0, 256)])
    free_output = output_of(free.bytes(free.gemm(y, 256, 3)), models.example_inputs(raw, 4))
    np.testing.assert_allclose(
        output_of(canonicalize(raw), models.example_inputs(raw, 4)), free_output, rtol=1e-5
    )


def test_dynamic_spatial_axes_are_kept() -> None:
    b = ModelBuilder(["N", 1, "H", "W"])
    x = b.add("Flatten", [b.add("GlobalAveragePool", [b.add("Relu", [b.conv("x", 1, 4, 3)])])])
    canonical = canonicalize(b.bytes(b.gemm(x, 4, 3)))
    for size in (5, 9):
        x_values = np.ones((2, 1, size, size + 1), np.float32)
        assert output_of(canonical, x_values).shape == (2, 3)


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17])
def test_old_operator_sets_are_converted(opset: int) -> None:
    b = ModelBuilder(["N", 1, 8, 8], opset=opset)
    x = b.add("Relu", [b.conv("x", 1, 4, 3)])
    x = b.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = b.add("Dropout", [x])
    raw = b.bytes(b.gemm(b.add("Flatten", [x]), 64, 3))
    canonical = canonicalize(raw)
    assert onnx.load_model_from_string(canonical).opset_import[0].version == 21
    values = models.example_inputs(raw, 2)
    np.testing.assert_allclose(output_of(canonical, values), output_of(raw, values), rtol=1e-4, atol=1e-5)


def control_flow() -> bytes:
    b = simple_cnn()
    branch = helper.make_graph(
        [helper.make_node("Relu", [last(b)], ["y"])], "b", [], [onnx.ValueInfoProto(name="y")]
    )
    condition = b.constant(True, np.bool_)
    return b.bytes(b.add("If", [condition], then_branch=branch, else_branch=branch))


def half_precision() -> bytes:
    b = ModelBuilder(["N", 1, 8, 8])
    x = b.add("Conv", ["x", b.constant(np.ones((2, 1, 3, 3)), np.float16)])
    model = b.model(x)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return model.SerializeToString()


def external_data() -> bytes:
    model = simple_cnn().model("relu_1")
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    return model.SerializeToString()


def two_inputs() -> bytes:
    model = simple_cnn().model("relu_1")
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N"]))
    return model.SerializeToString()


def custom_domain() -> bytes:
    model = simple_cnn().model("relu_1")
    model.graph.node[1].domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    return model.SerializeToString()


def own_functions() -> bytes:
    model = simple_cnn().model("relu_1")
    node = helper.make_node("F", ["a"], ["b"], domain="f")
    model.functions.append(
        helper.make_function("f", "F", ["a"], ["b"], [node], [helper.make_opsetid("f", 1)])
    )
    return model.SerializeToString()


def no_layers() -> bytes:
    b = ModelBuilder(["N", 4])
    return b.bytes(b.add("Relu", ["x"]))


def lying_tensor() -> bytes:
    model = simple_cnn().model("relu_1")
    model.graph.initializer[0].dims[:] = [1 << 40, 1, 3, 3]
    return model.SerializeToString()


def cyclic() -> bytes:
    model = simple_cnn().model("relu_1")
    model.graph.node[0].input[0] = "relu_1"
    return model.SerializeToString()


def fixed_batch_inside() -> bytes:
    b = simple_cnn((2, 1, 8, 8))
    x = b.add("Reshape", [last(b), b.ints(4, 128)])
    return b.bytes(b.gemm(x, 128, 3))


def training_mode() -> bytes:
    b = simple_cnn()
    return b.bytes(b.add("Dropout", [last(b), b.constant(0.5), b.constant(True, np.bool_)]))


def already_quantized() -> bytes:
    b = simple_cnn()
    return b.bytes(b.add("QuantizeLinear", [last(b), b.constant(0.1), b.constant(0, np.uint8)]))


def contradicting_shapes() -> bytes:
    b = simple_cnn()
    return b.bytes(b.gemm(b.add("Flatten", [last(b)]), 99, 3))


def integer_input() -> bytes:
    model = simple_cnn().model("relu_1")
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return model.SerializeToString()


def unknown_operator() -> bytes:
    model = simple_cnn().model("relu_1")
    model.graph.node[1].op_type = "Frobnicate"
    return model.SerializeToString()


def nan_weights() -> bytes:
    b = ModelBuilder(["N", 3])
    return b.bytes(b.add("Gemm", ["x", b.constant([[1.0, np.nan, 2.0]])], transB=1))


def negative_variance() -> bytes:
    b = ModelBuilder(["N", 1, 8, 8])
    ones = b.constant([1.0, 1.0])
    return b.bytes(
        b.add("BatchNormalization", [b.conv("x", 1, 2, 3), ones, ones, ones, b.constant([-1.0, 1.0])])
    )


def deep_nesting() -> bytes:
    """ModelProto.graph > node > attribute > g > node > ... 200 levels deep, which no builder would write."""

    def field(number: int, content: bytes) -> bytes:
        length, varint = len(content), b""
        while length > 127:
            varint, length = varint + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + varint + bytes([length]) + content

    graph = b""
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


@pytest.mark.parametrize(
    ("make", "problem", "remedy"),
    [
        (lambda: b"", "no nodes", "export it again"),
        (lambda: b"\x00\x01nonsense" * 50, "not an ONNX model", "export it again"),
        (lambda: models.digits_cnn()[:-1000], "truncated", "export it again"),
        (control_flow, "control flow", "export the model traced"),
        (half_precision, "float16", "float32"),
        (external_data, "lies in another file", "save_as_external_data=False"),
        (two_inputs, "it has 2 ('x', 'mask')", "one input"),
        (custom_domain, "custom domain 'com.acme'", "standard ONNX operators"),
        (own_functions, "functions of its own", "inline_local_functions"),
        (no_layers, "nothing to quantize", "give a trained model"),
        (lying_tensor, "not a valid ONNX model", "export it again"),
        (cyclic, "not a valid ONNX model", "export it again"),
        (fixed_batch_inside, "fixed inside the model", "dynamic batch axis"),
        (training_mode, "training mode", "model.eval()"),
        (already_quantized, "already quantized", "float32 model"),
        (contradicting_shapes, "contradict each other", "export it again"),
        (integer_input, "is int64", "float32"),
        (unknown_operator, "Frobnicate", "export it again"),
        (nan_weights, "not all finite", "repair the model"),
        (negative_variance, "not all finite", "repair the model"),
        (deep_nesting, "not an ONNX model", "export it again"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(
    make: Callable[[], bytes], problem: str, remedy: str
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        canonicalize(make())
    message = str(caught.value)
    assert problem in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_never_raise_anything_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(models.digits_cnn()[:6000])
    for position in rng.integers(0, len(data), 8):
        data[position] = rng.integers(0, 256)
    try:
        canonicalize(bytes(data))
    except UnsupportedModelError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most bytes are refused, some damage is harmless
