"""What may be removed from a device's disk, and when: blobs that no slot names, within a limit.

1. What serves, what is on trial and what is there to go back to stay, with every blob that they name.
2. While a guest uses the folder nothing is removed: it may have just stored what it is about to read.
3. Where an update does not fit beside them, what is there to go back to goes first; if it still does not fit, the
   update is refused and nothing else is removed.
4. A bundle lies beside all that it holds until that is stored. Where there is no room for both, what came of it is
   removed, and the update comes blob by blob.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from client.partial import PARTIAL, PartialBlobs
from client.slots import NEXT_PHASE, Event
from client.state import StateFolder
from quantization.artifact import Manifest
from quantization.blob import HEADER_BYTES
from quantization.errors import (
    ConfigurationError,
    DigestMismatchError,
    MalformedError,
    NotFoundError,
    UpdateRejectedError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What updates may cost a device.

    Attributes:
        disk_bytes: Most that blobs and parts of them may take.
        free_bytes: Of the file system, that are left to others.
        metered_bytes: Most that one update may fetch over a network that is paid by the byte; 0 for none at all.
    """

    disk_bytes: int = 2 << 30
    free_bytes: int = 64 << 20
    metered_bytes: int = 256 << 10

    def __post_init__(self) -> None:
        """Refuse what is less than nothing."""
        if min(self.disk_bytes, self.free_bytes, self.metered_bytes) < 0:
            raise ConfigurationError(f"limits are 0 bytes or more, not {self}")

    def may_fetch(self, update_bytes: int, *, is_metered: bool) -> bool:
        """Return whether an update of this size may be fetched now, or waits for another network."""
        return not is_metered or update_bytes <= self.metered_bytes


def named_digests(state: StateFolder, more: Iterable[Manifest] = ()) -> frozenset[str]:
    """Return the digests of everything that the slots, and these manifests, name.

    A manifest that is lost names nothing: its blobs are found again by whoever fetches it again.
    """
    named: set[str] = set()
    for target in state.slots().targets:
        named.add(target.manifest_digest)
        try:
            manifest = state.read_manifest(target)
        except (NotFoundError, DigestMismatchError, MalformedError):
            continue
        named |= manifest.blobs.keys() if manifest else set()
    for manifest in more:
        named |= {manifest.digest(), *manifest.blobs}
    return frozenset(named)


def collect(state: StateFolder, keep: Iterable[Manifest] = ()) -> int:
    """Remove the blobs that nothing names; return how many there were.

    Args:
        state: Of which this process is the owner.
        keep: Manifests of artifacts that are being fetched.
    """
    with state.lock.alone() as is_alone:
        unnamed = state.digests() - named_digests(state, keep) if is_alone else frozenset()
        for digest in sorted(unnamed):
            state.blobs.remove(digest)
    return len(unnamed)


def used_bytes(state: StateFolder) -> int:
    """Return what the blobs, whole and in part, take on the disk; files may come and go meanwhile."""
    folders = (state.blobs.path, state.path / PARTIAL)
    files = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return sum(_size_bytes(path) for path in files)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def make_room(state: StateFolder, manifest: Manifest, limits: Limits) -> bool:
    """Remove what must go so that an artifact fits beside the one that serves; return whether a bundle of it fits too.

    A bundle takes as much as its blobs, at most. What came of a blob, or of the bundle, is there already.

    Args:
        state: Of which this process is the owner.
        manifest: Of the artifact that is to be fetched, and is held.
        limits: What it may cost.

    Raises:
        UpdateRejectedError: If it does not fit; what serves is as it was.
    """
    missing = {digest: ref for digest, ref in manifest.blobs.items() if not state.has_blob(digest)}
    sizes = {digest: ref.stored_size_bytes + HEADER_BYTES for digest, ref in missing.items()}
    needed = sum(max(0, size - _came_bytes(state, digest)) for digest, size in sizes.items())
    of_bundle = max(0, sum(sizes.values()) - _came_bytes(state, manifest.digest()))
    if _excess(state, needed + of_bundle, limits) <= 0:
        return True
    PartialBlobs(state.path / PARTIAL, state.disk).remove(manifest.digest())
    _make_room(state, manifest, needed, limits)
    return False


def _make_room(state: StateFolder, manifest: Manifest, needed: int, limits: Limits) -> None:
    if _excess(state, needed, limits) <= 0:
        return
    collect(state, [manifest])
    slots = state.slots()
    may_drop = slots.fallback is not None and (slots.phase, Event.FALLBACK_DROPPED) in NEXT_PHASE
    if may_drop and _excess(state, needed, limits) > 0:
        state.advance(Event.FALLBACK_DROPPED)
        collect(state, [manifest])
    excess = _excess(state, needed, limits)
    if excess > 0:
        raise UpdateRejectedError(
            f"the update needs {needed} bytes, {excess} more than this device can give; allow more or free some space"
        )


def _came_bytes(state: StateFolder, digest: str) -> int:
    """Return what came so far of a blob."""
    return _size_bytes(state.path / PARTIAL / digest)


def _excess(state: StateFolder, needed: int, limits: Limits) -> int:
    """Return by how many bytes an update does not fit; 0 or less if it does."""
    over_limit = used_bytes(state) + needed - limits.disk_bytes
    over_disk = needed + limits.free_bytes - shutil.disk_usage(state.path).free
    return max(over_limit, over_disk)
