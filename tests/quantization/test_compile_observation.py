"""The observation graphs: exact moments, values of every site, and a model that normalises itself."""

from dataclasses import replace
from typing import Any

import models
import numpy as np
import onnx
import pytest

from quantization.compile import channels_file, compile_inference
from quantization.compile_observation import (
    DEFAULT_STEP,
    ObservationGraphs,
    compile_observation,
    reference_slots,
    sampling_step,
)
from quantization.errors import ConfigurationError
from quantization.graph import GraphPlan, Site, analyze, canonicalize
from quantization.moments import ChannelReference
from quantization.policy import Policy
from quantization.renormalization import MAX_GAIN, SIGNIFICANT_BITS, ChannelCorrection


def random_references(plan: GraphPlan, seed: int = 0) -> dict[str, ChannelReference]:
    rng = np.random.default_rng(seed)
    return {
        layer.name: ChannelReference(
            rng.normal(size=layer.channels), rng.uniform(0.5, 2, layer.channels), 1000 + index
        )
        for index, layer in enumerate(plan.corrected_layers)
    }


def prepared(name: str) -> tuple[bytes, GraphPlan, Policy]:
    model = canonicalize(models.ALL_MODELS[name]())
    plan = analyze(model)
    return model, plan, models.observed_policy(model, plan, models.example_inputs(model, 4))


def observe(graph: Any, x: np.ndarray[Any, Any], shown: list[str] | None = None) -> models.Arrays:
    """Run an observation graph, with tensors inside it as further outputs."""
    proto = onnx.load_model_from_string(graph.skeleton)
    known = {value.name for value in proto.graph.output} | {proto.graph.input[0].name}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=n) for n in dict.fromkeys(shown or []) if n not in known
    )
    return models.run(proto.SerializeToString(), x, graph.files) | {proto.graph.input[0].name: x}


def all_but_channels(x: np.ndarray[Any, Any]) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


CORRECTED = [name for name in models.ALL_MODELS if name not in {"transformer", "text_encoder"}]


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_moments_are_those_of_the_raw_outputs_over_the_population(name: str) -> None:
    model, plan, policy = prepared(name)
    plain = compile_observation(model, plan, policy, None).plain
    raw = [layer.raw_output for layer in plan.corrected_layers]
    got = observe(plain, models.example_inputs(model, 6), raw)
    for layer in plan.corrected_layers:
        values = got[layer.raw_output].astype(np.float64)
        axes = all_but_channels(values)
        spread = values.std()
        np.testing.assert_allclose(got[f"mean:{layer.name}"], values.mean(axes), atol=2e-6 * spread + 1e-7)
        np.testing.assert_allclose(
            got[f"var:{layer.name}"], values.var(axes), rtol=1e-4, atol=1e-9 * spread**2
        )
        assert got[f"count:{layer.name}"] == values.size // layer.channels
        assert got[f"count:{layer.name}"].dtype == np.int64


def test_a_narrow_channel_far_from_zero_keeps_its_variance() -> None:
    b = models.ModelBuilder(["N", 1, 16, 16])
    weight = b.constant(np.array([1e-3, 1.0, 50.0]).reshape(3, 1, 1, 1))
    x = b.add("Conv", ["x", weight, b.constant([3.0, 0.0, -500.0])])
    model = canonicalize(b.bytes(b.conv(x, 3, 2, 1)))
    plan = analyze(model)
    policy = models.observed_policy(model, plan, models.example_inputs(model, 4))
    plain = compile_observation(model, plan, policy, None).plain
    got = observe(plain, models.example_inputs(model, 32), ["conv_0"])
    exact = got["conv_0"].astype(np.float64).var((0, 2, 3))
    np.testing.assert_allclose(got["var:Conv_0"], exact, rtol=1e-3)


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_every_site_gives_a_strided_sample_and_its_exact_ends(name: str) -> None:
    model, plan, policy = prepared(name)
    plain = compile_observation(model, plan, policy, None).plain
    got = observe(plain, models.example_inputs(model, 6), [site.name for site in plan.sites])
    for site in plan.sites:
        values, sample = got[site.name].reshape(-1), got[f"values:{site.name}"]
        np.testing.assert_array_equal(sample[:-2], values[:: sampling_step(site)])
        assert sample[-2] == values.min()
        assert sample[-1] == values.max()
        assert sample.size <= 6 * 130 + 3


