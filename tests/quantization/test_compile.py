"""The inference graph: fused in ONNX Runtime, everything in files, and files that change alone."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import ModelBuilder

from quantization.calibration import Range
from quantization.compile import (
    CompiledGraph,
    channels_file,
    compile_inference,
    site_params,
    site_range,
)
from quantization.errors import ConfigurationError
from quantization.graph import GraphPlan, Site, analyze, canonicalize
from quantization.policy import Policy
from quantization.renormalization import ChannelCorrection, shortened

INTEGER_LAYERS = ("QLinearConv", "QGemm", "MatMulIntegerToFloat")
FLOAT_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm")


def compiled(raw: bytes, batch: int = 8, bits: int = 8) -> tuple[bytes, GraphPlan, Policy, CompiledGraph]:
    model = canonicalize(raw)
    plan = analyze(model)
    policy = models.observed_policy(model, plan, models.example_inputs(model, batch), bits=bits)
    return model, plan, policy, compile_inference(model, plan, policy)


def assert_all_fused(graph: CompiledGraph, plan: GraphPlan, folder: Path) -> None:
    ops = models.fused_ops(graph, folder)
    assert sum(ops[op] for op in INTEGER_LAYERS) == len(plan.layers)
    assert not any(ops[op] for op in FLOAT_LAYERS)


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_every_layer_is_fused(name: str, tmp_path: Path) -> None:
    _, plan, _, graph = compiled(models.ALL_MODELS[name]())
    assert_all_fused(graph, plan, tmp_path)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "ds_cnn", "digits_cnn"])
def test_convolutional_models_are_integer_from_the_first_code_to_the_last(name: str, tmp_path: Path) -> None:
    _, plan, _, graph = compiled(models.ALL_MODELS[name]())
    ops = models.fused_ops(graph, tmp_path)
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 1
    assert ops["QLinearAdd"] == sum(name.startswith("Add") for name in plan.integer_ops)


@pytest.mark.data
def test_every_layer_of_the_trained_resnet_is_fused_and_its_answers_stay(tmp_path: Path) -> None:
    folder = Path(os.environ["QUANTFLEET_DATA"])
    with np.load(folder / "resnet20_cifar10.npz") as weights:
        raw = models.resnet20({name: weights[name] for name in weights.files})
    with np.load(folder / "cifar10_subset.npz") as data:
        pixels, labels = data["x_test"][:300], data["y_test"][:300]
    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    model = canonicalize(raw)
    plan = analyze(model)
    graph = compile_inference(model, plan, models.observed_policy(model, plan, x))
    assert_all_fused(graph, plan, tmp_path)
    quantized = next(iter(models.run(graph.skeleton, x, graph.files).values())).argmax(1)
    exact = next(iter(models.run(raw, x).values())).argmax(1)
    assert np.mean(quantized == exact) >= 0.98
    assert np.mean(quantized == labels) >= 0.9


@pytest.mark.parametrize("name", ["residual_cnn", "har_cnn", "mlp", "branches", "transformer"])
def test_answers_stay_close_to_the_float_model(name: str) -> None:
    model, _, _, graph = compiled(models.ALL_MODELS[name]())
    x = models.example_inputs(model, 8)
    exact = next(iter(models.run(model, x).values()))
    quantized = next(iter(models.run(graph.skeleton, x, graph.files).values()))
    assert np.abs(quantized - exact).max() < 0.04 * np.abs(exact).max()


def test_several_outputs_keep_their_names_and_values(tmp_path: Path) -> None:
    b = ModelBuilder(["N", 3, 8, 8])
    raw = b.conv("x", 3, 4, 3)  # an output before its activation
    activated = b.add("Relu", [raw])
    deep = b.add("Relu", [b.conv(activated, 4, 4, 3)])  # an output behind it
    pooled = b.add("MaxPool", [deep], kernel_shape=[2, 2], strides=[2, 2])  # an output of moved codes
    head = b.conv(pooled, 4, 2, 1)
    model, plan, _, graph = compiled(b.bytes(head, raw, deep, pooled))
    x = models.example_inputs(model, 8)
    exact, quantized = models.run(model, x), models.run(graph.skeleton, x, graph.files)
    assert list(quantized) == list(exact) == [head, raw, deep, pooled]
    for name, values in exact.items():
        assert np.abs(quantized[name] - values).max() < 0.05 * np.abs(values).max()
    assert_all_fused(graph, plan, tmp_path)


def test_values_moved_before_the_first_layer_are_quantized_behind_the_move(tmp_path: Path) -> None:
    b = ModelBuilder(["N", 1, 4, 5])
    _, plan, _, graph = compiled(b.bytes(b.gemm(b.add("Flatten", ["x"]), 20, 3)))
    assert [site.name for site in plan.sites] == ["flatten_0", "gemm_1"]
    assert_all_fused(graph, plan, tmp_path)


@pytest.mark.parametrize("hi", [0.0, 1e-6, 5.999, 6.0, 6.0000001, 1e9])
def test_relu6_fuses_whatever_range_a_policy_asks_for(hi: float, tmp_path: Path) -> None:
    model, plan, policy, _ = compiled(models.mobilenet_v2())
    policy = replace(policy, ranges={name: Range(-1.0, hi) for name in policy.ranges})
    assert_all_fused(compile_inference(model, plan, policy), plan, tmp_path)


@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_average_pooling_in_integers_counts_the_padding_as_told(
    count_include_pad: int, tmp_path: Path
) -> None:
    b = ModelBuilder(["N", 3, 8, 8])
    x = b.add("Relu", [b.conv("x", 3, 4, 3)])
    x = b.add("AveragePool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=count_include_pad)
    model, _, _, graph = compiled(b.bytes(b.conv(x, 4, 2, 1)))
    assert models.fused_ops(graph, tmp_path)["QLinearAveragePool"] == 1
    x_values = models.example_inputs(model, 8)
    exact = next(iter(models.run(model, x_values).values()))
    quantized = next(iter(models.run(graph.skeleton, x_values, graph.files).values()))
    assert np.abs(quantized - exact).max() < 0.04 * np.abs(exact).max()


def test_every_float_and_code_lies_in_a_file() -> None:
    for name in ("resnet20", "transformer"):
        graph = compiled(models.ALL_MODELS[name]())[3]
        for tensor in onnx.load_model_from_string(graph.skeleton).graph.initializer:
            is_structure = tensor.data_type in {onnx.TensorProto.INT64, onnx.TensorProto.INT8}
            size = int(np.prod(tensor.dims, dtype=np.int64))
            is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
            assert is_external or is_structure or size == 1, tensor.name


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (compiled(models.residual_cnn())[3] for _ in range(2))
    assert first.skeleton == second.skeleton
    assert list(first.files) == list(second.files)
    assert all(np.array_equal(first.files[name], second.files[name]) for name in first.files)


def digest_in_a_new_process(hash_seed: int) -> str:
    script = (
        "import hashlib, models; from quantization.graph import analyze, canonicalize\n"
        "from quantization.compile_observation import compile_observation; from quantization.policy import Policy\n"
        "model = canonicalize(models.transformer()); plan = analyze(model)\n"
        "policy = Policy('0' * 64, 'x', 0, {}, {}, {}, 'minmax')\n"
        "graph = compile_observation(model, plan, policy, None).plain\n"
        "print(hashlib.sha256(model + graph.skeleton + repr(plan.sites).encode()).hexdigest())"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": str(hash_seed),
        "PYTHONPATH": str(Path(models.__file__).parent),
    }
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_bytes_do_not_depend_on_the_process() -> None:
    assert digest_in_a_new_process(1) == digest_in_a_new_process(2)


def test_ranges_change_one_file_and_corrections_another() -> None:
    model, plan, policy, before = compiled(models.residual_cnn())
    layer = plan.corrected_layers[0]
    wider = {name: Range(2 * r.lo, 2 * r.hi) for name, r in policy.ranges.items()}
    shift = {layer.name: ChannelCorrection(np.full(layer.channels, 1.5), np.full(layer.channels, 0.25))}
    for changed, expected in (
        (replace(policy, ranges=wider), {"ranges"}),
        (replace(policy, corrections=shift), {"channels"}),
    ):
        after = compile_inference(model, plan, changed)
        assert after.skeleton == before.skeleton
        assert {n for n in after.files if not np.array_equal(after.files[n], before.files[n])} == expected


def test_a_correction_is_an_affine_change_of_the_raw_output() -> None:
    model, plan, policy, _ = compiled(models.residual_cnn())
    layer, rng = plan.corrected_layers[0], np.random.default_rng(0)
    correction = ChannelCorrection(rng.uniform(0.5, 2, layer.channels), rng.normal(size=layer.channels))
    before = channels_file(model, plan, policy)
    after = channels_file(model, plan, replace(policy, corrections={layer.name: correction}))
    scale, bias = np.split(before[: 2 * layer.channels].astype(np.float64), 2)
    np.testing.assert_array_equal(after[: layer.channels], shortened(correction.gain * scale))
    corrected = after[layer.channels : 2 * layer.channels]
    np.testing.assert_allclose(corrected, correction.gain * bias + correction.offset, rtol=2.0**-13)
    assert not (corrected.view(np.uint32) & 0x7FF).any()
    np.testing.assert_array_equal(after[2 * layer.channels :], before[2 * layer.channels :])


def test_channels_are_what_the_function_for_them_alone_returns() -> None:
    model, plan, policy, graph = compiled(models.digits_cnn())
    np.testing.assert_array_equal(graph.files["channels"], channels_file(model, plan, policy))
    assert graph.files["ranges"].size == 5 * len(plan.sites)
    assert graph.files["channels"].size == sum(2 * layer.channels for layer in plan.layers)


def test_a_policy_without_a_site_is_refused() -> None:
    model, plan, policy, _ = compiled(models.mlp())
    with pytest.raises(ConfigurationError, match=r"no range for site 'x'; calibrate"):
        compile_inference(model, plan, replace(policy, ranges={}))


@pytest.mark.parametrize("channels", [3, 4])
def test_a_correction_that_fits_no_layer_is_refused(channels: int) -> None:
    model, plan, policy, _ = compiled(models.mlp())
    name = plan.layers[0].name if channels == 3 else plan.layers[-1].name  # the last layer takes none
    wrong = {name: ChannelCorrection.identity(channels)}
    with pytest.raises(ConfigurationError, match=f"correction of {channels} channels"):
        compile_inference(model, plan, replace(policy, corrections=wrong))


@given(st.floats(-1e6, 0), st.floats(0, 1e6), st.booleans(), st.sampled_from([None, 6.0]), st.floats(0, 1))
def test_a_site_keeps_to_what_the_graph_allows(
    lo: float, hi: float, minimum_is_zero: bool, maximum: float | None, floor: float
) -> None:
    site = Site("s", minimum_is_zero, maximum, False, True, None, ())
    policy = Policy("0" * 64, "test", 0, {"s": Range(lo, hi)}, {}, {}, "minmax")
    bounds = site_range(site, policy)
    assert bounds.lo == (0 if minimum_is_zero else lo)
    assert maximum is None or bounds.hi <= maximum
    params = site_params(site, policy, floor)
    assert params.scale >= np.float32(floor) * (1 - 1e-6)
    assert params.zero_point == 0 or not minimum_is_zero


def test_a_channel_of_weights_next_to_nothing_keeps_its_bias() -> None:
    b = ModelBuilder(["N", 2, 6, 6])
    weight = b.rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    weight[1] = 0.0
    weight[2] *= 1e-20
    x = b.add("Conv", ["x", b.constant(weight), b.constant([0.3, 0.777, -0.5, 0.1])], pads=[1] * 4)
    model, _, _, graph = compiled(b.bytes(b.conv(b.add("Relu", [x]), 4, 2, 1)))
    values = models.example_inputs(model, 8)
    exact = next(iter(models.run(model, values).values()))
    quantized = next(iter(models.run(graph.skeleton, values, graph.files).values()))
    assert np.abs(quantized - exact).max() < 0.03 * np.abs(exact).max()


def test_a_bias_cannot_overflow_the_accumulator_behind_a_dead_site() -> None:
    b = ModelBuilder(["N", 2, 6, 6])
    x = b.add("Relu", [b.conv("x", 2, 4, 3)])
    last = b.add("Conv", [x, b.random(2, 4, 1, 1), b.constant([0.5, -0.25])])
    model, plan, policy, _ = compiled(b.bytes(last))
    nearly_dead = replace(policy, ranges={**policy.ranges, plan.sites[1].name: Range(0.0, 1e-30)})
    graph = compile_inference(model, plan, nearly_dead)
    outputs = next(iter(models.run(graph.skeleton, models.example_inputs(model, 2), graph.files).values()))
    np.testing.assert_allclose(outputs[:, 0], 0.5, atol=0.02)
    np.testing.assert_allclose(outputs[:, 1], -0.25, atol=0.02)


def test_a_layer_of_zeros_still_adds_its_bias() -> None:
    b = ModelBuilder(["N", 3])
    head = b.add("Gemm", ["x", b.constant(np.zeros((2, 3))), b.constant([0.123, -0.0456])], transB=1)
    graph = compiled(b.bytes(head))[3]
    outputs = next(iter(models.run(graph.skeleton, np.ones((1, 3), np.float32), graph.files).values()))
    np.testing.assert_allclose(outputs, [[0.123, -0.0456]], atol=1e-3)


def test_seven_bit_weights_stay_within_seven_bits() -> None:
    _, plan, _, graph = compiled(models.residual_cnn(), bits=7)
    assert max(int(np.abs(graph.files[layer.weight]).max()) for layer in plan.layers) == 63
