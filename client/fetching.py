"""Fetches the blobs that a device lacks, keeps what came when the stream breaks, and goes on from there.

1. The digest of the decoded content decides whether something is kept as a blob, whatever its encoding.
2. Nothing is allocated or kept that is larger than the manifest says that the blob is.
3. Answers must be to the wants, in their order.
4. What an artifact lacks comes as one bundle, from a service that makes it.
5. A blob is written once: the file that grows while it comes is the one that is moved to the blobs.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace

from client.partial import PartialBlobs
from client.state import StateFolder
from client.transport import Payload, Piece, Transport
from client.verifying import ArrivingContent, check_full, damage_told, verifier
from quantization.blob import HEADER_BYTES, decode_blob_content, encode_blob
from quantization.bundle import is_bundled, most_bundle_bytes, parts_between, read_bundle
from quantization.delta import Encoding, apply_delta
from quantization.errors import DigestMismatchError, MalformedError, NotFoundError, UnreachableError
from quantization.manifest import Manifest

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
    try:
        with verifier() as checking:
            for want in wants:
                first, size = _next(pieces), sizes_bytes[want.digest]
                payload = _checked(first, want.digest, size)
                partial.begin(payload, first.offset_bytes)
                arriving = ArrivingContent(payload, size, is_exact=are_exact)
                if first.offset_bytes:
                    arriving.take(partial.view(want.digest))
                came += _receive(first, pieces, payload, partial, arriving.take)
                keep = functools.partial(_keep_full, want.digest, state, partial)
                if payload.encoding is not Encoding.FULL:
                    received = partial.view(want.digest)
                    _keep_difference(payload, received, size if are_exact else None, state, partial)
                elif arriving.is_right():
                    checking.passed(keep)
                else:
                    received = partial.view(want.digest)
                    check = functools.partial(check_full, payload, received, size, is_exact=are_exact)
                    checking.check(check, len(received), keep)
    finally:
        _close(pieces)
    return came


def fetch_artifact(
    transport: Transport,
    state: StateFolder,
    partial: PartialBlobs,
    manifest: Manifest,
    *,
    fits_bundle: bool = True,
) -> int:
    """Fetch what a manifest names and the device lacks, in one bundle if that can be had; return how many bytes came.

    A bundle that is not what it must be costs its bytes: its blobs are fetched one by one then.

    Args:
        transport: Brings it.
        state: Keeps it, and has the bases.
        partial: Keeps what came of what is not complete.
        manifest: Of the artifact.
        fits_bundle: Whether a bundle, which lies beside all that it holds, has room on the disk.

    Raises:
        Errors are those of `fetch_blobs`.
    """
    came = 0
    if fits_bundle and transport.brings_bundles and len(state.missing_blobs(manifest)) > 1:
        for base in list(_complete_manifests(state))[:1]:
            came += _fetch_bundle(transport, state, partial, base, manifest)
    sizes = {digest: ref.decoded_size_bytes for digest, ref in manifest.blobs.items()}
    return came + fetch_blobs(transport, state, partial, sizes)


def _fetch_bundle(
    transport: Transport, state: StateFolder, partial: PartialBlobs, base: str, manifest: Manifest
) -> int:
    """Fetch a bundle and keep what it holds, if the service has it and it is right; return how many bytes came."""
    digest = manifest.digest()
    parts = parts_between(Manifest.from_bytes(_content_of(state, base)), manifest)
    if not is_bundled(parts):
        return 0
    want = replace(partial.want(digest), base_manifest=base)
    came, pieces = 0, transport.fetch([want], ())
    try:
        first = _next(pieces)
        payload = _checked(first, digest, most_bundle_bytes(parts))
        if payload.encoding is not Encoding.BUNDLE or payload.base_digest != base:
            return 0  # a service that knows no bundles sends the manifest
        partial.begin(payload, first.offset_bytes)
        came = _receive(first, pieces, payload, partial)
        read_base = functools.cache(functools.partial(_content_of, state))
        for part, content in read_bundle(partial.view(digest), parts, read_base):
            if not state.has_blob(part):
                state.blobs.keep_verified(part, encode_blob(content, is_codes=True, level=_STORED_LEVEL))
        partial.remove(digest)
    except (NotFoundError, MalformedError, DigestMismatchError):
        partial.remove(digest)
    finally:
        _close(pieces)
    return came


def _content_of(state: StateFolder, digest: str) -> bytes:
    return decode_blob_content(state.read_blob(digest), digest)


def _close(pieces: Iterator[Piece]) -> None:
    if isinstance(pieces, Generator):
        pieces.close()


def _keep_full(digest: str, state: StateFolder, partial: PartialBlobs, error: BaseException | None) -> None:
    """Keep a blob that came as it is stored, and is verified; forget it if that found an error."""
    if error is None:
        state.blobs.adopt_verified(digest, partial.file(digest))
    partial.remove(digest)
    if error is not None:
        raise error


def _keep_difference(
    payload: Payload, received: memoryview, size_bytes: int | None, state: StateFolder, partial: PartialBlobs
) -> None:
    """Keep the blob that a difference makes, once it is verified."""
    digest, base_digest = payload.digest, payload.base_digest
    try:
        base = _content_of(state, base_digest)
        with damage_told(payload, received):
            content = apply_delta(received, base, digest, size_bytes)
    except (MalformedError, DigestMismatchError, NotFoundError):
        partial.remove(digest)
        raise
    state.blobs.keep_verified(digest, encode_blob(content, is_codes=True, level=_STORED_LEVEL))
    partial.remove(digest)


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


def _receive(
    piece: Piece,
    pieces: Iterator[Piece],
    payload: Payload,
    partial: PartialBlobs,
    look: Callable[[bytes | memoryview], None] = lambda _: None,
) -> int:
    """Keep one answer, from its first piece to its end, and look at what is kept; return how many bytes came."""
    digest, total = payload.digest, payload.total_bytes
    _, start, data = piece
    offset = end = start
    while True:
        if offset != end or end + len(data) > total:
            raise MalformedError(f"data for blob {digest[:12]}... that does not fit behind byte {end}")
        partial.append(digest, data)
        look(data)
        end += len(data)
        if end == total:
            return end - start
        head, offset, data = _next(pieces)
        if head is not None or not len(data):
            raise MalformedError(f"blob {digest[:12]}... ends at byte {end} of {total}")


def _next(pieces: Iterator[Piece]) -> Piece:
    piece = next(pieces, None)
    if piece is None:
        raise UnreachableError("the stream of blobs ended too early")
    return piece
