"""Messages of the update service in a device's words, and back."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from client.grpc_channel import end_stream
from client.grpc_errors import converted, seconds_within
from client.slots import MAX_VERSION, Target
from client.transport import Offer
from protos.quantfleet.v1 import update_pb2
from protos.quantfleet.v1.telemetry_pb2 import TelemetryReport
from quantization.blob import check_digest
from quantization.errors import MalformedError

MAX_METADATA_BYTES = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
"""Greatest file of each role that is read, as `client.trusted_metadata` has them."""
MAX_REPORTS = 256
"""Most reports in one request."""
MAX_REQUEST_BYTES = 192 << 10
"""Largest request with reports; the service reads up to 256 KiB."""

_Message = TypeVar("_Message", bound=Message)


class Reported(NamedTuple):
    """What the service has of a device's telemetry.

    Attributes:
        stored_sequence: Reports up to this number are stored; 0 if none is.
        retry_after_seconds: To wait before the next report; 0 if the device may choose.
    """

    stored_sequence: int
    retry_after_seconds: float


def question(device_class: str, model_digest: str, serving: Target | None) -> dict[str, Any]:
    """Return the fields in which a device says what it is and what it runs."""
    return {
        "device_class": device_class,
        "model_digest": bytes.fromhex(check_digest(model_digest)),
        "version": serving.version if serving else 0,
        "manifest_digest": bytes.fromhex(serving.manifest_digest) if serving else b"",
    }


def offer_of(message: update_pb2.CheckResponse | update_pb2.TargetChanged) -> Offer:
    """Return what the service offers.

    Raises:
        MalformedError: If it is no target.
    """
    if not 1 <= message.version <= MAX_VERSION:
        raise MalformedError(f"target version {message.version} is offered")
    return Offer(
        Target(message.version, message.manifest_digest.hex()),
        seconds_within(message.fetch_after_seconds),
        seconds_within(message.retry_after_seconds),
    )


class Announcements:
    """What a stream of `TargetChanged` brings: offers, and after how many seconds of silence it is dead."""

    def __init__(self, call: Any) -> None:  # noqa: ANN401 - a call has no public type
        self._call = call

    def __next__(self) -> tuple[Offer, float]:
        message = parsed(update_pb2.TargetChanged, next(self._call))
        return offer_of(message), message.silent_after_seconds

    def cancel(self) -> object:
        """End the stream; any thread may call it."""
        return self._call.cancel()

    def end(self) -> None:
        """End the stream, in the thread that has read it."""
        end_stream(self._call)


def metadata_chunks(call: Any, role: str) -> Iterator[bytes]:  # noqa: ANN401 - a call has no public type
    """Yield what a stream of `MetadataChunk` brings of one file; the stream ends when nobody wants more.

    Raises:
        NotFoundError: There is no such file.
        MalformedError: It is larger than files of the role are, or is not sent as it must be.
    """
    limit, came = MAX_METADATA_BYTES.get(role, 0), 0
    try:
        for number in itertools.count():
            with converted(f"metadata {role}"):
                data = next(call, None)
            if data is None:
                return
            chunk = parsed(update_pb2.MetadataChunk, data)
            came += len(chunk.data)
            if max(came, chunk.total_bytes) > limit:
                raise MalformedError(
                    f"metadata {role} has {max(came, chunk.total_bytes)} bytes, above {limit}"
                )
            if number and not chunk.data:
                raise MalformedError(f"metadata {role} comes in empty chunks")
            yield chunk.data
    finally:
        end_stream(call)


def report_batches(reports: Sequence[TelemetryReport]) -> Iterator[list[TelemetryReport]]:
    """Yield the reports, in their order, in lists that make one request each."""
    batch: list[TelemetryReport] = []
    size = 0
    for report in reports:
        added = report.ByteSize() + 8
        if batch and (len(batch) == MAX_REPORTS or size + added > MAX_REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(report)
        size += added
    if batch:
        yield batch


def serialized(message: Message) -> bytes:
    """Return the bytes of a message."""
    data: bytes = message.SerializeToString()
    return data


def parsed(kind: type[_Message], data: bytes) -> _Message:
    """Return the message of some bytes.

    Raises:
        MalformedError: If they are none of this kind.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedError(f"an answer is not a {kind.__name__}: {error}") from error
