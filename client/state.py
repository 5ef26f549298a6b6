"""A device's state folder: what must survive a restart.

    slots                which artifact serves, is on trial, or is there to go back to: `client.slots`
    blobs/<digest>       stored blobs, content-addressed; manifests are blobs too
    partial/<digest>     what was fetched so far of blobs: `client.partial`
    spool/<sequence>     telemetry that was not sent yet: `client.spool`
    samples.npz          sampled inputs
    lock, guests         who uses the folder: `client.folder_lock`

Rules:

1. A file appears whole or not at all: it is written beside its place, flushed to the disk, and renamed.
2. The slots are written after whatever they name, so that what they name is there.
3. What is read is verified; a blob that is damaged is removed and reported, so that it is fetched again.
4. One process owns the folder and alone changes the slots and removes blobs; guests read, and add blobs.
"""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

from client.blobs import BlobFolder
from client.disk import TEMPORARY, Disk, replace_file
from client.folder_lock import Access, FolderLock
from client.slots import MAX_SLOTS_BYTES, Event, Slots, Target
from quantization.artifact import Manifest
from quantization.blob import decode_blob_content, encode_blob
from quantization.errors import ConfigurationError, MalformedError, NotFoundError

_MAX_SAMPLES_BYTES = 256 << 20


class StateFolder:
    """The folder, locked for this process until `close`.

    Attributes:
        path: Of the folder.
        disk: Does whatever changes it.
        blobs: The blobs, and the manifests under their own digests.
    """

    def __init__(
        self,
        path: Path | str,
        access: Access = Access.OWNER,
        disk: Disk = Disk(),  # noqa: B008  # has no state
    ) -> None:
        """Create what is missing and take the lock; an owner clears away what a crash left half written.

        Args:
            path: Of the folder.
            access: As owner, of which there is one, or as guest.
            disk: Does whatever changes the folder.

        Raises:
            ConfigurationError: If the folder is not there and cannot be made, or another process owns it.
        """
        self.path, self.disk = Path(path), disk
        self._slots = self.path / "slots"
        self._samples = self.path / "samples.npz"
        self.blobs = BlobFolder(self.path / "blobs", disk)
        try:
            if not self.blobs.path.is_dir():
                disk.make_folder(self.blobs.path)
        except OSError as error:
            raise ConfigurationError(
                f"state folder {self.path} cannot be written ({error.strerror}); choose a writable folder"
            ) from error
        self._lock = FolderLock(self.path, access)
        if access is Access.OWNER:
            self._clear_leftovers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock."""
        self._lock.close()

    @property
    def lock(self) -> FolderLock:
        """Says who uses the folder."""
        return self._lock

    def digests(self) -> frozenset[str]:
        """Return the names of the blobs that are held."""
        return self.blobs.digests()

    def has_blob(self, digest: str) -> bool:
        """Return whether the blob is held."""
        return self.blobs.has(digest)

    def read_blob(self, digest: str) -> bytes:
        """Return a blob's stored bytes, verified; errors are those of `BlobFolder.read`."""
        return self.blobs.read(digest)

    def store_blob(self, digest: str, stored: bytes) -> None:
        """Keep a blob's stored bytes, once they are verified; errors are those of `BlobFolder.store`."""
        self.blobs.store(digest, stored)

    def slots(self) -> Slots:
        """Return what is installed.

        Raises:
            MalformedError: If the file is damaged.
        """
        data = _read_bounded(self._slots, MAX_SLOTS_BYTES)
        return Slots() if data is None else Slots.from_bytes(data)

    def advance(self, event: Event, target: Target | None = None) -> Slots:
        """Return the slots after an event, once that is on the disk for good.

        Raises:
            IllegalTransitionError: If it cannot happen now.
            ConfigurationError: If this process does not own the folder, or it cannot be written.
        """
        return self.write_slots(self.slots().advance(event, target))

    def write_slots(self, slots: Slots) -> Slots:
        """Make these the slots, for good; return them.

        Raises:
            ConfigurationError: If this process does not own the folder, or it cannot be written.
        """
        with self._lock.owning() as is_owner:
            if not is_owner:
                raise ConfigurationError(f"another process decides what serves from {self.path}")
            replace_file(self.disk, self._slots, slots.to_bytes())
        return slots

    def read_manifest(self, target: Target | None = None) -> Manifest | None:
        """Return the manifest of a target, or of the artifact that serves; None before the first.

        Raises:
            MalformedError: If the slots are damaged, or name something else than a manifest.
            NotFoundError: If the manifest is not held.
            DigestMismatchError: If it is damaged.
        """
        wanted = target or self.slots().serving
        if wanted is None:
            return None
        digest = wanted.manifest_digest
        return Manifest.from_bytes(decode_blob_content(self.read_blob(digest), digest))

    def missing_blobs(self, manifest: Manifest) -> list[str]:
        """Return the digests of the blobs that a manifest names and that are not held, in order."""
        return sorted(digest for digest in manifest.blobs if not self.has_blob(digest))

    def store_manifest(self, manifest: Manifest) -> str:
        """Keep a manifest whose blobs are all held; return its digest.

        Raises:
            NotFoundError: If a blob that it names is not held.
            ConfigurationError: If the folder cannot be written.
        """
        missing, digest = self.missing_blobs(manifest), manifest.digest()
        if missing:
            raise NotFoundError(
                f"{len(missing)} blobs of the artifact are not held, the first is {missing[0]}"
            )
        if not self.has_blob(digest):
            self.store_blob(digest, encode_blob(manifest.to_bytes()))
        return digest

    def write_manifest(self, manifest: Manifest, version: int = 0) -> None:
        """Make this artifact the one that serves after a restart, without a trial.

        Args:
            manifest: Of an artifact whose blobs are all held.
            version: Of the target that named it; 0 if none did.

        Raises:
            NotFoundError: If a blob that it names is not held.
            IllegalTransitionError: If another artifact is on trial.
            ConfigurationError: If this process does not own the folder, or it cannot be written.
        """
        target, slots = Target(version, self.store_manifest(manifest)), self.slots()
        if slots.serving != target:
            self.write_slots(slots.advance(Event.INSTALLED, target))

    def read_samples(self) -> bytes | None:
        """Return what `write_samples` kept; None before the first time."""
        return _read_bounded(self._samples, _MAX_SAMPLES_BYTES)

    def write_samples(self, data: bytes) -> None:
        """Keep a sampler's bytes, which are inputs: for the owner of the folder alone."""
        replace_file(self.disk, self._samples, data, is_private=True)

    def _clear_leftovers(self) -> None:
        """Remove what was not written to its end; while a guest is there, it may be what the guest writes now."""
        with self._lock.alone() as is_alone, contextlib.suppress(OSError):  # a folder that can only be read
            leftovers = [*self.path.glob(f"*{TEMPORARY}"), *self.path.glob(f"*/*{TEMPORARY}")]
            for leftover in leftovers if is_alone else ():
                self.disk.remove(leftover)


def _read_bounded(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    if len(data) > limit:
        raise MalformedError(f"{path} is larger than {limit} bytes")
    return data
