"""The NumPy simulation equals ONNX Runtime: every layer bit for bit, and every code of whole graphs."""

from pathlib import Path

import models
import numpy as np
import pytest
from models import ModelBuilder

from quantization.affine import AffineParams
from quantization.compile import CompiledGraph, compile_inference
from quantization.errors import MalformedError
from quantization.graph import analyze, canonicalize
from quantization.simulate import compare_layers, expose_layers, load_graph, requantize, simulate_graph


def has_exact_products() -> bool:
    """Whether this CPU multiplies u8 by s8 without saturating pairs of products."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "vnni" in info.read_text()


exact_products = pytest.mark.skipif(not has_exact_products(), reason="needs a CPU with VNNI")


def compiled(raw: bytes, bits: int, seed: int = 0) -> tuple[CompiledGraph, models.Arrays]:
    """A compiled model, and what ONNX Runtime gives for its layers on some inputs."""
    model = canonicalize(raw)
    plan = analyze(model)
    x = models.example_inputs(model, 6, seed)
    graph = compile_inference(model, plan, models.observed_policy(model, plan, x, bits=bits))
    return graph, models.run(expose_layers(graph), 1.1 * x, graph.files) | {"x": 1.1 * x}  # some values clip


@pytest.mark.parametrize(
    "bits", [pytest.param(8, marks=exact_products), 7, 4]
)  # 7 bits: exact on CPUs that saturate, too
@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_every_layer_equals_onnx_runtime_bit_for_bit(name: str, bits: int) -> None:
    graph, observed = compiled(models.ALL_MODELS[name](), bits)
    differences = compare_layers(graph, observed)
    assert differences
    assert not any(differences.values()), differences


@exact_products
@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 1], "pads": [1, 0, 0, 2]},
        {"dilations": [2, 3], "pads": [2, 2, 2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
        {"auto_pad": "VALID"},
        {"group": 2},
        {"group": 4, "pads": [1, 1, 1, 1], "strides": [2, 2]},
    ],
)
def test_convolutions_of_every_geometry_equal_onnx_runtime(attributes: dict[str, object]) -> None:
    b = ModelBuilder(["N", 4, 11, 9])
    groups = int(attributes.get("group", 1))  # type: ignore[call-overload]
    weights = [b.random(8, 4 // groups, 3, 3, gain=0.2), b.random(8)]
    graph, observed = compiled(b.bytes(b.add("Relu", [b.add("Conv", ["x", *weights], **attributes)])), 8)
    assert compare_layers(graph, observed) == {"Conv_0": 0}


@exact_products
@pytest.mark.parametrize("seed", range(20))
def test_random_layers_equal_onnx_runtime(seed: int) -> None:
    rng = np.random.default_rng(seed)
    i, o, k = int(rng.integers(1, 40)), int(rng.integers(1, 40)), int(rng.choice([1, 3, 5]))
    b = ModelBuilder(["N", i, 9, 9], seed)
    scale = 10.0 ** rng.uniform(-4, 4)
    weights = [b.random(o, i, k, k, gain=scale), b.random(o, gain=scale * 3)]
    x = b.add("Conv", ["x", *weights], pads=[k // 2] * 4)
    x = b.add("Flatten", [b.add("Relu", [x])])
    graph, observed = compiled(b.bytes(b.gemm(x, o * 81, 7)), 8, seed)
    assert compare_layers(graph, observed) == {"Conv_0": 0, "Gemm_3": 0}


@exact_products
@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_whole_graphs_equal_onnx_runtime_code_by_code(name: str) -> None:
    graph, observed = compiled(models.ALL_MODELS[name](), 8)
    simulated = simulate_graph(graph, observed["x"])
    compared = [key for key in simulated if key in observed and key.endswith(":codes")]
    assert len(compared) >= 4
    for key in compared:
        difference = np.abs(simulated[key].astype(int) - observed[key].astype(int))
        # QLinearAdd and float operators may round one step apart (and do on ARM), and that step travels on
        assert difference.max() <= 4, key
        assert np.mean(difference > 0) < 0.05, key


def test_a_wrong_code_is_noticed() -> None:
    graph, observed = compiled(models.digits_cnn(), 7)
    key = next(name for name in observed if name.endswith(":codes") and name != "x:codes")
    observed[key] = observed[key].copy()
    observed[key].flat[0] ^= 1
    assert sum(compare_layers(graph, observed).values()) >= 1


def test_a_wrong_scale_is_noticed() -> None:
    graph, observed = compiled(models.digits_cnn(), 7)
    channels = graph.files["channels"] * np.float32(1.01)
    assert (
        sum(
            compare_layers(
                CompiledGraph(graph.skeleton, graph.files | {"channels": channels}), observed
            ).values()
        )
        > 0
    )


def test_halves_round_to_even_and_ends_saturate() -> None:
    params = AffineParams(np.float32(1.0).reshape(()), np.uint8(3).reshape(()))
    accumulator = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9], np.float32)
    np.testing.assert_array_equal(
        requantize(accumulator, np.ones(1, np.float32), params), [3, 5, 5, 3, 1, 255, 0]
    )


def test_a_file_too_short_is_refused() -> None:
    graph, _ = compiled(models.mlp(), 8)
    short = CompiledGraph(graph.skeleton, graph.files | {"channels": graph.files["channels"][:-1]})
    with pytest.raises(MalformedError, match="ends at byte"):
        load_graph(short)
