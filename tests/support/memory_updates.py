"""An update service in memory: what `client.transport.Transport` asks for, with networks that fail on demand."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from client.slots import Target
from client.transport import NOTHING_COMPLETE, Offer, Payload, Piece, Want
from quantization.artifact import Artifact
from quantization.blob import decode_blob_content, encode_blob
from quantization.delta import Encoding, choose_delta, make_deltas
from quantization.errors import NotFoundError, UnreachableError

EVERYTHING = frozenset(Encoding)


class MemoryUpdates:
    """Publishes artifacts; differences are made to any base that helps.

    Attributes:
        chunk_bytes: Of one piece.
        breaks_after_bytes: The stream breaks after so many bytes; None for never.
        damages: Pieces, counted from the first of all, in which a bit is flipped.
        is_reachable: Whether it answers.
        checks: What devices asked with.
        sent: Digest, offset and size of every piece that was sent.
    """

    def __init__(self, chunk_bytes: int = 64 << 10, encodings: Collection[Encoding] = EVERYTHING) -> None:
        self.chunk_bytes, self.encodings = chunk_bytes, encodings
        self.breaks_after_bytes: int | None = None
        self.damages: Collection[int] = ()
        self.is_reachable = True
        self.checks: list[tuple[str, str, Target | None]] = []
        self.sent: list[tuple[str, int, int]] = []
        self.blobs: dict[str, bytes] = {}
        self.target: Target | None = None

    brings_bundles = False

    @property
    def sent_bytes(self) -> int:
        return sum(size for _, _, size in self.sent)

    def publish(self, artifact: Artifact, version: int) -> Target:
        """Make an artifact what every device should run."""
        manifest = artifact.manifest.to_bytes()
        self.blobs |= {**artifact.blobs, artifact.manifest.digest(): encode_blob(manifest)}
        self.target = Target(version, artifact.manifest.digest())
        return self.target

    def check(self, device_class: str, model_digest: str, serving: Target | None) -> Offer | None:
        self._reach()
        self.checks.append((device_class, model_digest, serving))
        return None if self.target is None else Offer(self.target, retry_after_seconds=30.0)

    def fetch(
        self,
        wants: Sequence[Want],
        held: Collection[str],
        complete: Mapping[str, Collection[str]] = NOTHING_COMPLETE,  # noqa: ARG002 - `held` says it too
    ) -> Iterator[Piece]:
        for want in wants:
            self._reach()
            yield from self._answer(want, held)

    def _answer(self, want: Want, held: Collection[str]) -> Iterator[Piece]:
        if want.digest not in self.blobs:
            raise NotFoundError(f"blob {want.digest[:12]} was never published")
        payload, data = self._payload(want.digest, held)
        start = want.offset_bytes if want.payload_digest == payload.payload_digest else 0
        for offset in range(start, max(len(data), start + 1), self.chunk_bytes):
            piece = data[offset : offset + self.chunk_bytes]
            yield Piece(payload if offset == start else None, offset, self._carry(want.digest, offset, piece))

    def _carry(self, digest: str, offset: int, piece: bytes) -> bytes:
        if self.breaks_after_bytes is not None and self.sent_bytes + len(piece) > self.breaks_after_bytes:
            raise UnreachableError("the network is gone")
        self.sent.append((digest, offset, len(piece)))
        if len(self.sent) - 1 in self.damages:
            return bytes([piece[0] ^ 1]) + piece[1:]
        return piece

    def _payload(self, digest: str, held: Collection[str]) -> tuple[Payload, bytes]:
        """Return the smallest form in which a blob can be sent."""
        best, encoding, base_digest = self.blobs[digest], Encoding.FULL, ""
        content = decode_blob_content(best, digest)
        for base in sorted(set(held) & self.blobs.keys()) if len(self.encodings) > 1 else ():
            base_content = decode_blob_content(self.blobs[base], base)
            if len(base_content) == len(content):
                delta = choose_delta(make_deltas(base_content, content), self.encodings)
                if delta is not None and len(delta.payload) < len(best):
                    best, encoding, base_digest = delta.payload, delta.encoding, base
        return Payload(digest, encoding, base_digest, len(best), hashlib.sha256(best).hexdigest()), best

    def _reach(self) -> None:
        if not self.is_reachable:
            raise UnreachableError("nobody answers")
