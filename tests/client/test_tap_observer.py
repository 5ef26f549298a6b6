import numpy as np
import pytest
from artifacts import Example, example

from client.observer import Observer
from client.tap_observer import TapObserver
from quantization.artifact import decode_files
from quantization.compile_taps import compile_taps
from quantization.errors import ConfigurationError, InvalidDataError, MalformedError, UpdateRejectedError

CASE = example("residual_cnn")
ARTIFACT = CASE.artifact()
GRAPH = compile_taps(CASE.model, CASE.plan)
FILES = decode_files(ARTIFACT.manifest.stages[0].files, ARTIFACT.blobs.__getitem__)


def observer(graph: bytes = GRAPH, case: Example = CASE, **settings: int) -> TapObserver:
    artifact = case.artifact()
    return TapObserver(artifact.manifest, artifact.blobs.__getitem__, graph, **settings)


@pytest.mark.parametrize("graph", [GRAPH, b""])
def test_logits_are_those_of_the_plain_observation_graph(graph: bytes) -> None:
    x = CASE.inputs(11)
    expected = Observer(ARTIFACT.manifest, ARTIFACT.blobs.__getitem__).logits(x)
    np.testing.assert_allclose(observer(graph, batch_size=4).logits(x, {}), expected, rtol=1e-4, atol=1e-5)


def test_a_transformers_observation_graphs_compute_in_float32() -> None:
    case = example("transformer")
    artifact, x = case.artifact(), case.inputs(9)
    folded = observer(compile_taps(case.model, case.plan), case).logits(x, {})
    dequantized = Observer(artifact.manifest, artifact.blobs.__getitem__).logits(x)
    np.testing.assert_allclose(dequantized, folded, atol=1e-5 * np.abs(folded).max())


def test_codes_and_channels_of_another_model_make_it_that_model() -> None:
    x = CASE.inputs(5)
    other = CASE.artifact(bits=4)
    files = decode_files(other.manifest.stages[0].files, other.blobs.__getitem__)
    overrides = {layer.weight: files[layer.weight] for layer in CASE.plan.layers}
    overrides["channels"] = files["channels"]
    expected = TapObserver(other.manifest, other.blobs.__getitem__, GRAPH).logits(x, {})
    np.testing.assert_array_equal(observer().logits(x, overrides), expected)
    assert not np.allclose(observer().logits(x, {}), expected)


def test_the_models_input_is_among_the_taps() -> None:
    x = CASE.inputs(3)
    names = ("x", CASE.plan.layers[1].input)
    with observer().taps(names, {}) as run:
        seen = run(x)
    assert seen.keys() == set(names)
    np.testing.assert_array_equal(seen["x"], x)


@pytest.mark.parametrize(
    "overrides", [{"absent": b""}, {"channels": b""}, {"channels": FILES["channels"] + b"0000"}, {"": b""}]
)
def test_overrides_that_do_not_fit_the_artifact_are_refused(overrides: dict[str, bytes]) -> None:
    with pytest.raises(MalformedError, match="override"):
        observer().logits(CASE.inputs(1), overrides)


def test_tensors_that_the_graph_does_not_output_are_refused() -> None:
    with pytest.raises(MalformedError, match="does not output"), observer().taps(("absent",), {}):
        pass


def test_a_graph_that_is_none_is_refused() -> None:
    with pytest.raises(UpdateRejectedError):
        observer(b"\x00garbage").logits(CASE.inputs(1), {})


def test_inputs_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidDataError):
        observer().logits(np.zeros((2, 1, 12, 12), np.float32), {})


def test_an_artifact_without_observation_graph_needs_one_in_the_request() -> None:
    bare = CASE.artifact(is_observed=False)
    with pytest.raises(ConfigurationError, match="no observation graph"):
        TapObserver(bare.manifest, bare.blobs.__getitem__)
    assert TapObserver(bare.manifest, bare.blobs.__getitem__, GRAPH).logits(CASE.inputs(2), {}).shape == (
        2,
        10,
    )
