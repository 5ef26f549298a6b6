"""Fetches the blobs that a device lacks, keeps what came when the stream breaks, and goes on from there.

1. The digest of the decoded content decides whether something is kept as a blob, whatever its encoding.
2. Nothing is allocated or kept that is larger than the manifest says that the blob is.
3. Answers must be to the wants, in their order.
"""

import contextlib
from collections.abc import Iterator, Mapping

from client.partial import PartialBlobs
from client.state import StateFolder
from client.transport import Payload, Piece, Transport
from quantization.blob import HEADER_BYTES, content_size_bytes, decode_blob_content, encode_blob
from quantization.delta import Encoding, apply_delta
from quantization.errors import DigestMismatchError, MalformedError, NotFoundError, UnreachableError

_STORED_LEVEL = 3
"""Of zstd, for what a device puts together from a difference: it is stored once, and never sent."""


def fetch_blobs(
    transport: Transport,
    state: StateFolder,
    partial: PartialBlobs,
    sizes_bytes: Mapping[str, int],
    *,
    are_exact: bool = True,
) -> int:
    """Fetch the blobs that are not held; return how many bytes came.

    Args:
        transport: Brings them.
        state: Keeps them.
        partial: Keeps what came of those that are not complete.
        sizes_bytes: By digest, what the blob decodes to.
        are_exact: Whether it does so exactly; else at most.

    Raises:
        UnreachableError: If the stream ends too early; what came is kept.
        MalformedError: If something else came than was asked for.
        DigestMismatchError: If what came is not what its name says; it is fetched anew the next time.
        ConfigurationError: If the folder cannot be written.
    """
    wants = [partial.want(digest) for digest in sorted(sizes_bytes) if not state.has_blob(digest)]
    if not wants:
        return 0
    came, pieces = 0, transport.fetch(wants, state.digests(), _complete_manifests(state))
    for want in wants:
        first = _next(pieces)
        payload = _checked(first, want.digest, sizes_bytes[want.digest])
        partial.begin(payload, first.offset_bytes)
        came += _receive(first, pieces, payload, partial)
        try:
            size = sizes_bytes[want.digest]
            stored = _stored(payload, partial.read(payload), state, size, is_exact=are_exact)
            state.store_blob(want.digest, stored)
        except (MalformedError, DigestMismatchError, NotFoundError):
            partial.remove(want.digest)
            raise
        partial.remove(want.digest)
    return came


def _complete_manifests(state: StateFolder) -> dict[str, frozenset[str]]:
    """Return the manifests that the slots name and of which everything is held, with the blobs that they name."""
    complete = {}
    with contextlib.suppress(MalformedError):  # of the slots: then nothing is complete
        for target in state.slots().targets:
            with contextlib.suppress(MalformedError, NotFoundError, DigestMismatchError):
                manifest = state.read_manifest(target)
                if manifest is not None and not state.missing_blobs(manifest):
                    complete[target.manifest_digest] = frozenset(manifest.blobs)
    return complete


def _checked(piece: Piece, digest: str, size_bytes: int) -> Payload:
    """Return what an answer says that it sends, once that may be the blob."""
    payload = piece.payload
    if payload is None or payload.digest != digest:
        raise MalformedError(f"an answer came for something else than blob {digest[:12]}...")
    if payload.total_bytes > HEADER_BYTES + size_bytes:
        raise MalformedError(
            f"{payload.total_bytes} bytes are offered for blob {digest[:12]}..., which decodes to {size_bytes}"
        )
    return payload


def _receive(piece: Piece, pieces: Iterator[Piece], payload: Payload, partial: PartialBlobs) -> int:
    """Keep one answer, from its first piece to its end; return how many bytes came."""
    came, end = 0, piece.offset_bytes
    while True:
        if piece.offset_bytes != end or end + len(piece.data) > payload.total_bytes:
            raise MalformedError(
                f"data for blob {payload.digest[:12]}... that does not fit behind byte {end}"
            )
        partial.append(payload.digest, piece.data)
        came, end = came + len(piece.data), end + len(piece.data)
        if end == payload.total_bytes:
            return came
        piece = _next(pieces)
        if piece.payload is not None or not piece.data:
            raise MalformedError(f"blob {payload.digest[:12]}... ends at byte {end} of {payload.total_bytes}")


def _next(pieces: Iterator[Piece]) -> Piece:
    piece = next(pieces, None)
    if piece is None:
        raise UnreachableError("the stream of blobs ended too early")
    return piece


def _stored(payload: Payload, data: bytes, state: StateFolder, size_bytes: int, *, is_exact: bool) -> bytes:
    """Return the stored blob that a payload makes, of which nothing is decoded that is larger than it may be."""
    if payload.encoding is Encoding.FULL:
        declared = content_size_bytes(data)
        if declared > size_bytes or (is_exact and declared != size_bytes):
            raise MalformedError(
                f"blob {payload.digest[:12]}... of {declared} decoded bytes where {size_bytes} are expected"
            )
        return data
    base = decode_blob_content(state.read_blob(payload.base_digest), payload.base_digest)
    content = apply_delta(data, base, payload.digest, size_bytes if is_exact else None)
    return encode_blob(content, is_codes=True, level=_STORED_LEVEL)
