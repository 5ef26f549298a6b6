"""Stored form of one piece of content: an 8-byte header and the smallest of four encodings.

A blob says itself how it is encoded, so that whoever holds one (a device, the server's store) can check it
against its name, the digest of the *decoded* content, without the manifest (`docs/formats/artifact.md`).
"""

import hashlib
import re
import struct
from enum import IntEnum

import numpy as np
import zstandard

from quantization.errors import DigestMismatchError, MalformedError
from quantization.packing import needed_bit_width, pack, packed_size_bytes, unpack

MAX_CONTENT_BYTES = 256 << 20
"""Most that one blob may decode to: a layer of 16,000 x 16,000 int8 weights."""

HEADER_BYTES = 8
_HEADER = struct.Struct("<2sBBI")  # magic, codec, bit-width, size of the decoded content
_MAGIC = b"QF"
COMPRESSION_LEVEL = 19
"""Of zstd, for what devices fetch."""

_WIDE_BYTES = 1 << 16
"""From here, zstd searches codes for repetitions less: that is three times as fast, and codes of 1 to 3 bits take up
to 6 % less, because zstd thinks too well of what a repetition saves where there is nothing to repeat."""

_MAX_WINDOW_BYTES = 8 << 20  # what level 19 uses at most; a frame that asks for more memory is refused
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Codec(IntEnum):
    """How a blob's body holds its content; the numbers are on the wire."""

    RAW = 0
    RAW_ZSTD = 1
    PACKED = 2
    PACKED_ZSTD = 3


def content_digest(content: bytes | memoryview) -> str:
    """Return the name of a blob with this decoded content: its SHA-256 as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def check_digest(digest: str) -> str:
    """Return `digest` if it is 64 lower-case hex digits, and so is safe as the name of a file.

    Raises:
        MalformedError: If it is anything else.
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise MalformedError(f"{digest!r:.80} is not a digest of 64 hex digits")
    return digest


def encode_blob(content: bytes, *, is_codes: bool = False, level: int = COMPRESSION_LEVEL) -> bytes:
    """Return the smallest stored form of `content`; the same content always gives the same bytes.

    Args:
        content: At most 256 MiB.
        is_codes: Whether the content is int8 codes, which may need fewer bits than eight.
        level: Of zstd, 1 to 22.
    """
    if len(content) > MAX_CONTENT_BYTES:
        raise MalformedError(f"content of {len(content)} bytes; a blob holds at most {MAX_CONTENT_BYTES}")
    bit_width = needed_bit_width(np.frombuffer(content, np.int8)) if is_codes and content else 8
    bodies = _bodies(content, bit_width, level, is_codes=is_codes)
    codec, width, body = min(bodies, key=lambda candidate: len(candidate[2]))
    return _HEADER.pack(_MAGIC, codec, width, len(content)) + body


def encoded_sizes(content: bytes, bit_width: int) -> list[int]:
    """Return the bytes, without the header, of each encoding that `encode_blob` chooses from.

    Args:
        content: Int8 codes that fit `bit_width` bits.
        bit_width: 2 to 8; what all codes of a layer need, where these are a part of them.
    """
    return [len(body) for _, _, body in _bodies(content, bit_width, COMPRESSION_LEVEL, is_codes=True)]


def _bodies(content: bytes, bit_width: int, level: int, *, is_codes: bool) -> list[tuple[Codec, int, bytes]]:
    """Return codec, bit-width and body of each encoding."""
    is_wide = is_codes and len(content) >= _WIDE_BYTES
    bodies = [(Codec.RAW, 8, content), (Codec.RAW_ZSTD, 8, _compress(content, level, is_wide))]
    if bit_width < 8:
        packed = pack(np.frombuffer(content, np.int8), bit_width)
        compressed = _compress(packed, level, is_wide)
        bodies += [(Codec.PACKED, bit_width, packed), (Codec.PACKED_ZSTD, bit_width, compressed)]
    return bodies


def content_size_bytes(stored: bytes | memoryview) -> int:
    """Return the size of the decoded content that the header declares, at most 256 MiB.

    Raises:
        MalformedError: If the header is not one.
    """
    return _read_header(stored)[2]


def plain_size_bytes(header: bytes | memoryview) -> int | None:
    """Return the size of the content that follows a header as it is; None where it is encoded, or this is no header."""
    try:
        codec, _, size = _read_header(header)
    except MalformedError:
        return None
    return size if codec is Codec.RAW else None