def test_the_logits_are_those_of_the_model_with_stored_weights() -> None:
    model, plan, policy = prepared("residual_cnn")
    x = models.example_inputs(model, 4)
    plain = compile_observation(model, plan, policy, None).plain
    exact = next(iter(models.run(model, x).values()))
    got = observe(plain, x)[plan.output_names[0]]
    assert 0 < np.abs(got - exact).max() < 0.02 * np.abs(exact).max()  # only the weights are rounded


def test_plain_reads_the_same_files_as_inference() -> None:
    model, plan, policy = prepared("residual_cnn")
    inference = compile_inference(model, plan, policy)
    plain = compile_observation(model, plan, policy, None).plain
    assert set(plain.files) == set(inference.files) - {"ranges"}
    assert all(np.array_equal(plain.files[name], inference.files[name]) for name in plain.files)


def test_plain_follows_the_corrections_in_its_channels() -> None:
    model, plan, policy = prepared("residual_cnn")
    x, layer = models.example_inputs(model, 4), plan.corrected_layers[1]
    correction = ChannelCorrection(np.full(layer.channels, 2.0), np.full(layer.channels, 0.5))
    corrected = replace(policy, corrections={layer.name: correction})
    before, after = (observe(compile_observation(model, plan, p, None).plain, x) for p in (policy, corrected))
    mean = f"mean:{layer.name}"
    short = 2.0**-SIGNIFICANT_BITS  # to which corrected scales and biases are known
    np.testing.assert_allclose(after[mean], 2 * before[mean] + 0.5, rtol=4 * short, atol=4 * short)


@pytest.mark.parametrize("name", CORRECTED)
def test_normalised_layers_have_the_moments_of_the_reference(name: str) -> None:
    model, plan, policy = prepared(name)
    references = random_references(plan)
    graph = compile_observation(model, plan, policy, references).normalizing
    assert graph is not None
    written = {name for node in onnx.load_from_string(graph.skeleton).graph.node for name in node.output}
    layers = [layer for layer in plan.corrected_layers if layer.raw_output in written]
    assert layers  # the last layer's result is read by nobody here, and not computed
    got = observe(graph, models.example_inputs(model, 16), [layer.raw_output for layer in layers])
    for layer in layers:
        values = got[layer.raw_output].astype(np.float64)
        reference, axes = references[layer.name], all_but_channels(values)
        batch_std = np.sqrt(got[f"var:{layer.name}"].astype(np.float64))
        expected = batch_std * np.clip(reference.std / np.maximum(batch_std, 1e-12), 1 / MAX_GAIN, MAX_GAIN)
        np.testing.assert_allclose(values.mean(axes), reference.mean, atol=0.01)
        np.testing.assert_allclose(values.std(axes), expected, rtol=5e-3, atol=1e-5)


def test_a_channel_that_never_varies_is_set_to_the_reference_mean() -> None:
    b = models.ModelBuilder(["N", 1, 8, 8])
    x = b.add("Conv", ["x", b.constant(np.array([0.0, 1.0]).reshape(2, 1, 1, 1)), b.constant([3.0, 0.0])])
    model = canonicalize(b.bytes(b.conv(b.conv(x, 2, 2, 1), 2, 2, 1)))
    plan = analyze(model)
    policy = models.observed_policy(model, plan, models.example_inputs(model, 4))
    references = random_references(plan)
    graph = compile_observation(model, plan, policy, references).normalizing
    got = observe(graph, models.example_inputs(model, 4), ["conv_0"])
    np.testing.assert_allclose(got["conv_0"][:, 0], references["Conv_0"].mean[0], atol=0.01)


