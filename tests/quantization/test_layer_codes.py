"""Rounded weights as content, and the graphs that are compiled with them."""

from dataclasses import replace

import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.blob import content_digest
from quantization.compile import compile_inference
from quantization.compile_observation import compile_observation
from quantization.draft import Draft
from quantization.errors import ConfigurationError, MalformedError
from quantization.graph import GraphPlan, analyze, canonicalize
from quantization.layer_codes import LayerCodes, from_bytes, to_bytes, weight_from_rows, weight_rows
from quantization.policy import Policy
from quantization.renormalization import ChannelCorrection


def model_of(name: str) -> tuple[bytes, GraphPlan, Policy]:
    model = canonicalize(models.ALL_MODELS[name]())
    plan = analyze(model)
    return model, plan, models.observed_policy(model, plan, models.example_inputs(model, 16))


def rounded(model: bytes, plan: GraphPlan, *, bits: int, shift: float = 0.0) -> dict[str, LayerCodes]:
    """Codes of every layer at a bit-width, with bias shifts where there is a bias."""
    import onnx  # noqa: PLC0415

    tensors = Draft.from_model(onnx.load_model_from_string(model)).tensors
    layers = {}
    for layer in plan.layers:
        rows = weight_rows(tensors[layer.weight], layer.weight_axis)
        most = 2 ** (bits - 1) - 1
        scale = (np.maximum(np.abs(rows).max(1), 1e-6) / most).astype(np.float32)
        codes = np.clip(np.rint(rows / scale[:, None]), -most, most).astype(np.int8)
        offset = 0.0 if layer.bias is None else shift
        layers[layer.name] = LayerCodes(codes, scale, np.full(layer.channels, offset))
    return layers


