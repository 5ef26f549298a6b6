"""Targets: which manifest each device of a class should run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from quantization.errors import NotFoundError
from server.generation import Step
from server.registry import Registry

MAX_MANIFESTS = 8
"""Newest manifests of a class whose blobs are served, and that differences start from."""


class Assignment(NamedTuple):
    """What one device should run.

    Attributes:
        version: Of the target; at least 1, only grows.
        manifest_digest: Names the manifest and the blob that holds it, 64 hex digits.
    """

    version: int
    manifest_digest: str


class Targets(Protocol):
    """What the devices of one class should run of one model; equal values assign the same."""

    def target_for(self, device: str) -> Assignment:
        """Return what one device should run, by its name."""
        ...

    @property
    def manifest_digests(self) -> Sequence[str]:
        """Manifests whose blobs devices may fetch, newest first."""
        ...


TargetSource = Callable[[str, str], Targets]
"""From a model's digest and a device class to what it should run now; may block.

Raises NotFoundError where the model was never published for the class.
"""


@dataclass(frozen=True, slots=True)
class PublishedTargets:
    """Every device runs what was published last.

    Attributes:
        targets: Newest first; at least one.
    """

    targets: tuple[Assignment, ...]

    def target_for(self, device: str) -> Assignment:  # noqa: ARG002 - all devices have the same
        """Return the newest target."""
        return self.targets[0]

    @property
    def manifest_digests(self) -> tuple[str, ...]:
        """Manifests of all targets, newest first."""
        return tuple(target.manifest_digest for target in self.targets)


def published_targets(registry: Registry) -> TargetSource:
    """Return the source in which a class runs its newest published generation; number n is version n + 1."""

    def find(model_digest: str, device_class: str) -> PublishedTargets:
        live = [g for g in registry.generations(model_digest, device_class) if g.step is Step.PUBLISHED]
        if not live:
            raise NotFoundError(
                f"model {model_digest[:12]} has no published target for device class '{device_class}'"
            )
        newest = reversed(live[-MAX_MANIFESTS:])
        return PublishedTargets(tuple(Assignment(g.number + 1, g.manifest_digest) for g in newest))

    return find
