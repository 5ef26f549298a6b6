import models
import numpy as np
import onnx
import pytest
from artifacts import Example, example
from onnx import numpy_helper

from quantization.artifact import decode_files
from quantization.compile_taps import compile_taps, input_layout
from quantization.draft import Draft
from quantization.errors import UnsupportedModelError
from quantization.graph import analyze, canonicalize
from quantization.im2col import sample_columns
from quantization.layer_weights import channel_slots

ALL = 1 << 30


def files_of(case: Example) -> dict[str, bytes]:
    artifact = case.artifact()
    return decode_files(artifact.manifest.stages[0].files, artifact.blobs.__getitem__)


def dequantized(case: Example, files: dict[str, bytes]) -> bytes:
    """The canonical model with the weights that the codes stand for."""
    model = onnx.load_model_from_string(case.model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer, slot in zip(case.plan.layers, channel_slots(case.plan), strict=True):
        shape = tuple(tensors[layer.weight].dims)
        codes = np.frombuffer(files[layer.weight], np.int8).reshape(shape).astype(np.float32)
        scale = np.frombuffer(files["channels"], np.float32, slot.channels, slot.scale_offset)
        along = [1] * len(shape)
        along[layer.weight_axis] = -1
        weight = codes * scale.reshape(along)
        tensors[layer.weight].CopyFrom(numpy_helper.from_array(weight, layer.weight))
    return model.SerializeToString()


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_taps_are_what_layers_read_in_the_model_with_dequantized_weights(name: str) -> None:
    case = example(name)
    files, x = files_of(case), case.inputs(3)
    arrays = {location: np.frombuffer(content, np.uint8) for location, content in files.items()}
    seen = models.run(compile_taps(case.model, case.plan), x, arrays)
    inputs = {layer.input for layer in case.plan.layers} - {case.plan.input_name}
    assert seen.keys() == inputs | set(case.plan.output_names)
    expected = models.run_exposed(dequantized(case, files), x, seen)
    for tensor, values in seen.items():
        np.testing.assert_allclose(
            values, expected[tensor], rtol=1e-4, atol=1e-5 * np.abs(expected[tensor]).max()
        )


def check_layout(model: bytes, x: np.ndarray) -> None:
    """Weights times the columns of the layout are every layer's raw output."""
    plan, draft = analyze(model), Draft.from_model(onnx.load_model_from_string(model))
    layout = input_layout(model, plan)
    assert [layer.name for layer in layout] == [layer.name for layer in plan.layers]
    tensors = [name for layer in plan.layers for name in (layer.input, layer.raw_output)]
    seen = models.run_exposed(model, x, tensors)
    for layer, form in zip(plan.layers, layout, strict=True):
        weight = draft.tensors[layer.weight]
        rows = (weight.T if layer.op == "MatMul" else weight).reshape(form.groups, -1, form.columns)
        columns = sample_columns(seen[layer.input], form.window, ALL)
        outputs = np.einsum("grk,gpk->pgr", rows, columns).reshape(columns.shape[1], -1)
        if layer.bias is not None:
            outputs = outputs + draft.tensors[layer.bias]
        raw = seen[layer.raw_output]
        expected = np.moveaxis(raw, 1, -1) if layer.op == "Conv" else raw
        expected = expected.reshape(-1, layer.channels)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_weights_times_columns_are_what_every_layer_computes(name: str) -> None:
    check_layout(example(name).model, example(name).inputs(2))


@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
        {"auto_pad": "VALID", "dilations": [2, 1]},
        {"auto_pad": "SAME_UPPER"},
        {"pads": [0, 2, 1, 0], "dilations": [1, 2], "strides": [2, 1], "group": 2},
    ],
)
def test_padding_strides_dilations_and_groups_are_read_as_the_runtime_reads_them(attributes: dict) -> None:
    b = models.ModelBuilder(["N", 4, 11, 10])
    groups = attributes.get("group", 1)
    weights = [b.random(8, 4 // groups, 3, 2), b.random(8)]
    x = b.add("Relu", [b.add("Conv", ["x", *weights], **attributes)])
    model = canonicalize(b.bytes(b.conv(x, 8, 3, 1)))
    check_layout(model, models.example_inputs(model, 2))


def test_padding_that_depends_on_an_unknown_size_is_refused() -> None:
    def model(stride: int) -> bytes:
        b = models.ModelBuilder(["N", 3, "length"])
        weights = [b.random(4, 3, 3), b.random(4)]
        x = b.add("Relu", [b.add("Conv", ["x", *weights], auto_pad="SAME_UPPER", strides=[stride])])
        return canonicalize(b.bytes(b.conv(x, 4, 2, 1, dims=1)))

    check_layout(model(1), np.random.default_rng(0).normal(size=(2, 3, 9)).astype(np.float32))
    with pytest.raises(UnsupportedModelError, match="fixed size"):
        input_layout(model(2), analyze(model(2)))


def test_wide_layers_get_blocks_and_narrow_ones_the_full_matrix() -> None:
    case = example("resnet20")
    forms = {form.columns: form.block for form in input_layout(case.model, case.plan, max_block=144)}
    assert forms == {27: None, 144: None, 288: 144, 576: 144, 64: None}


def test_a_layer_has_the_exponent_that_is_given_for_it() -> None:
    case = example("mlp")
    first, *others = input_layout(case.model, case.plan, {case.plan.layers[0].name: -3})
    assert first.exponent == -3
    assert {form.exponent for form in others} == {0}
