import itertools
from dataclasses import replace
from types import SimpleNamespace

import models
import numpy as np
import pytest
from artifacts import example

from quantization.artifact import (
    Artifact,
    Manifest,
    build_artifact,
    decode_blob,
    decode_files,
    read_references,
    update_size_bytes,
)
from quantization.blob import content_digest, encode_blob
from quantization.calibration import Range
from quantization.compile import compile_inference
from quantization.errors import DigestMismatchError, MalformedError
from quantization.policy import Policy
from quantization.renormalization import ChannelCorrection


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_artifact_holds_what_was_compiled(name: str) -> None:
    case = example(name)
    policy = Policy("0" * 64, "arm", 3, {s.name: Range(-2, 2) for s in case.plan.sites}, {}, {}, "mse")
    compiled = compile_inference(case.model, case.plan, policy)
    artifact = build_artifact(compiled, None, policy, case.plan)
    manifest = Manifest.from_bytes(artifact.manifest.to_bytes())
    stage = manifest.stages[0]
    assert (manifest.model_digest, manifest.device_class, manifest.generation) == ("0" * 64, "arm", 3)
    assert decode_blob(stage.skeleton, artifact.blobs[stage.skeleton.digest]) == compiled.skeleton
    files = decode_files(stage.files, artifact.blobs.__getitem__)
    assert files == {location: array.tobytes() for location, array in compiled.files.items()}
    assert artifact.blobs.keys() == manifest.blobs.keys()


def test_equal_inputs_give_equal_bytes() -> None:
    first, second = example().artifact(), example().artifact()
    assert first.manifest.to_bytes() == second.manifest.to_bytes()
    assert dict(first.blobs) == dict(second.blobs)


def test_size_is_that_of_the_manifest_and_all_blobs() -> None:
    artifact = example().artifact()
    stored = sum(ref.stored_size_bytes for ref in artifact.manifest.blobs.values())
    assert artifact.size_bytes == len(artifact.manifest.to_bytes()) + stored
    assert artifact.size_bytes == update_size_bytes(artifact.manifest, ())


def test_observation_shares_the_files_of_inference() -> None:
    bare, observed = example().artifact(is_observed=False), example().artifact()
    stage = observed.manifest.stages[0]
    assert stage.files == bare.manifest.stages[0].files
    assert [ref.location for ref in stage.reference_files] == ["reference"]
    assert stage.sites == tuple(site.name for site in example().plan.sites)
    assert bare.manifest.stages[0].layers == ()


def test_references_come_back_bit_for_bit() -> None:
    artifact = example().artifact()
    read = read_references(artifact.manifest.stages[0], artifact.blobs.__getitem__)
    assert read.keys() == example().references.keys()
    for layer, reference in example().references.items():
        np.testing.assert_array_equal(read[layer].mean, reference.mean)
        np.testing.assert_array_equal(read[layer].std, reference.std)
        assert read[layer].count == reference.count


def test_an_artifact_without_observation_has_no_references() -> None:
    artifact = example().artifact(is_observed=False)
    assert read_references(artifact.manifest.stages[0], artifact.blobs.__getitem__) == {}


def changed_locations(old: Artifact, new: Artifact) -> set[str]:
    return {ref.location for digest, ref in new.manifest.blobs.items() if digest not in old.blobs}


def corrections() -> dict[str, ChannelCorrection]:
    layers = example("resnet20").plan.corrected_layers
    rng = np.random.default_rng(0)
    return {
        layer.name: ChannelCorrection(rng.uniform(0.5, 2, layer.channels), rng.normal(size=layer.channels))
        for layer in layers
    }


def test_an_update_of_ranges_and_corrections_is_the_manifest_and_two_small_blobs() -> None:
    old = example("resnet20").artifact()
    new = example("resnet20").artifact(1, width=3.5, corrections=corrections())
    assert changed_locations(old, new) == {"ranges", "channels"}
    update = update_size_bytes(new.manifest, old.blobs)
    assert update < 10_000
    assert update <= 0.05 * new.size_bytes


