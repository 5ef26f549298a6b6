"""A device's state folder: what must survive a restart.

    blobs/<digest>       stored blobs, content-addressed
    manifest             manifest of the artifact that serves
    samples.npz          sampled inputs
    lock                 held by the one process that uses the folder

Rules:

1. A file appears whole or not at all: it is written beside its place, flushed to the disk, and renamed.
2. The manifest is written after the blobs it names, so that what it names is there.
3. What is read is verified; a blob that is damaged is removed and reported, so that it is fetched again.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from quantization.artifact import Manifest
from quantization.blob import check_digest, decode_blob_content
from quantization.errors import ConfigurationError, DigestMismatchError, MalformedError, NotFoundError

_MAX_SAMPLES_BYTES = 256 << 20
_MAX_MANIFEST_BYTES = 1 << 20


class StateFolder:
    """The folder, locked for this process until `close`."""

    def __init__(self, path: Path | str) -> None:
        """Create what is missing, take the lock, and clear away what a crash left half written.

        Raises:
            ConfigurationError: If the folder cannot be written, or another process uses it.
        """
        self.path = Path(path)
        self._blobs = self.path / "blobs"
        self._manifest = self.path / "manifest"
        self._samples = self.path / "samples.npz"
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._lock: IO[bytes] = (self.path / "lock").open("ab")
        except OSError as error:
            raise ConfigurationError(
                f"state folder {self.path} cannot be written ({error.strerror}); choose a writable folder"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigurationError(
                f"state folder {self.path} is in use by another process; stop it or choose another folder"
            ) from error
        for leftover in [*self.path.glob("*.tmp"), *self._blobs.glob("*.tmp")]:
            leftover.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock."""
        self._lock.close()

    def digests(self) -> frozenset[str]:
        """Return the names of the blobs that are held."""
        return frozenset(path.name for path in self._blobs.iterdir() if not path.name.endswith(".tmp"))

    def has_blob(self, digest: str) -> bool:
        """Return whether the blob is held."""
        return self._blob_path(digest).is_file()

    def read_blob(self, digest: str) -> bytes:
        """Return a blob's stored bytes, verified.

        Raises:
            NotFoundError: If it is not held.
            DigestMismatchError: If it is damaged; it is removed, and held no longer.
        """
        path = self._blob_path(digest)
        try:
            stored = path.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"blob {digest[:12]}... is not in {self._blobs}") from error
        try:
            decode_blob_content(stored, digest)
        except (MalformedError, DigestMismatchError) as error:
            path.unlink(missing_ok=True)
            raise DigestMismatchError(
                f"{path} was damaged and is removed; fetch it again: {error}"
            ) from error
        return stored

    def store_blob(self, digest: str, stored: bytes) -> None:
        """Keep a blob's stored bytes, once they are verified.

        Raises:
            MalformedError: If they are not a blob.
            DigestMismatchError: If they are another blob.
            ConfigurationError: If the folder cannot be written.
        """
        path = self._blob_path(digest)
        decode_blob_content(stored, digest)
        self._write(path, stored)

    def read_manifest(self) -> Manifest | None:
        """Return the manifest of the artifact that serves; None before the first.

        Raises:
            MalformedError: If the file is damaged.
        """
        data = _read_bounded(self._manifest, _MAX_MANIFEST_BYTES)
        return None if data is None else Manifest.from_bytes(data)

    def write_manifest(self, manifest: Manifest) -> None:
        """Make this artifact the one that serves after a restart.

        Raises:
            NotFoundError: If a blob that it names is not held.
            ConfigurationError: If the folder cannot be written.
        """
        missing = sorted(manifest.blobs.keys() - self.digests())
        if missing:
            raise NotFoundError(
                f"{len(missing)} blobs of the artifact are not held, the first is {missing[0]}"
            )
        self._write(self._manifest, manifest.to_bytes())

    def keep_only(self, manifests: Iterable[Manifest]) -> int:
        """Remove the blobs that none of these artifacts names; return how many there were."""
        named = {digest for manifest in manifests for digest in manifest.blobs}
        unnamed = self.digests() - named
        for digest in unnamed:
            self._blob_path(digest).unlink(missing_ok=True)
        return len(unnamed)

    def read_samples(self) -> bytes | None:
        """Return what `write_samples` kept; None before the first time."""
        return _read_bounded(self._samples, _MAX_SAMPLES_BYTES)

    def write_samples(self, data: bytes) -> None:
        """Keep a sampler's bytes."""
        self._write(self._samples, data)

    def _blob_path(self, digest: str) -> Path:
        return self._blobs / check_digest(digest)

    def _write(self, path: Path, data: bytes) -> None:
        """Put `data` in place of the file, all at once and for good."""
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise ConfigurationError(
                f"{path} cannot be written ({error.strerror}); free some space or choose a writable folder"
            ) from error


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_bounded(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    if len(data) > limit:
        raise MalformedError(f"{path} is larger than {limit} bytes")
    return data