def test_moments_behind_a_normalised_layer_do_not_depend_on_gain_and_offset_of_the_input() -> None:
    model, plan, policy = prepared("digits_cnn")
    graph = compile_observation(model, plan, policy, random_references(plan)).normalizing
    x = models.example_inputs(model, 16)
    first, second = observe(graph, x), observe(graph, np.float32(1.7) * x)
    deeper = [layer.name for layer in plan.corrected_layers[1:]]
    for name in deeper:
        np.testing.assert_allclose(first[f"mean:{name}"], second[f"mean:{name}"], rtol=0.05, atol=0.05)
    assert not np.allclose(
        first[f"mean:{plan.layers[0].name}"], second[f"mean:{plan.layers[0].name}"], atol=1e-3
    )


def test_the_normalizing_graph_knows_no_corrections() -> None:
    model, plan, policy = prepared("residual_cnn")
    layer, references = plan.corrected_layers[0], random_references(plan)
    correction = ChannelCorrection(np.full(layer.channels, 2.0), np.full(layer.channels, 0.5))
    before, after = (
        compile_observation(model, plan, p, references).normalizing
        for p in (policy, replace(policy, corrections={layer.name: correction}))
    )
    assert before is not None
    assert after is not None
    assert before.skeleton == after.skeleton
    assert all(np.array_equal(before.files[name], after.files[name]) for name in before.files)


def test_references_can_be_read_back_exactly_without_onnx() -> None:
    model, plan, policy = prepared("har_cnn")
    references = random_references(plan)
    graphs = compile_observation(model, plan, policy, references)
    assert graphs.normalizing is not None
    content = graphs.normalizing.files["reference"].tobytes()
    assert graphs.reference_slots == reference_slots(plan)
    for slot in graphs.reference_slots:
        expected = references[slot.layer]
        for offset, values in ((slot.mean_offset, expected.mean), (slot.std_offset, expected.std)):
            np.testing.assert_array_equal(np.frombuffer(content, "<f8", slot.channels, offset), values)
        assert np.frombuffer(content, "<i8", 1, slot.count_offset)[0] == expected.count
        assert slot.mean_offset % 8 == 0
    assert len(content) == graphs.reference_slots[-1].count_offset + 8


def test_the_reference_file_starts_with_the_labs_channels() -> None:
    model, plan, policy = prepared("har_cnn")
    graphs = compile_observation(model, plan, policy, random_references(plan))
    assert graphs.normalizing is not None
    expected = channels_file(model, plan, policy).tobytes()
    assert graphs.normalizing.files["reference"].tobytes()[: len(expected)] == expected


def test_graphs_name_what_they_observe() -> None:
    model, plan, policy = prepared("digits_cnn")
    graphs: ObservationGraphs = compile_observation(model, plan, policy, None)
    assert graphs.layer_names == tuple(layer.name for layer in plan.corrected_layers)
    assert graphs.site_names == tuple(site.name for site in plan.sites)
    assert graphs.normalizing is None
    assert graphs.reference_slots == ()


def test_a_missing_or_foreign_reference_is_refused() -> None:
    model, plan, policy = prepared("har_cnn")
    references = random_references(plan)
    name = plan.corrected_layers[0].name
    with pytest.raises(ConfigurationError, match=f"{name}.*got none"):
        compile_observation(model, plan, policy, {k: v for k, v in references.items() if k != name})
    wrong = references | {name: ChannelReference(np.zeros(2), np.ones(2), 1)}
    with pytest.raises(ConfigurationError, match="got one of 2 channels"):
        compile_observation(model, plan, policy, wrong)


def site(sample_size: int | None, lengths: tuple[int, ...]) -> Site:
    return Site("s", False, None, False, True, sample_size, lengths)


def test_sampling_steps_visit_every_channel_and_column() -> None:
    for lengths in ((16, 32, 32), (64, 8, 8), (3, 224, 224), (61, 13), (576, 4, 4)):
        size = int(np.prod(lengths))
        step = sampling_step(site(size, lengths))
        flat = np.arange(0, 32 * size, step)
        assert flat.size <= 4096 + 1
        assert len(np.unique(flat // (size // lengths[0]) % lengths[0])) == lengths[0]
        assert len(np.unique(flat % lengths[-1])) == lengths[-1]


def test_small_sites_are_taken_whole_and_unknown_ones_sampled() -> None:
    assert sampling_step(site(128, (128,))) == 1
    assert sampling_step(site(None, ())) == DEFAULT_STEP
