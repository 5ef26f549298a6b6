"""Which contents the devices of a class may fetch, and what a difference to one can start from."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet

from quantization.blob import decode_blob_content
from quantization.bundle import contents_by_slot
from quantization.manifest import Manifest
from server.blob_store import BlobStore

_MAX_CLASSES = 64


class ServedContents:
    """Contents of a few manifests of one model and class.

    A *slot* is where a content stands in a manifest: a graph, file or self-test of a stage, or the manifest itself.
    Contents that stand in one slot of different manifests are versions of one thing.

    Attributes:
        manifests: By digest.
    """

    def __init__(self, manifests: Sequence[tuple[str, Manifest]]) -> None:
        """Index manifests, newest first, each with its digest."""
        self._versions: dict[str, list[str]] = {}
        self._slots: dict[str, list[str]] = {}
        self.manifests = dict(manifests)
        self._manifests: dict[str, set[str]] = {}  # by content, those that name it
        for digest, manifest in manifests:
            self._add("manifest", digest, digest)
            for stage in manifest.stages:
                for slot, ref in contents_by_slot(stage):
                    self._add(slot, ref.digest, digest)

    def __contains__(self, digest: object) -> bool:
        return digest in self._slots

    def base_for(
        self, digest: str, held: Collection[str], held_manifests: AbstractSet[str] = frozenset()
    ) -> str | None:
        """Return the newest other version of a content among those held; None if there is none.

        Args:
            digest: Of the content.
            held: Contents that are held.
            held_manifests: Manifests of which everything is held.
        """
        others = (other for slot in self._slots.get(digest, ()) for other in self._versions[slot])
        usable = (o for o in others if o in held or not held_manifests.isdisjoint(self._manifests[o]))
        return next((other for other in usable if other != digest), None)

    def _add(self, slot: str, digest: str, manifest: str) -> None:
        self._manifests.setdefault(digest, set()).add(manifest)
        versions, slots = self._versions.setdefault(slot, []), self._slots.setdefault(digest, [])
        if digest not in versions:
            versions.append(digest)
        if slot not in slots:
            slots.append(slot)


class Catalog:
    """Reads manifests from the blob store, and keeps the contents of the classes that were asked for last."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], ServedContents] = OrderedDict()

    def known(self, manifest_digests: Sequence[str]) -> ServedContents | None:
        """Return the contents of manifests if they are in memory, without blocking."""
        key = tuple(manifest_digests)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def contents(self, manifest_digests: Sequence[str]) -> ServedContents:
        """Return the contents of manifests, given newest first; blocks, and any thread may call it.

        Raises:
            NotFoundError: If the blob store lacks a manifest.
            DigestMismatchError: If one is damaged.
        """
        contents = self.known(manifest_digests)
        if contents is None:
            contents = ServedContents([(digest, self._read(digest)) for digest in manifest_digests])
            with self._lock:
                self._kept[tuple(manifest_digests)] = contents
                while len(self._kept) > _MAX_CLASSES:
                    self._kept.popitem(last=False)
        return contents

    def _read(self, digest: str) -> Manifest:
        return Manifest.from_bytes(decode_blob_content(self._blobs.get(digest), digest))
