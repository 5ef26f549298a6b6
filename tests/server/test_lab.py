"""Preparing a model in the lab."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from quantization.arrays import FloatArray
from quantization.artifact import Manifest, read_references
from quantization.calibration import MinMax, Percentile
from quantization.device_class import ARM, X86, X86_VNNI
from quantization.errors import ConfigurationError, InvalidDataError, UnsupportedModelError
from quantization.policy import Policy
from server.blob_store import BlobStore
from server.folded import LabStatistics, read
from server.generation import Step
from server.lab import PreparedModel, prepare_model
from server.registry import Registry


@pytest.fixture
def prepared(
    registry: Registry, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray
) -> PreparedModel:
    return prepare_model(
        tiny_model, lab_inputs, name="tiny", device_classes=[ARM, X86], registry=registry, blobs=blobs
    )


def policy_of(prepared: PreparedModel, name: str) -> Policy:
    return Policy.from_json_bytes(prepared.generations[name].policy.encode())


def test_generation_0_is_published_for_every_class(
    prepared: PreparedModel, registry: Registry, blobs: BlobStore
) -> None:
    model = registry.model("tiny")
    assert registry.device_classes(model.digest) == (ARM, X86)
    for name, artifact in prepared.artifacts.items():
        generation = registry.published(model.digest, name)
        assert (generation.number, generation.step) == (0, Step.PUBLISHED)
        assert generation == prepared.generations[name]
        assert Manifest.from_bytes(read(blobs, generation.manifest_digest)) == artifact.manifest
        assert generation.size_bytes == artifact.size_bytes == generation.update_bytes
        assert all(blobs.get(digest) == stored for digest, stored in artifact.blobs.items())
        assert policy_of(prepared, name).generation == 0
        assert dict(policy_of(prepared, name).corrections) == {}


def test_a_class_gets_the_weight_bits_it_can_use(prepared: PreparedModel) -> None:
    assert set(policy_of(prepared, "arm").bit_widths.values()) == {8}
    assert set(policy_of(prepared, "x86").bit_widths.values()) == {7}


def test_the_reference_is_the_moments_over_all_lab_inputs(
    prepared: PreparedModel, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    """Of the float model, as far as 8-bit weights can tell; though it was run in batches of unequal size."""
    model = onnx.load_from_string(tiny_model)
    model.graph.output.append(onnx.helper.make_tensor_value_info("c2", onnx.TensorProto.FLOAT, None))
    (exact,) = ort.InferenceSession(model.SerializeToString()).run(["c2"], {"x": lab_inputs})
    layer = next(layer for layer in prepared.plan.layers if layer.channels == 6)
    found = prepared.statistics["arm"].references[layer.name]
    np.testing.assert_allclose(found.mean, exact.mean((0, 2, 3)), atol=0.02 * exact.std())
    np.testing.assert_allclose(found.std, exact.std((0, 2, 3)), rtol=0.02)
    assert found.count == exact.size // 6


def test_devices_find_the_same_reference_in_the_artifact(prepared: PreparedModel) -> None:
    artifact = prepared.artifacts["arm"]
    found = read_references(artifact.manifest.stages[0], lambda digest: artifact.blobs[digest])
    expected = prepared.statistics["arm"].references
    assert found.keys() == expected.keys()
    for name, reference in expected.items():
        assert np.array_equal(found[name].mean, reference.mean)
        assert np.array_equal(found[name].std, reference.std)
        assert found[name].count == reference.count


def test_what_the_lab_measured_is_kept_for_later_generations(
    prepared: PreparedModel, registry: Registry, blobs: BlobStore, lab_inputs: FloatArray
) -> None:
    lab = registry.lab(prepared.model.digest, "arm")
    stored = LabStatistics.from_bytes(read(blobs, lab.statistics_digest))
    assert stored.histograms == prepared.statistics["arm"].histograms
    assert stored.references.keys() == prepared.statistics["arm"].references.keys()
    assert lab.inputs == len(lab_inputs)


def test_classes_with_equal_bit_widths_share_one_measurement(
    registry: Registry, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    seen: list[tuple[int, int]] = []
    prepared = prepare_model(
        tiny_model,
        lab_inputs,
        name="tiny",
        device_classes=[ARM, X86_VNNI],
        registry=registry,
        blobs=blobs,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(30, 90), (60, 90), (90, 90)]
    digest = prepared.model.digest
    assert registry.lab(digest, "arm").statistics_digest == registry.lab(digest, "x86-vnni").statistics_digest


def test_preparing_again_changes_nothing(
    prepared: PreparedModel, registry: Registry, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    before = registry.generations(prepared.model.digest, "arm")
    again = prepare_model(
        tiny_model, lab_inputs, name="tiny", device_classes=[ARM, X86], registry=registry, blobs=blobs
    )
    assert again.generations == prepared.generations
    assert again.artifacts["arm"].manifest == prepared.artifacts["arm"].manifest
    assert registry.generations(prepared.model.digest, "arm") == before


def test_preparing_otherwise_under_the_same_class_is_refused(
    prepared: PreparedModel, registry: Registry, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    with pytest.raises(ConfigurationError, match="other inputs or with another range method"):
        prepare_model(
            tiny_model,
            lab_inputs,
            name="tiny",
            device_classes=[ARM],
            registry=registry,
            blobs=blobs,
            range_method=MinMax(),
        )
    assert registry.published(prepared.model.digest, "arm") == prepared.generations["arm"]


def test_a_class_can_be_added_later(
    prepared: PreparedModel, registry: Registry, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    later = replace(ARM, name="arm-large")
    prepare_model(tiny_model, lab_inputs, name="tiny", device_classes=[later], registry=registry, blobs=blobs)
    assert registry.published(prepared.model.digest, "arm-large").number == 0


def test_preparing_goes_on_after_a_crash(
    registry: Registry,
    blobs: BlobStore,
    tiny_model: bytes,
    lab_inputs: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    def prepare() -> PreparedModel:
        return prepare_model(
            tiny_model, lab_inputs, name="tiny", device_classes=[ARM], registry=registry, blobs=blobs
        )

    with monkeypatch.context() as patch:
        patch.setattr(registry, "advance", crash)
        with pytest.raises(KeyboardInterrupt):
            prepare()
    prepared = prepare()
    assert registry.published(prepared.model.digest, "arm").number == 0


def test_the_policy_keeps_the_range_method(
    registry: Registry, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    prepared = prepare_model(
        tiny_model,
        lab_inputs,
        name="tiny",
        device_classes=[ARM],
        registry=registry,
        blobs=blobs,
        range_method=Percentile(0.99),
    )
    assert policy_of(prepared, "arm").range_method == "percentile:0.99"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((4, 1, 8, 9), np.float32), r"shape \(4, 1, 8, 9\); the model takes \(any, 1, 8, 8\)"),
        (np.zeros((4, 64), np.float32), r"shape \(4, 64\)"),
        (np.zeros((0, 1, 8, 8), np.float32), "1 row or more"),
        (np.full((4, 1, 8, 8), np.nan, np.float32), "NaN"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    registry: Registry, blobs: BlobStore, tiny_model: bytes, inputs: FloatArray, message: str
) -> None:
    with pytest.raises(InvalidDataError, match=message):
        prepare_model(tiny_model, inputs, name="tiny", device_classes=[ARM], registry=registry, blobs=blobs)


def test_constant_inputs_can_be_calibrated_with(
    registry: Registry, blobs: BlobStore, tiny_model: bytes
) -> None:
    inputs = np.zeros((4, 1, 8, 8), np.float32)
    prepared = prepare_model(
        tiny_model, inputs, name="tiny", device_classes=[ARM], registry=registry, blobs=blobs
    )
    assert prepared.generations["arm"].step is Step.PUBLISHED


def test_bytes_that_are_no_model_are_refused(
    registry: Registry, blobs: BlobStore, lab_inputs: FloatArray
) -> None:
    with pytest.raises(UnsupportedModelError):
        prepare_model(
            b"not onnx", lab_inputs, name="tiny", device_classes=[ARM], registry=registry, blobs=blobs
        )


def test_a_model_needs_a_class(
    registry: Registry, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    with pytest.raises(ConfigurationError, match="at least one device class"):
        prepare_model(tiny_model, lab_inputs, name="tiny", device_classes=[], registry=registry, blobs=blobs)


def test_an_artifact_beyond_the_budget_of_its_class_is_not_published(
    registry: Registry, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    small = replace(ARM, name="small", size_budget_bytes=1000)
    with pytest.raises(ConfigurationError, match="device class 'small' can afford 1000"):
        prepare_model(
            tiny_model, lab_inputs, name="tiny", device_classes=[small], registry=registry, blobs=blobs
        )
    assert registry.generations(registry.model("tiny").digest, "small") == ()
