"""From a policy to an artifact in the blob store, and from there to what a device still lacks."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from quantization.artifact import Artifact, Manifest, build_artifact
from quantization.blob import content_digest
from quantization.compile import channels_file as compile_channels
from quantization.compile import compile_inference
from quantization.compile_observation import compile_observation
from quantization.device_class import DeviceClass
from quantization.draft import Draft
from quantization.errors import ConfigurationError
from quantization.graph import GraphPlan, analyze
from quantization.layer_codes import RoundedWeights, from_bytes
from quantization.layer_weights import NOTHING_ROUNDED, channels_content, stored_layers, weight_files
from quantization.moments import ChannelReference
from quantization.policy import Policy
from server.folded import Blobs, read, write
from server.self_testing import make_self_test
from strategies.messages import Delivery


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A canonical float model and what was found in it.

    Attributes:
        digest: SHA-256 of `content`, hex.
        content: The ONNX bytes.
        plan: Its layers and sites.
        draft: Its nodes and tensors.
    """

    digest: str
    content: bytes
    plan: GraphPlan
    draft: Draft

    @classmethod
    def of(cls, canonical: bytes) -> "PlannedModel":
        """Return the model with its plan.

        Args:
            canonical: As `quantization.graph.canonicalize` returns it.
        """
        draft = Draft.from_model(onnx.load_model_from_string(canonical))
        return cls(content_digest(canonical), canonical, analyze(canonical), draft)

    @classmethod
    def load(cls, digest: str, blobs: Blobs) -> "PlannedModel":
        """Return a registered model."""
        return cls.of(read(blobs, digest))


def compile_artifact(
    model: PlannedModel,
    policy: Policy,
    references: Mapping[str, ChannelReference],
    rounded: RoundedWeights = NOTHING_ROUNDED,
) -> Artifact:
    """Return the artifact of a policy; the same inputs give the same bytes.

    Args:
        model: The float model.
        policy: What to compile.
        references: The lab's moments by layer.
        rounded: What the policy's `weights_digest` names: `load_weights`.
    """
    inference = compile_inference(model.content, model.plan, policy, rounded)
    observation = compile_observation(model.content, model.plan, policy, references, rounded)
    self_test = make_self_test(inference, model.plan, policy.model_digest)
    return build_artifact(inference, observation, policy, model.plan, self_test.to_content())


def check_budget(artifact: Artifact, device_class: DeviceClass) -> None:
    """Refuse an artifact that takes more than the class can afford.

    Raises:
        ConfigurationError: It does.
    """
    budget = device_class.size_budget_bytes
    if budget is not None and artifact.size_bytes > budget:
        raise ConfigurationError(
            f"the artifact takes {artifact.size_bytes} bytes, device class '{device_class.name}' can afford "
            f"{budget}; use a smaller model or a larger budget"
        )


def channels_file(model: PlannedModel, policy: Policy) -> bytes:
    """Return the decoded content of the file `channels` for a policy's corrections."""
    return compile_channels(model.content, model.plan, policy).tobytes()


def load_weights(policy: Policy, blobs: Blobs) -> RoundedWeights:
    """Return the rounded weights that a policy names."""
    return from_bytes(read(blobs, policy.weights_digest)) if policy.weights_digest else NOTHING_ROUNDED


def weight_contents(
    model: PlannedModel, policy: Policy, rounded: RoundedWeights = NOTHING_ROUNDED
) -> dict[str, bytes]:
    """Return the decoded content of every file that weights and corrections decide, by location."""
    stored = stored_layers(model.draft, model.plan, policy, rounded)
    files = weight_files(stored, model.plan) | {"channels": channels_content(stored, model.plan, policy)}
    return {location: np.ascontiguousarray(array).tobytes() for location, array in files.items()}


def overrides_of(contents: Mapping[str, bytes], manifest: Manifest) -> dict[str, bytes]:
    """Return the contents that an artifact has not, or has otherwise: what makes it run as they say."""
    held = {ref.location: ref.digest for ref in manifest.stages[0].files}
    return {at: content for at, content in contents.items() if held.get(at) != content_digest(content)}


def candidate_overrides(
    model: PlannedModel, policy: Policy, base: Policy, manifest: Manifest, blobs: Blobs
) -> dict[str, bytes]:
    """Return what makes the base's artifact observe a candidate's corrections and weights.

    The types of an artifact's files are fixed: layers that only one of them keeps in float are observed as the base
    stores them, or with 8 bits, which is as near as its graph can come.

    Args:
        model: The float model.
        policy: The candidate's.
        base: The base's.
        manifest: Of the base.
        blobs: Have the candidate's weights.
    """
    observed = replace(policy, float_layers=base.float_layers)
    weights = {n: w for n, w in load_weights(policy, blobs).items() if n not in base.float_layers}
    return overrides_of(weight_contents(model, observed, weights), manifest)


def store_artifact(blobs: Blobs, artifact: Artifact) -> str:
    """Store the blobs, then the manifest; return the manifest's digest."""
    for digest, stored in artifact.blobs.items():
        if not blobs.has(digest):
            blobs.put(digest, stored)
    return write(blobs, artifact.manifest.to_bytes())


def load_manifest(blobs: Blobs, digest: str) -> Manifest:
    """Return a stored manifest."""
    return Manifest.from_bytes(read(blobs, digest))


def deliver(blobs: Blobs, manifest: Manifest, held: Collection[str]) -> Delivery:
    """Return the artifact as it goes to devices that hold the blobs `held` already."""
    missing = [digest for digest in manifest.blobs if digest not in held]
    return Delivery(manifest.to_bytes(), {digest: blobs.get(digest) for digest in missing})
