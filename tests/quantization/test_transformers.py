"""Transformers pass through everything that precision needs: second moments of tokens, rounding, allocation, int8."""

from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import onnx
import pytest

from quantization.artifact import build_artifact, decode_files
from quantization.bit_allocation import Budget, Candidate, allocate_bits
from quantization.blob import content_digest
from quantization.compile import compile_inference
from quantization.compile_observation import compile_observation
from quantization.draft import Draft
from quantization.graph import GraphPlan, analyze, canonicalize
from quantization.im2col import ConvWindow, sample_columns
from quantization.layer_codes import LayerCodes, to_bytes, weight_rows
from quantization.layer_rounding import RoundedLayer
from quantization.model_rounding import round_model
from quantization.scale_search import PACKED_GRIDS, RATED_GRIDS, PackedGrid
from quantization.second_moments import SecondMoments

NAMES = ["transformer", "text_encoder"]
PATCHES = ConvWindow((4, 4), (4, 4), (0, 0, 0, 0), (1, 1))


def inputs(name: str, batch: int) -> np.ndarray:
    if name == "text_encoder":
        return np.random.default_rng(0).integers(0, 16, (batch, 12)).astype(np.float32)
    return models.example_inputs(models.transformer(), batch)


def layer_inputs(model: bytes, plan: GraphPlan, x: np.ndarray) -> dict[str, np.ndarray]:
    values = models.run_exposed(model, x, [layer.input for layer in plan.layers])
    return {
        layer.name: sample_columns(values[layer.input], PATCHES if layer.op == "Conv" else None, 4096)
        for layer in plan.layers
    }


def rounded_on(
    name: str, grids: list[PackedGrid]
) -> tuple[bytes, GraphPlan, Draft, dict[str, list[RoundedLayer]]]:
    model = canonicalize(models.ALL_MODELS[name]())
    plan, draft = analyze(model), Draft.from_model(onnx.load_model_from_string(model))
    columns = layer_inputs(model, plan, inputs(name, 64))
    moments = {k: SecondMoments.empty(x.shape[2], 4).add_columns(x) for k, x in columns.items()}
    weights = {p.name: weight_rows(draft.tensors[p.weight], p.weight_axis) for p in plan.layers}
    is_centred = {layer.name: layer.bias is not None for layer in plan.layers}
    return model, plan, draft, round_model(weights, moments, grids, is_centred=is_centred)


@pytest.mark.parametrize("name", NAMES)
def test_second_moments_of_tokens_predict_the_error_of_every_layer(name: str) -> None:
    model, plan, draft, rounded = rounded_on(name, [PackedGrid(3)])
    columns = layer_inputs(model, plan, inputs(name, 64))
    for layer in plan.layers:
        found, rows = rounded[layer.name][0], weight_rows(draft.tensors[layer.weight], layer.weight_axis)
        errors = columns[layer.name][0].astype(np.float64) @ (found.values - rows).T
        cost = errors.var(0) if layer.bias is not None else np.square(errors).mean(0)
        assert found.loss == pytest.approx(cost.sum(), rel=1e-3)
        assert found.bias_shift.any() == (layer.bias is not None)


@pytest.mark.parametrize("name", NAMES)
def test_encoder_at_four_bits_runs_in_int8_and_answers_as_its_float_twin(name: str, tmp_path: Path) -> None:
    model, plan, _, rounded = rounded_on(name, [PackedGrid(4)])
    codes = {k: LayerCodes(r.codes, r.scale, r.bias_shift) for k, (r,) in rounded.items()}
    x = inputs(name, 200)
    policy = models.observed_policy(model, plan, x, bits=4)
    policy = replace(policy, weights_digest=content_digest(to_bytes(codes)))
    graph = compile_inference(model, plan, policy, codes)
    ops = models.fused_ops(graph, tmp_path)
    assert ops["MatMulIntegerToFloat"] == sum(layer.op == "MatMul" for layer in plan.layers)
    assert ops["QGemm"] == 1
    observation = compile_observation(model, plan, policy, None, codes)
    artifact = build_artifact(graph, observation, policy, plan)
    stage = artifact.manifest.stages[0]
    stored = {file.location: file for file in stage.files}
    assert all(stored[layer.weight].bit_width == 4 for layer in plan.layers)
    files = {
        k: np.frombuffer(v, np.uint8)
        for k, v in decode_files(stage.files, artifact.blobs.__getitem__).items()
    }
    quantized = models.run(graph.skeleton, x, files)[plan.output_names[0]]
    fake = models.run(observation.plain.skeleton, x, observation.plain.files)[plan.output_names[0]]
    assert np.mean(quantized.argmax(1) == fake.argmax(1)) >= 0.95
    exact = models.run(model, x)[plan.output_names[0]]
    assert np.mean(quantized.argmax(1) == exact.argmax(1)) >= 0.8


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_an_encoder_share_a_budget(name: str) -> None:
    _, plan, draft, rounded = rounded_on(name, [*PACKED_GRIDS, *RATED_GRIDS])
    candidates = {
        k: [Candidate(r.bit_width, r.size_bytes, r.loss) for r in of_layer] for k, of_layer in rounded.items()
    }
    budget = Budget(sum(draft.tensors[layer.weight].nbytes for layer in plan.layers) // 6)
    found = allocate_bits(candidates, budget)
    assert found.fits(budget)
    assert len({candidates[k][i].bit_width for k, i in found.choice.items()}) > 1
