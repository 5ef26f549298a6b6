"""A signed repository in a temporary folder, and the files of a device that trusts it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from client.trusted_metadata import TrustedMetadata
from quantization.target_name import TargetName
from server.keys import KeyFolder
from server.signed_metadata import DEFAULT_LIFETIMES, Lifetimes, SignedMetadata

NOW = 1_800_000_000.0
DAY = 86_400.0
MODEL = "0f" * 32


def named(version: int, device_class: str = "arm") -> TargetName:
    return TargetName(MODEL, device_class, version)


@dataclass
class MemoryFiles:
    """A device's verified files."""

    files: dict[str, bytes] = field(default_factory=dict)

    def read(self, role: str) -> bytes | None:
        return self.files.get(role)

    def write(self, role: str, data: bytes) -> None:
        self.files[role] = data


@dataclass
class Repository:
    """A repository with both its key folders."""

    metadata: SignedMetadata
    offline: KeyFolder
    online: KeyFolder

    @classmethod
    def create(cls, path: Path, *, keys: int = 1, lifetimes: Lifetimes = DEFAULT_LIFETIMES) -> "Repository":
        made = cls(
            SignedMetadata(path / "metadata", lifetimes),
            KeyFolder(path / "offline"),
            KeyFolder(path / "online"),
        )
        made.metadata.create(made.offline, made.online, now_seconds=NOW, root_keys=keys, targets_keys=keys)
        return made

    def publish(self, version: int, manifest: bytes, now: float = NOW) -> None:
        self.metadata.publish(
            {named(version): manifest}, offline=self.offline, online=self.online, now_seconds=now
        )

    def rotate(self, role: str, now: float = NOW) -> None:
        self.metadata.rotate(role, offline=self.offline, online=self.online, now_seconds=now)

    def fetch(self, role: str, version: int) -> Iterable[bytes]:
        """Hand out a file in chunks, as a service does."""
        return chunked(self.metadata.read(role, version))

    def device(self) -> TrustedMetadata:
        return TrustedMetadata(MemoryFiles(), first_root=self.metadata.read("root", 1))


def chunked(data: bytes, size: int = 1000) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
