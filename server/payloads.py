"""What is sent for a blob: chosen once, kept in memory while it is wanted, shared by all streams."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakValueDictionary

from protos.quantfleet.v1 import update_pb2 as pb
from quantization.delta import Encoding, choose_delta
from quantization.manifest import Manifest
from server.blob_store import BlobStore
from server.delta_store import DeltaStore

CHUNK_BYTES = 64 << 10
"""Data in one message."""

_WIRE = {
    Encoding.FULL: pb.BLOB_ENCODING_FULL,
    Encoding.INT8_SUB_ZSTD: pb.BLOB_ENCODING_INT8_SUB_ZSTD,
    Encoding.BSDIFF: pb.BLOB_ENCODING_BSDIFF,
    Encoding.BUNDLE: pb.BLOB_ENCODING_BUNDLE,
}

BUNDLED = frozenset({Encoding.BUNDLE})
"""Stands for a bundle where encodings are accepted."""

NamedManifest = tuple[str, Manifest]
"""A manifest with its digest."""

_Key = tuple[str, str, frozenset[Encoding]]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Payload:
    """What is sent for one blob, as the messages in which it is sent: a stream then does nothing but pass them on.

    Attributes:
        head: What the payload is.
        chunks: `BlobChunk` messages, serialised: 64 KiB of data each, all but the last.
    """

    head: pb.BlobPayload
    chunks: tuple[bytes, ...]

    @classmethod
    def of(cls, digest: str, encoding: Encoding, base_digest: str, data: bytes) -> "Payload":
        """Return the payload of a blob.

        Args:
            digest: Name of the blob, 64 hex digits.
            encoding: How the payload becomes the blob.
            base_digest: Content that it is a difference to; empty for a full blob.
            data: All bytes of the payload.
        """
        head = pb.BlobPayload(
            digest=bytes.fromhex(digest),
            encoding=_WIRE[encoding],
            base_digest=bytes.fromhex(base_digest),
            total_bytes=len(data),
            payload_digest=hashlib.sha256(data).digest(),
        )
        first = pb.BlobChunk(payload=head, data=data[:CHUNK_BYTES])
        rest = (
            pb.BlobChunk(offset_bytes=start, data=data[start : start + CHUNK_BYTES])
            for start in range(CHUNK_BYTES, len(data), CHUNK_BYTES)
        )
        return cls(head, tuple(chunk.SerializeToString() for chunk in (first, *rest)))

    @property
    def encoding(self) -> Encoding:
        """How the payload becomes the blob."""
        return Encoding(self.head.encoding)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole payload, without what the messages add."""
        return self.head.total_bytes

    def messages(self, start: int) -> Iterator[bytes]:
        """Yield the answer that sends the payload from an offset in bytes, at most its size."""
        skipped, inside = divmod(start, CHUNK_BYTES)
        if start:
            # Only the first message is made anew; from the next multiple of 64 KiB on, the answer is as ever.
            chunk = (
                pb.BlobChunk.FromString(self.chunks[skipped])
                if skipped < len(self.chunks)
                else pb.BlobChunk()
            )
            yield pb.BlobChunk(
                payload=self.head, offset_bytes=start, data=chunk.data[inside:]
            ).SerializeToString()
            skipped += 1
        yield from self.chunks[skipped:]


class PayloadSource:
    """Chooses and loads payloads; its methods block, and any thread may call them.

    However many streams send a payload, memory holds it once; `cache_bytes` of those used last stay when no stream
    does.
    """

    def __init__(self, blobs: BlobStore, deltas: DeltaStore, cache_bytes: int) -> None:
        """Serve from a blob store and the differences between its blobs."""
        self._blobs = blobs
        self._deltas = deltas
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._in_use: WeakValueDictionary[_Key, Payload] = WeakValueDictionary()
        self._kept: OrderedDict[_Key, Payload] = OrderedDict()
        self._kept_bytes = 0

    def known(self, digest: str, base: str | None, accepted: frozenset[Encoding]) -> Payload | None:
        """Return the payload if it is in memory, without blocking."""
        return self._recall((digest, base or "", accepted))

    def full(self, digest: str) -> Payload:
        """Return the blob as it is stored.

        Raises:
            NotFoundError: If it is not in the store.
            DigestMismatchError: If it is damaged there.
        """
        key: _Key = (digest, "", frozenset())
        return self._recall(key) or self._keep(
            key, Payload.of(digest, Encoding.FULL, "", self._blobs.get(digest))
        )

    def smallest(self, digest: str, base: str, accepted: frozenset[Encoding]) -> Payload:
        """Return the smallest payload for a device that holds `base`; computes differences where nobody has before.

        Raises:
            NotFoundError: If one of the two is not in the store.
            DigestMismatchError: If one of them is damaged there.
        """
        key: _Key = (digest, base, accepted)
        known = self._recall(key)
        if known is not None:
            return known
        delta = choose_delta(self._deltas.deltas(base, digest), accepted)
        if delta is None:
            return self._keep(key, self.full(digest))
        return self._keep(key, Payload.of(digest, delta.encoding, base, delta.payload))

    def bundle(self, target: NamedManifest, base: NamedManifest) -> Payload:
        """Return everything that one manifest names and another does not; made where nobody has made it before.

        Raises:
            NotFoundError: If there is nothing of the kind, or it is too large, or a blob is not in the store.
            DigestMismatchError: If a blob is damaged there.
        """
        key: _Key = (target[0], base[0], BUNDLED)
        known = self._recall(key)
        if known is not None:
            return known
        data = self._deltas.bundle(base, target)
        return self._keep(key, Payload.of(target[0], Encoding.BUNDLE, base[0], data))

    def _recall(self, key: _Key) -> Payload | None:
        with self._lock:
            payload = self._in_use.get(key)
            if payload is not None and key in self._kept:
                self._kept.move_to_end(key)
            return payload

    def _keep(self, key: _Key, payload: Payload) -> Payload:
        with self._lock:
            payload = self._in_use.setdefault(key, payload)  # another thread may have been faster
            if key not in self._kept and payload.size_bytes <= self._cache_bytes:
                self._kept[key] = payload
                self._kept_bytes += payload.size_bytes
            while self._kept_bytes > self._cache_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= oldest.size_bytes
            return payload
