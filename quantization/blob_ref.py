"""A manifest's entry for one piece of content, and what its names and sizes may be."""

import math
import re
from dataclasses import dataclass

from protos.quantfleet.v1 import artifact_pb2 as pb
from quantization.blob import HEADER_BYTES, MAX_CONTENT_BYTES, check_digest
from quantization.errors import MalformedError

MAX_DIMENSIONS = 8
MAX_NAME_LENGTH = 256

ITEM_BYTES = {
    "bytes": 1,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "float16": 2,
    "int32": 4,
    "int64": 8,
    "float32": 4,
}
"""Element types of blobs, by their size."""

_LOCATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+@/-]*")
_TYPE_NUMBERS = {
    "bytes": pb.DATA_TYPE_BYTES,
    "int8": pb.DATA_TYPE_INT8,
    "uint8": pb.DATA_TYPE_UINT8,
    "int32": pb.DATA_TYPE_INT32,
    "int64": pb.DATA_TYPE_INT64,
    "float32": pb.DATA_TYPE_FLOAT32,
    "float16": pb.DATA_TYPE_FLOAT16,
    "uint16": pb.DATA_TYPE_UINT16,
}
_TYPE_NAMES = {number: name for name, number in _TYPE_NUMBERS.items()}


@dataclass(frozen=True, slots=True)
class BlobRef:
    """One piece of content and what a reader needs to know before it fetches and decodes it.

    Attributes:
        location: Name by which a skeleton refers to the content; empty for a skeleton itself.
        digest: SHA-256 of the decoded content, 64 hex digits.
        dtype: A key of `ITEM_BYTES`; "bytes" for a skeleton or a file of mixed tensors.
        shape: Of the decoded content.
        bit_width: Bits that every element needs: 2 to 7 for narrow int8 codes, else all bits of the type.
        stored_size_bytes: Size as stored and sent, header included.
    """

    location: str
    digest: str
    dtype: str
    shape: tuple[int, ...]
    bit_width: int
    stored_size_bytes: int

    def __post_init__(self) -> None:
        """Refuse what no blob can be."""
        check_digest(self.digest)
        if self.location:
            check_location(self.location)
        if self.dtype not in ITEM_BYTES:
            raise MalformedError(f"{self.label}: unknown element type {self.dtype!r}")
        if len(self.shape) > MAX_DIMENSIONS or any(size < 0 for size in self.shape):
            raise MalformedError(f"{self.label}: shape {self.shape!r:.80}")
        if self.decoded_size_bytes > MAX_CONTENT_BYTES:
            raise MalformedError(
                f"{self.label}: {self.decoded_size_bytes} bytes; a blob has at most {MAX_CONTENT_BYTES}"
            )
        all_bits = 8 * ITEM_BYTES[self.dtype]
        if self.bit_width != all_bits and not (self.dtype == "int8" and 2 <= self.bit_width < 8):
            raise MalformedError(f"{self.label}: bit-width {self.bit_width} of {self.dtype}")
        if not HEADER_BYTES <= self.stored_size_bytes <= HEADER_BYTES + self.decoded_size_bytes:
            raise MalformedError(
                f"{self.label}: {self.stored_size_bytes} bytes to store {self.decoded_size_bytes}"
            )

    @property
    def label(self) -> str:
        """What messages call this blob."""
        return f"blob {self.location or 'skeleton'} ({self.digest[:12]})"

    @property
    def decoded_size_bytes(self) -> int:
        """Size of the decoded content."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def to_proto(self) -> pb.Blob:
        """Return the wire form."""
        return pb.Blob(
            location=self.location,
            digest=bytes.fromhex(self.digest),
            data_type=_TYPE_NUMBERS[self.dtype],
            shape=self.shape,
            bit_width=0 if self.bit_width == 8 * ITEM_BYTES[self.dtype] else self.bit_width,
            stored_size_bytes=self.stored_size_bytes,
        )

    @classmethod
    def from_proto(cls, message: pb.Blob) -> "BlobRef":
        """Return the value of a wire form.

        Raises:
            MalformedError: If it is none.
        """
        dtype = _TYPE_NAMES.get(message.data_type)
        if dtype is None:
            raise MalformedError(f"blob {message.location!r:.80}: unknown element type {message.data_type}")
        return cls(
            location=message.location,
            digest=message.digest.hex(),
            dtype=dtype,
            shape=tuple(message.shape[: MAX_DIMENSIONS + 1]),
            bit_width=message.bit_width or 8 * ITEM_BYTES[dtype],
            stored_size_bytes=message.stored_size_bytes,
        )


def check_location(location: str) -> str:
    """Return `location` if it is a safe relative name, so that it could never leave a folder.

    Raises:
        MalformedError: If it is empty, too long, absolute, has a part '.' or '..', or other characters.
    """
    parts = location.split("/")
    if len(location) > MAX_NAME_LENGTH or not _LOCATION.fullmatch(location) or {"", ".", ".."} & set(parts):
        raise MalformedError(f"location {location!r:.80} is not a safe name")
    return location


def check_name(name: str, what: str) -> str:
    """Return `name` if it is 1 to 256 printable characters.

    Raises:
        MalformedError: If it is not; the message says of `what`.
    """
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise MalformedError(f"{what} name {name!r:.80} is not 1 to {MAX_NAME_LENGTH} printable characters")
    return name