def decode_blob_content(stored: bytes, digest: str, size_bytes: int | None = None) -> bytes:
    """Return the content of a blob, once its SHA-256 is found to be `digest`.

    Args:
        stored: Header and body.
        digest: The blob's name.
        size_bytes: Size that the content must have, where a manifest says so.

    Raises:
        MalformedError: If the bytes are not a blob.
        DigestMismatchError: If they are a blob with other content.
    """
    content = _verified(stored, digest, size_bytes)
    return content if isinstance(content, bytes) else bytes(content)


def check_blob_content(stored: bytes | memoryview, digest: str, size_bytes: int | None = None) -> None:
    """Verify what `decode_blob_content` would return; content that is stored as it is is not copied.

    Raises:
        MalformedError: If the bytes are not a blob.
        DigestMismatchError: If they are a blob with other content.
    """
    _verified(stored, digest, size_bytes)


def _verified(stored: bytes | memoryview, digest: str, size_bytes: int | None) -> bytes | memoryview:
    """Return the content, a view of what is stored where that is the same, once it has the digest."""
    check_digest(digest)
    codec, bit_width, size = _read_header(stored)
    if size_bytes is not None and size != size_bytes:
        raise MalformedError(f"blob {digest[:12]} of {size} decoded bytes where {size_bytes} are expected")
    body = memoryview(stored)[HEADER_BYTES:]
    body_size = size if codec in (Codec.RAW, Codec.RAW_ZSTD) else packed_size_bytes(size, bit_width)
    is_compressed = codec in (Codec.RAW_ZSTD, Codec.PACKED_ZSTD)
    plain: bytes | memoryview = _decompress(body, body_size) if is_compressed else body
    if len(plain) != body_size:
        raise MalformedError(f"blob {digest[:12]} holds {len(plain)} bytes, its header promises {body_size}")
    content = plain if bit_width == 8 else unpack(plain, bit_width, size).tobytes()
    actual = content_digest(content)
    if actual != digest:
        raise DigestMismatchError(f"blob {digest[:12]}... has content with digest {actual[:12]}...")
    return content


def check_stored(stored: bytes, digest: str, place: str) -> None:
    """Verify what a store reads back under a blob's name.

    Args:
        stored: What lies there.
        digest: The blob's name.
        place: Where, for the message.

    Raises:
        DigestMismatchError: If it is damaged, in whatever way.
    """
    try:
        check_blob_content(stored, digest)
    except (MalformedError, DigestMismatchError) as error:
        raise DigestMismatchError(f"blob {digest} in {place} is damaged: {error}") from error


def _read_header(stored: bytes | memoryview) -> tuple[Codec, int, int]:
    """Return codec, bit-width and decoded size."""
    if len(stored) < HEADER_BYTES:
        raise MalformedError(f"{len(stored)} bytes are no blob; its header alone has {HEADER_BYTES}")
    magic, number, bit_width, size = _HEADER.unpack_from(stored)
    if magic != _MAGIC:
        raise MalformedError(f"a blob starts with {_MAGIC!r}, not {magic!r}")
    if number >= len(Codec):
        raise MalformedError(f"blob codec {number} is unknown; update this software to read it")
    codec = Codec(number)
    widths = range(2, 8) if codec in (Codec.PACKED, Codec.PACKED_ZSTD) else range(8, 9)
    if bit_width not in widths:
        raise MalformedError(f"blob with codec {codec.name} and {bit_width} bits")
    if size > MAX_CONTENT_BYTES:
        raise MalformedError(f"blob of {size} decoded bytes; at most {MAX_CONTENT_BYTES} are read")
    return codec, bit_width, size


def _compress(data: bytes, level: int, is_wide: bool) -> bytes:
    if not is_wide:
        return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(data)
    settings = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(data), search_log=1, write_checksum=False
    )
    return zstandard.ZstdCompressor(compression_params=settings).compress(data)


def _decompress(body: memoryview, size: int) -> bytes:
    """Return the `size` bytes that one zstd frame, and nothing behind it, decompresses to."""
    try:
        # The library allocates what the frame declares, whatever maximum it is given: check the frame first.
        declared = zstandard.frame_content_size(body)
        if declared != size:
            raise MalformedError(f"zstd frame of {declared} bytes where {size} are expected")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        return decompressor.decompress(body, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedError(f"blob cannot be decompressed: {error}") from error
