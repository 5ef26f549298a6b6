"""The stream of blobs, as gRPC carries it: what a device asks, and the pieces of the answers."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from client.grpc_channel import CHUNK_BYTES, end_stream
from client.grpc_errors import as_error
from client.transport import Payload, Piece, Want
from client.watchdog import Watchdog
from protos.quantfleet.v1 import update_pb2 as pb
from quantization.delta import Encoding
from quantization.errors import MalformedError, UnreachableError

MAX_HELD = 4096
"""Most digests that a service reads in an opening."""

MAX_WANTED = 1024
"""Most that is asked for in one stream: with all else that it says, its opening stays below 256 KiB."""

_PROGRESS_BYTES = 4 << 10
_OFFSET_TAG, _DATA_TAG = b"\x10", b"\x1a"  # of fields 2 and 3 of `BlobChunk`
_KNOWN = frozenset(int(encoding) for encoding in Encoding)

CheckSize = Callable[[str, int], None]
"""From the name of a blob and the size of what is offered for it; raises where that is too large."""


def fetch_requests(
    device_class: str,
    model_digest: str,
    wants: Sequence[Want],
    held: Collection[str],
    complete: Mapping[str, Collection[str]],
) -> list[pb.FetchBlobsRequest]:
    """Return what a device sends, one message for each stream: its opening, with what it wants.

    Args:
        device_class: Name of the device's class.
        model_digest: SHA-256 of the model that it runs.
        wants: What it asks for.
        held: Digests of contents that differences may refer to.
        complete: Manifests of which it holds everything, by digest, with the digests that they name.
    """
    said = frozenset(complete).union(*complete.values()) if complete else frozenset()
    others = sorted(digest for digest in held if digest not in said)[:MAX_HELD]
    opening = pb.FetchOpening(
        device_class=device_class,
        model_digest=bytes.fromhex(model_digest),
        held_digests=[bytes.fromhex(digest) for digest in others],
        accepted_encodings=[pb.BlobEncoding.Name(number) for number in sorted(_KNOWN)],
        held_manifest_digests=[bytes.fromhex(digest) for digest in sorted(complete)],
    )
    requests = []
    for start in range(0, len(wants), MAX_WANTED):
        request = pb.FetchBlobsRequest(opening=opening)
        request.opening.wanted.extend(_wanted(want) for want in wants[start : start + MAX_WANTED])
        requests.append(request)
    return requests


def _wanted(want: Want) -> pb.BlobWanted:
    return pb.BlobWanted(
        digest=bytes.fromhex(want.digest),
        offset_bytes=want.offset_bytes,
        payload_digest=bytes.fromhex(want.payload_digest),
        base_manifest_digest=bytes.fromhex(want.base_manifest),
    )


def blob_pieces(call: Any, stall_seconds: float, check_size: CheckSize | None) -> Iterator[Piece]:  # noqa: ANN401
    """Yield the pieces of a stream of `BlobChunk`, serialised; the stream ends when nobody wants more.

    Args:
        call: The stream, in gRPC's own form.
        stall_seconds: Longest wait for the next 4 KiB.
        check_size: Refuses payloads that are too large.
    """
    left_seconds, unproven = stall_seconds, 0
    try:
        with Watchdog(call.cancel) as dog:
            while True:
                began = time.monotonic()
                dog.arm(left_seconds)
                try:
                    data = next(call)
                except StopIteration:
                    return
                except grpc.RpcError as error:
                    if dog.has_bitten:
                        raise UnreachableError(
                            f"less than {_PROGRESS_BYTES} bytes of blobs came in {stall_seconds} s"
                        ) from error
                    raise as_error(error, "fetch") from error
                dog.disarm()
                unproven += len(data)
                piece = _plain_piece(data) or _parsed_piece(data)
                head = piece.payload
                if head is not None and head.encoding is not Encoding.BUNDLE and check_size is not None:
                    check_size(head.digest, head.total_bytes)
                if unproven >= _PROGRESS_BYTES or head is not None:
                    left_seconds, unproven = stall_seconds, 0
                else:
                    left_seconds = max(left_seconds - (time.monotonic() - began), 1e-3)
                yield piece
    finally:
        end_stream(call)


def _plain_piece(message: bytes) -> Piece | None:
    """Return a chunk as nearly all are: its offset, then as much data as it may hold, and no more; None for others.

    protobuf copies the data, twice; here nothing does.
    """
    if message[:1] != _OFFSET_TAG:
        return None
    offset, place = _varint(message, 1)
    if message[place : place + 1] != _DATA_TAG:
        return None
    size, place = _varint(message, place + 1)
    if place + size != len(message) or size > CHUNK_BYTES:
        return None
    return Piece(None, offset, memoryview(message)[place:])


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return a number of at most 63 bits and the place behind it; a place behind the message where it has more."""
    number = 0
    for shift in range(0, 63, 7):
        byte = message[place] if place < len(message) else 0x80
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    return number, len(message) + 1


def _parsed_piece(message: bytes) -> Piece:
    try:
        chunk = pb.BlobChunk.FromString(message)
    except DecodeError as error:
        raise MalformedError(f"an answer is not a BlobChunk: {error}") from error
    if len(chunk.data) > CHUNK_BYTES:
        raise MalformedError(f"a chunk of {len(chunk.data)} bytes; at most {CHUNK_BYTES} are read")
    payload = _payload(chunk.payload) if chunk.HasField("payload") else None
    return Piece(payload, chunk.offset_bytes, chunk.data)


def _payload(head: pb.BlobPayload) -> Payload:
    if head.encoding not in _KNOWN:
        raise MalformedError(f"blob of encoding {head.encoding}; update this software to read it")
    return Payload(
        digest=head.digest.hex(),
        encoding=Encoding(head.encoding),
        base_digest=head.base_digest.hex(),
        total_bytes=head.total_bytes,
        payload_digest=head.payload_digest.hex(),
    )
