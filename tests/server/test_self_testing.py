from dataclasses import replace

import models
import numpy as np
import pytest
from artifacts import example

from client.runtime import Runtime
from quantization.artifact import Artifact, build_artifact
from quantization.blob import content_digest, encode_blob
from quantization.calibration import Range
from quantization.compile import CompiledGraph, compile_inference
from quantization.errors import UpdateRejectedError
from quantization.policy import Policy
from server.self_testing import make_self_test


def policy_of(name: str, float_layers: dict[str, str] | None = None) -> Policy:
    plan = example(name).plan
    return Policy(
        model_digest=content_digest(example(name).model),
        device_class="arm",
        generation=0,
        ranges={site.name: Range(-4.0, 4.0) for site in plan.sites},
        bit_widths={layer.name: 8 for layer in plan.layers},
        corrections={},
        range_method="mse",
        float_layers=float_layers or {},
    )


def compiled_of(name: str, float_layers: dict[str, str] | None = None) -> tuple[CompiledGraph, Policy]:
    policy = policy_of(name, float_layers)
    return compile_inference(example(name).model, example(name).plan, policy), policy


def artifact_of(compiled: CompiledGraph, policy: Policy, name: str, tested: CompiledGraph) -> Artifact:
    test = make_self_test(tested, example(name).plan, policy.model_digest)
    return build_artifact(compiled, None, policy, example(name).plan, test.to_content())


@pytest.mark.parametrize("is_float", [False, True], ids=["integers", "float islands"])
@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_a_device_passes_the_test_of_what_it_runs(name: str, is_float: bool) -> None:
    layers = example(name).plan.layers
    compiled, policy = compiled_of(
        name, {layers[0].name: "fp16", layers[-1].name: "bf16"} if is_float else {}
    )
    artifact = artifact_of(compiled, policy, name, compiled)
    Runtime(artifact.manifest, artifact.blobs.__getitem__).close()


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_a_device_whose_products_saturate_fails_it(name: str) -> None:
    compiled, policy = compiled_of(name)
    is_weight = {at: array.dtype == np.int8 and array.ndim > 1 for at, array in compiled.files.items()}
    saturated = {at: np.clip(a, -64, 63) if is_weight[at] else a for at, a in compiled.files.items()}
    artifact = artifact_of(CompiledGraph(compiled.skeleton, saturated), policy, name, compiled)
    with pytest.raises(UpdateRejectedError, match="codes from what they must be"):
        Runtime(artifact.manifest, artifact.blobs.__getitem__)


def test_the_test_is_small_and_the_same_every_time() -> None:
    (compiled, policy), plan = compiled_of("resnet20"), example("resnet20").plan
    contents = {make_self_test(compiled, plan, policy.model_digest).to_content() for _ in range(2)}
    assert [len(content) for content in contents] == [16 + 4 * 10]


def test_a_test_that_is_damaged_or_of_another_size_is_refused() -> None:
    compiled, policy = compiled_of("mlp")
    artifact = artifact_of(compiled, policy, "mlp", compiled)
    stage = artifact.manifest.stages[0]
    assert stage.self_test is not None
    ref, content = stage.self_test, b"\0" * stage.self_test.shape[0]
    wrong = replace(ref, digest=content_digest(content), stored_size_bytes=8 + len(content))
    manifest = replace(artifact.manifest, stages=(replace(stage, self_test=wrong),))
    blobs = {**artifact.blobs, wrong.digest: encode_blob(content)}
    with pytest.raises(Exception, match="self-test"):
        Runtime(manifest, blobs.__getitem__)