def test_artifact_of_resnet20_is_at_most_27_percent_of_the_float_weights() -> None:
    artifact = example("resnet20").artifact()
    parameters = 269_722
    assert artifact.size_bytes <= 0.27 * 4 * parameters


def test_narrow_weights_are_stored_narrow_and_run_as_int8() -> None:
    sizes = [
        example("resnet20").artifact(bits=bits, is_observed=False).size_bytes
        for bits in (8, 7, 6, 5, 4, 3, 2)
    ]
    assert all(wide > narrow for wide, narrow in itertools.pairwise(sizes))
    four = example("resnet20").artifact(bits=4)
    weights = [ref for ref in four.manifest.stages[0].files if ref.dtype == "int8"]
    assert len(weights) == len(example("resnet20").plan.layers)
    for ref in weights:
        assert ref.bit_width <= 4
        assert ref.stored_size_bytes <= 8 + ref.decoded_size_bytes / 2
        codes = np.frombuffer(decode_blob(ref, four.blobs[ref.digest]), np.int8)
        assert np.abs(codes).max() <= 7


def test_tensors_with_the_same_content_are_stored_once() -> None:
    codes = np.zeros((2, 2), np.int8)
    graph = SimpleNamespace(skeleton=b"onnx", files={"a": codes, "b": codes})
    artifact = build_artifact(graph, None, policy(), example().plan)
    assert len(artifact.manifest.stages[0].files) == 2
    assert len(artifact.blobs) == 2
    assert update_size_bytes(artifact.manifest, ()) == artifact.size_bytes


def policy() -> Policy:
    return Policy("0" * 64, "arm", 0, {}, {}, {}, "mse")


def test_arrays_that_are_not_contiguous_are_stored_in_row_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    graph = SimpleNamespace(skeleton=b"onnx", files={"a": array})
    artifact = build_artifact(graph, None, policy(), example().plan)
    ref = artifact.manifest.stages[0].files[0]
    content = np.frombuffer(decode_blob(ref, artifact.blobs[ref.digest]), np.float32).reshape(ref.shape)
    np.testing.assert_array_equal(content, array)


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", ""])
def test_tensor_names_that_are_no_safe_locations_are_refused(location: str) -> None:
    graph = SimpleNamespace(skeleton=b"onnx", files={location: np.zeros(1, np.int8)})
    with pytest.raises(MalformedError, match="safe name"):
        build_artifact(graph, None, policy(), example().plan)


def test_element_types_that_the_format_lacks_are_refused() -> None:
    graph = SimpleNamespace(skeleton=b"onnx", files={"a": np.zeros(1, np.complex64)})
    with pytest.raises(MalformedError, match="complex64"):
        build_artifact(graph, None, policy(), example().plan)


def test_graphs_that_disagree_on_a_file_are_a_bug() -> None:
    inference = SimpleNamespace(skeleton=b"onnx", files={"a": np.zeros(1, np.int8)})
    observation = SimpleNamespace(
        plain=SimpleNamespace(skeleton=b"plain", files={"a": np.ones(1, np.int8)}),
        normalizing=None,
        layer_names=(),
        site_names=(),
        reference_slots=(),
    )
    with pytest.raises(ValueError, match="disagree"):
        build_artifact(inference, observation, policy(), example().plan)


def test_a_blob_of_another_size_than_its_reference_is_refused_undecoded() -> None:
    artifact = example().artifact()
    ref = artifact.manifest.stages[0].files[0]
    content = decode_blob(ref, artifact.blobs[ref.digest]) + b"more"
    with pytest.raises(MalformedError, match="expected"):
        decode_blob(replace(ref, digest=content_digest(content)), encode_blob(content))


def test_a_blob_in_place_of_another_is_refused() -> None:
    artifact = example().artifact()
    ref = artifact.manifest.stages[0].files[0]
    other = encode_blob(bytes(ref.decoded_size_bytes))
    with pytest.raises(DigestMismatchError):
        decode_files([ref], lambda _: other)
