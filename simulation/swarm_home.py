"""What a swarm is upgraded to: versions of a real artifact, in the home folder of a real server."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from quantization.calibration import Range
from quantization.device_class import X86_VNNI
from quantization.policy import Policy
from server.blob_store import BlobStore
from server.candidate import PlannedModel, compile_artifact, store_artifact
from server.registry import Registry
from server.rollout_registry import RolloutRegistry
from server.target_versions import TargetVersion
from simulation.lab import prepare_task
from simulation.tasks.catalogue import load_task

DEVICE_CLASS = X86_VNNI
ACTOR = "swarm"


class SwarmHome:
    """A registry and blobs with a model that was prepared, and more versions of it, one after another.

    Attributes:
        model_digest: Of the model.
    """

    def __init__(self, folder: Path, versions: int, seed: int, cache_dir: Path | None = None) -> None:
        """Train, calibrate and compile.

        Args:
            folder: The server's home.
            versions: How many follow the first one.
            seed: Of the task.
            cache_dir: Where trained models are kept; None for the user's.
        """
        self._url = f"sqlite:///{folder / 'registry.db'}"
        blobs = BlobStore(folder / "blobs")
        task = load_task("digits", seed, cache_dir)
        with Registry.open(self._url) as registry:
            prepared = prepare_task(task, (DEVICE_CLASS,), "mse", registry, blobs)
        self.model_digest = prepared.model.digest
        generation = prepared.generations[DEVICE_CLASS.name]
        self._manifests = [("everything", generation.manifest_digest)]
        model = PlannedModel.load(self.model_digest, blobs)
        references = prepared.statistics[DEVICE_CLASS.name].references
        for what, policy in _policies(Policy.from_json_bytes(generation.policy.encode()), versions):
            self._manifests.append((what, store_artifact(blobs, compile_artifact(model, policy, references))))
        self._rollouts = RolloutRegistry.open(self._url)

    @property
    def changes(self) -> list[str]:
        """What each version changes, in words."""
        return [what for what, _ in self._manifests]

    def publish(self, number: int) -> TargetVersion:
        """Make a version, counted from 0, what all devices should run; return it."""
        what, digest = self._manifests[number]
        return self._rollouts.publish(
            self.model_digest, DEVICE_CLASS.name, digest, reason=f"changes {what}", actor=ACTOR
        )

    def close(self) -> None:
        """Close the registry."""
        self._rollouts.close()


def _policies(first: Policy, count: int) -> Iterator[tuple[str, Policy]]:
    """Yield policies, each with what it changes: the first, third, ... ranges alone, those between weights as well."""
    policy = first
    for number in range(1, count + 1):
        ranges = {site: Range(r.lo * 1.01, r.hi * 1.01) for site, r in policy.ranges.items()}
        policy = replace(policy, generation=number, ranges=ranges)
        if number % 2:
            yield "ranges", policy
        else:
            bits = 6 if number % 4 else 8
            policy = replace(policy, bit_widths=dict.fromkeys(policy.bit_widths, bits))
            yield "ranges and weights", policy
