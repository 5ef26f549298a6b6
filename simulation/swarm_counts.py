"""What the devices of a swarm share in one process: verified contents, and what they count."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from quantization.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Told:
    """A device was told of a version, or runs it.

    Attributes:
        kind: "told" or "current".
        version: Of the target.
        manifest_digest: Of its manifest, hex.
        at_seconds: By the monotonic clock of the machine.
    """

    kind: str
    version: int
    manifest_digest: str
    at_seconds: float


@dataclass(slots=True)
class SwarmCounts:
    """What the devices of one process have counted.

    Attributes:
        received_bytes: Data of payloads that came.
        refetched_bytes: Those of them that had come before.
        refetched_payloads: Payloads of which at least a byte came again.
        verified_blobs: Contents that were decoded and had the right digest.
        errors: What went wrong and was tried again, by kind.
    """

    received_bytes: int = 0
    refetched_bytes: int = 0
    refetched_payloads: int = 0
    verified_blobs: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        names = [field.name for field in fields(self) if field.name != "errors"]
        return {name: getattr(self, name) for name in names} | {"errors": dict(self.errors)}


class Contents:
    """Verified contents by digest, one copy for all devices of a process."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}
        self._manifests: dict[str, Manifest] = {}

    def keep(self, digest: str, content: bytes) -> None:
        """Keep what a device has verified."""
        self._contents.setdefault(digest, content)

    def read(self, digest: str) -> bytes:
        """Return a content that a device holds."""
        return self._contents[digest]

    def manifest(self, digest: str) -> Manifest:
        """Return a manifest that a device holds.

        Raises:
            MalformedError: If the content is none.
        """
        if digest not in self._manifests:
            self._manifests[digest] = Manifest.from_bytes(self._contents[digest])
        return self._manifests[digest]


@dataclass(frozen=True, slots=True)
class SwarmTarget:
    """What all devices of a swarm run.

    Attributes:
        model_digest: Of the model, hex.
        device_class: Name of the class.
        is_at_once: Whether devices fetch at once, and not when the server asks them to.
    """

    model_digest: str
    device_class: str
    is_at_once: bool
