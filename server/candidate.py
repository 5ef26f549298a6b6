"""From a policy to an artifact in the blob store, and from there to what a device still lacks."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from quantization.artifact import Artifact, Manifest, build_artifact
from quantization.blob import content_digest
from quantization.compile import channels_file as compile_channels
from quantization.compile import compile_inference
from quantization.compile_observation import compile_observation
from quantization.device_class import DeviceClass
from quantization.errors import ConfigurationError
from quantization.graph import GraphPlan, analyze
from quantization.moments import ChannelReference
from quantization.policy import Policy
from server.folded import Blobs, read, write
from strategies.messages import Delivery


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A canonical float model and what was found in it.

    Attributes:
        digest: SHA-256 of `content`, hex.
        content: The ONNX bytes.
        plan: Its layers and sites.
    """

    digest: str
    content: bytes
    plan: GraphPlan

    @classmethod
    def of(cls, canonical: bytes) -> "PlannedModel":
        """Return the model with its plan.

        Args:
            canonical: As `quantization.graph.canonicalize` returns it.
        """
        return cls(content_digest(canonical), canonical, analyze(canonical))

    @classmethod
    def load(cls, digest: str, blobs: Blobs) -> "PlannedModel":
        """Return a registered model."""
        return cls.of(read(blobs, digest))


def compile_artifact(
    model: PlannedModel, policy: Policy, references: Mapping[str, ChannelReference]
) -> Artifact:
    """Return the artifact of a policy; the same inputs give the same bytes."""
    inference = compile_inference(model.content, model.plan, policy)
    observation = compile_observation(model.content, model.plan, policy, references)
    return build_artifact(inference, observation, policy, model.plan)


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
