"""Differences between two contents: what a device that holds one must receive to have the other.

Subtraction suits contents of one size whose values moved a little; bsdiff suits contents in which things moved
(graphs, manifests, files of mixed tensors). Both consist of *streams* of bytes, each compressed by itself. Differences
that are mostly zeros may be sent as the values that are not, and the gaps between them, which takes a quarter less than
zstd needs for the zeros (590 kB of codes after a training round that moved 5 % of them by one: 23.5 kB, by subtraction
and zstd alone 31.1 kB, by bsdiff with bzip2 27.0 kB). `docs/formats/update.md` is the page of bytes.

Rules for a reader:

1. Every size is declared, bounded, and checked against what it must be before anything of it is allocated.
2. What comes out has the digest that the device asked for, or is refused.
3. numpy and zstandard are enough: only a server that makes bsdiff differences needs bsdiff4.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from quantization.blob import COMPRESSION_LEVEL, MAX_CONTENT_BYTES, content_digest
from quantization.delta_bsdiff import diff_streams, is_affordable, patch
from quantization.delta_streams import StreamReader, difference_forms, read_differences, write_streams
from quantization.delta_words import Words, joined, planes
from quantization.errors import DigestMismatchError, MalformedError

SMALL_BYTES = 256
"""A payload of this size is good enough: bsdiff is not tried where there is one."""

HEADER_BYTES = 8
_HEADER = struct.Struct("<2sBBI")  # magic, encoding, layout, size of the content
_MAGIC = b"QD"
_SPARSE = 1  # in a layout: differences are sparse; the bits above are `Words`


class Encoding(IntEnum):
    """How a blob is sent; the numbers are on the wire."""

    FULL = 1
    INT8_SUB_ZSTD = 2
    BSDIFF = 3
    BUNDLE = 4
    """Of many blobs at once: `quantization.bundle`."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A difference between two contents.

    Attributes:
        encoding: `INT8_SUB_ZSTD` or `BSDIFF`.
        payload: What is sent.
    """

    encoding: Encoding
    payload: bytes


def make_deltas(base: bytes, content: bytes, below_bytes: int | None = None) -> tuple[Delta, ...]:
    """Return the differences from `base` to `content` that pay, at most one of each encoding, smallest last.

    Args:
        base: Decoded content that the device holds.
        content: Decoded content that it wants.
        below_bytes: Size of the full blob: a difference that is not smaller does not pay. None if any size pays.
    """
    least = len(content) + MAX_CONTENT_BYTES if below_bytes is None else below_bytes
    deltas = []
    if len(base) == len(content):
        payload = _subtract(base, content)
        if len(payload) < least:
            deltas.append(Delta(Encoding.INT8_SUB_ZSTD, payload))
            least = len(payload)
    if least > SMALL_BYTES and is_affordable(base) and is_affordable(content):
        payloads = _bsdiff(base, content)
        if payloads and len(payloads[0]) < least:
            deltas.append(Delta(Encoding.BSDIFF, payloads[0]))
    return tuple(deltas)


def choose_delta(deltas: Collection[Delta], accepted: Collection[Encoding]) -> Delta | None:
    """Return the smallest difference in an encoding that the device accepts; None if there is none."""
    usable = [delta for delta in deltas if delta.encoding in accepted]
    return min(usable, key=lambda delta: (len(delta.payload), delta.encoding), default=None)


def apply_delta(
    payload: bytes | memoryview, base: bytes, digest: str, size_bytes: int | None = None
) -> bytes:
    """Return the content that a difference makes of `base`, once its SHA-256 is found to be `digest`.

    Args:
        payload: As `make_deltas` wrote it; it says itself which encoding it has.
        base: Decoded content, verified.
        digest: Of the content that must come out, 64 hex digits.
        size_bytes: Size that the content must have, where a manifest says so.

    Raises:
        MalformedError: If the payload is no difference to this base.
        DigestMismatchError: If other content comes out.
    """
    encoding, layout, size = _read_header(payload)
    if size_bytes is not None and size != size_bytes:
        raise MalformedError(f"difference to content of {size} bytes where {size_bytes} are expected")
    is_sparse, words = bool(layout & _SPARSE), Words(layout >> 1)
    reader = StreamReader(memoryview(payload)[HEADER_BYTES:])
    if encoding == Encoding.BSDIFF:
        content = patch(reader, base, size, is_sparse=is_sparse)
    else:
        content = _add(reader, base, size, words, is_sparse=is_sparse)
    reader.finish()
    actual = content_digest(content)
    if actual != digest:
        raise DigestMismatchError(
            f"difference to {digest[:12]}... gives content with digest {actual[:12]}..."
        )
    return content


def _read_header(payload: bytes | memoryview) -> tuple[Encoding, int, int]:
    """Return encoding, layout and size of the content."""
    if len(payload) < HEADER_BYTES:
        raise MalformedError(f"{len(payload)} bytes are no difference; its header alone has {HEADER_BYTES}")
    magic, number, layout, size = _HEADER.unpack_from(payload)
    if magic != _MAGIC:
        raise MalformedError(f"a difference starts with {_MAGIC!r}, not {magic!r}")
    layouts = {Encoding.INT8_SUB_ZSTD: 2 * len(Words), Encoding.BSDIFF: 2}
    if layout >= layouts.get(number, 0):
        raise MalformedError(
            f"difference of encoding {number} and layout {layout}; update this software to read it"
        )
    if size > MAX_CONTENT_BYTES:
        raise MalformedError(f"difference to content of {size} bytes; at most {MAX_CONTENT_BYTES} are read")
    return Encoding(number), layout, size


def _subtract(base: bytes, content: bytes) -> bytes:
    """Return the smallest payload of differences between words."""
    payloads = []
    for words in Words:
        if len(content) % words.size_bytes == 0:
            found = planes(base, content, words)
            forms = difference_forms(found.reshape(-1))
            if words is Words.SHORT_WORDS:  # each plane has a distribution of its own
                forms = [(False, [plane.tobytes() for plane in found])]
            payloads += _payloads(Encoding.INT8_SUB_ZSTD, words << 1, len(content), forms)
    return min(payloads, key=len)


def _add(reader: StreamReader, base: bytes, size: int, words: Words, *, is_sparse: bool) -> bytes:
    """Return the content: undoes `_subtract`."""
    if len(base) != size or size % words.size_bytes:
        raise MalformedError(
            f"differences of {size} bytes in words of {words.size_bytes} to a base of {len(base)}"
        )
    if words is Words.SHORT_WORDS:
        if is_sparse:
            raise MalformedError("differences of short words are not sparse")
        found = np.stack([read_differences(reader, size // 4, is_sparse=False) for _ in range(4)])
    else:
        found = read_differences(reader, size, is_sparse=is_sparse).reshape(words.size_bytes, -1)
    return joined(found, base, words)


def _bsdiff(base: bytes, content: bytes) -> list[bytes]:
    """Return the payloads of a binary difference, smallest first; none where there is no bsdiff4."""
    return sorted(_payloads(Encoding.BSDIFF, 0, len(content), diff_streams(base, content)), key=len)


def _payloads(
    encoding: Encoding, layout: int, size: int, forms: list[tuple[bool, list[bytes]]]
) -> list[bytes]:
    return [
        _HEADER.pack(_MAGIC, encoding, layout | (_SPARSE if is_sparse else 0), size)
        + write_streams(streams, COMPRESSION_LEVEL)
        for is_sparse, streams in forms
    ]