@given(st.sampled_from([((6, 2, 3, 3), 0), ((5, 7), 0), ((4, 9), 1), ((3, 2, 5), 0)]))
def test_rows_and_weights_are_each_others_inverse(case: tuple[tuple[int, ...], int]) -> None:
    shape, axis = case
    weight = np.arange(np.prod(shape), dtype=np.int8).reshape(shape)
    rows = weight_rows(weight, axis)
    assert rows.shape == (shape[axis], weight.size // shape[axis])
    np.testing.assert_array_equal(weight_from_rows(rows, shape, axis), weight)


def test_content_reads_back_and_equal_weights_are_equal_bytes() -> None:
    model, plan, _ = model_of("digits_cnn")
    layers = rounded(model, plan, bits=4, shift=0.25)
    content = to_bytes(layers)
    back = from_bytes(content)
    assert to_bytes(dict(reversed(back.items()))) == content
    for name, layer in layers.items():
        np.testing.assert_array_equal(back[name].codes, layer.codes)
        np.testing.assert_array_equal(back[name].bias_shift, layer.bias_shift)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\0" * 100])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        from_bytes(data)


@pytest.mark.parametrize(
    ("codes", "scale", "shift"),
    [
        (np.full((2, 3), -128, np.int8), np.ones(2, np.float32), np.zeros(2)),
        (np.zeros((2, 3), np.int8), np.zeros(2, np.float32), np.zeros(2)),
        (np.zeros((2, 3), np.int8), np.full(2, np.nan, np.float32), np.zeros(2)),
        (np.zeros((2, 3), np.int8), np.ones(2, np.float32), np.full(2, np.inf)),
        (np.zeros((2, 3), np.int8), np.ones(3, np.float32), np.zeros(2)),
        (np.zeros((2, 3), np.int16), np.ones(2, np.float32), np.zeros(2)),
    ],
)
def test_impossible_weights_are_refused(codes: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
    with pytest.raises(ConfigurationError):
        LayerCodes(codes, scale, shift)


@pytest.mark.parametrize("name", ["digits_cnn", "ds_cnn", "har_cnn", "mlp", "transformer"])
def test_given_codes_run_as_their_float_values_do(name: str) -> None:
    model, plan, policy = model_of(name)
    x = models.example_inputs(model, 4)
    plain = compile_observation(model, plan, policy, None, rounded(model, plan, bits=8)).plain
    expected = models.run(model, x)
    found = models.run(plain.skeleton, x, plain.files)
    for output in plan.output_names:
        spread = float(np.abs(expected[output]).max())
        np.testing.assert_allclose(found[output], expected[output], atol=0.05 * spread)


def test_codes_go_into_the_graph_as_they_are_and_biases_are_shifted() -> None:
    model, plan, policy = model_of("digits_cnn")
    layers = rounded(model, plan, bits=3, shift=0.5)
    before, after = (compile_inference(model, plan, policy, w) for w in ({}, layers))
    assert before.skeleton == after.skeleton
    first = plan.layers[0]
    np.testing.assert_array_equal(weight_rows(after.files[first.weight], 0), layers[first.name].codes)
    channels = first.channels
    np.testing.assert_array_equal(after.files["channels"][:channels], layers[first.name].scale)
    shift = (
        after.files["channels"][channels : 2 * channels] - before.files["channels"][channels : 2 * channels]
    )
    np.testing.assert_allclose(shift, 0.5, atol=1e-6)


def test_corrections_scale_shifted_biases_too() -> None:
    model, plan, policy = model_of("digits_cnn")
    layers = rounded(model, plan, bits=3, shift=0.5)
    first = next(layer for layer in plan.layers if layer.is_corrected)
    correction = ChannelCorrection(np.full(first.channels, 2.0), np.full(first.channels, 0.1))
    plain = compile_inference(model, plan, policy, layers).files["channels"]
    corrected = compile_inference(
        model, plan, replace(policy, corrections={first.name: correction}), layers
    ).files["channels"]
    start = 0 if first is plan.layers[0] else None
    assert start == 0
    bias = slice(first.channels, 2 * first.channels)
    np.testing.assert_allclose(
        corrected[bias], 2 * plain[bias] + 0.1, rtol=2**-13, atol=1e-6
    )  # stored with 13 significant bits


def test_weights_of_another_model_are_refused() -> None:
    model, plan, policy = model_of("digits_cnn")
    layers = rounded(model, plan, bits=4)
    name = plan.layers[0].name
    with pytest.raises(ConfigurationError, match="has not"):
        compile_inference(model, plan, policy, {"nowhere": layers[name]})
    with pytest.raises(ConfigurationError, match="codes"):
        compile_inference(model, plan, policy, {name: layers[plan.layers[-1].name]})


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["digits_cnn", "transformer", "ds_cnn"])
def test_float_islands_run_beside_integer_layers(name: str, kind: str) -> None:
    model, plan, policy = model_of(name)
    x = models.example_inputs(model, 16)
    islands = {plan.layers[0].name: kind, plan.layers[-1].name: kind}
    mixed = replace(policy, float_layers=islands)
    whole = compile_inference(model, plan, policy)
    graph = compile_inference(model, plan, mixed)
    content = graph.files[plan.layers[-1].weight]
    assert content.dtype == {"fp16": np.float16, "bf16": np.uint16}[kind]
    expected, found, before = (
        models.run(model, x),
        models.run(graph.skeleton, x, graph.files),
        models.run(whole.skeleton, x, whole.files),
    )
    output = plan.output_names[0]
    error, error_before = (np.abs(y[output] - expected[output]).mean() for y in (found, before))
    assert error <= error_before * 1.2
    plain = compile_observation(model, plan, mixed, None).plain
    np.testing.assert_allclose(
        models.run(plain.skeleton, x, plain.files)[output],
        expected[output],
        atol=0.05 * float(np.abs(expected[output]).max()),
    )


def test_weight_beyond_fp16_is_refused_and_fits_bf16() -> None:
    b = models.ModelBuilder(["N", 4])
    x = b.add("Gemm", ["x", b.constant(np.full((3, 4), 1e5)), b.constant(np.zeros(3))], transB=1)
    model = canonicalize(b.bytes(x))
    plan = analyze(model)
    policy = Policy(
        content_digest(model), "test", 0, {}, {}, {}, "mse", float_layers={plan.layers[0].name: "fp16"}
    )
    with pytest.raises(ConfigurationError, match="bf16"):
        compile_observation(model, plan, policy, None)
    half = replace(policy, float_layers={plan.layers[0].name: "bf16"})
    plain = compile_observation(model, plan, half, None).plain
    found = models.run(plain.skeleton, np.ones((1, 4), np.float32), plain.files)[plan.output_names[0]]
    np.testing.assert_allclose(found, 4e5, rtol=0.01)
