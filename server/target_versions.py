"""What the registry keeps of a target: every version that was ever published."""

from dataclasses import dataclass

from server.rollout import Rollout, target_of
from server.targets import Assignment


@dataclass(frozen=True, slots=True)
class TargetVersion:
    """One version of a target; an earlier content may come back as a newer version.

    Attributes:
        model_digest: SHA-256 of the canonical float model, hex.
        device_class: Name of the device class.
        version: Counts from 1, by one.
        manifest_digest: SHA-256 of the artifact's manifest, hex.
        reason: Why it was published, in words.
        at_seconds: When, seconds since 1970 (UTC).
    """

    model_digest: str
    device_class: str
    version: int
    manifest_digest: str
    reason: str = ""
    at_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ServedTarget:
    """What the devices of one class should have of one model: a `server.targets.Targets`.

    Attributes:
        versions: Newest first, at least one.
        rollout: The one that brought the newest version; None where it was published to all, or brought back.
    """

    versions: tuple[TargetVersion, ...]
    rollout: Rollout | None

    def target_for(self, device: str) -> Assignment:
        """Return what one device should run, by its name."""
        if self.rollout is not None:
            return Assignment(*target_of(self.rollout, device))
        return Assignment(self.versions[0].version, self.versions[0].manifest_digest)

    @property
    def base(self) -> Assignment:
        """What devices outside an open rollout get."""
        if self.rollout is not None and self.rollout.is_open:
            return Assignment(self.rollout.base_version, self.rollout.base_manifest_digest)
        newest = self.versions[0]
        return Assignment(newest.version, newest.manifest_digest)

    @property
    def manifest_digests(self) -> tuple[str, ...]:
        """Manifests of all versions, newest first, each once."""
        return tuple(dict.fromkeys(version.manifest_digest for version in self.versions))
