"""Streams of bytes inside a difference: declared sizes, one zstd frame each, and a form for mostly zeros."""

import struct
from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from quantization.errors import MalformedError

_SIZES = struct.Struct("<II")  # of the stream, of its stored form
_MAX_WINDOW_BYTES = 8 << 20  # what level 19 uses at most; a frame that asks for more memory is refused
_ESCAPE = 255  # a gap byte that is followed by the rest of the gap
_BLOCK = 1 << 20


def write_streams(streams: Sequence[bytes], level: int) -> bytes:
    """Return the streams one after another, each compressed where that makes it smaller.

    Args:
        streams: Each below 4 GiB.
        level: Of zstd, 1 to 22.
    """
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
    parts = []
    for stream in streams:
        compressed = compressor.compress(stream)
        body = compressed if len(compressed) < len(stream) else stream
        parts += [_SIZES.pack(len(stream), len(body)), body]
    return b"".join(parts)


class StreamReader:
    """Reads streams in the order in which they were written; nothing is allocated before its size is accepted."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read(self, least_bytes: int, most_bytes: int) -> bytes:
        """Return the next stream.

        Raises:
            MalformedError: If it is cut short, damaged, or not of `least_bytes` to `most_bytes`.
        """
        if len(self._data) < _SIZES.size:
            raise MalformedError("difference ends before its streams do")
        size, stored_size = _SIZES.unpack_from(self._data)
        body = self._data[_SIZES.size : _SIZES.size + stored_size]
        if not least_bytes <= size <= most_bytes:
            raise MalformedError(f"stream of {size} bytes where {least_bytes} to {most_bytes} are expected")
        if len(body) != stored_size or stored_size > size:
            raise MalformedError(
                f"stream of {size} bytes stored in {stored_size}, of which {len(body)} are there"
            )
        self._data = self._data[_SIZES.size + stored_size :]
        return bytes(body) if stored_size == size else _decompress(body, size)

    def finish(self) -> None:
        """Refuse anything behind the last stream.

        Raises:
            MalformedError: If there is something.
        """
        if self._data:
            raise MalformedError(f"{len(self._data)} bytes behind the last stream of a difference")


def split_sparse(values: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Return the gaps in front of the values that are not zero, and these values; `join_sparse` is the inverse.

    A gap of g zeros is g div 255 bytes of 255 and one byte of g mod 255. Zeros behind the last value have no gap.
    """
    places = np.flatnonzero(values)
    gaps = np.diff(places, prepend=-1) - 1
    escapes, rest = np.divmod(gaps, _ESCAPE)
    ends = np.cumsum(escapes + 1)
    coded = np.full(int(ends[-1]) if len(ends) else 0, _ESCAPE, np.uint8)
    coded[ends - 1] = rest
    return coded.tobytes(), values[places].tobytes()


def read_differences(reader: StreamReader, size: int, *, is_sparse: bool) -> NDArray[np.uint8]:
    """Return the next `size` differences, shape (size,), from one stream or, if sparse, from two.

    Raises:
        MalformedError: If they are not there, or if more than half of sparse ones are not zero.
    """
    if not is_sparse:
        return np.frombuffer(reader.read(size, size), np.uint8)
    gaps = reader.read(0, size // 2 + size // _ESCAPE)
    return join_sparse(gaps, reader.read(0, size // 2), size)


def difference_forms(differences: NDArray[np.uint8]) -> list[tuple[bool, list[bytes]]]:
    """Return the ways to write differences for `read_differences`: whether sparse, and the streams."""
    forms = [(False, [differences.tobytes()])]
    gaps, values = split_sparse(differences)
    if len(values) <= len(differences) // 2:
        forms.append((True, [gaps, values]))
    return forms


def join_sparse(gaps: bytes, values: bytes, size: int) -> NDArray[np.uint8]:
    """Return the `size` values that `split_sparse` took apart, shape (size,).

    Raises:
        MalformedError: If gaps and values do not belong together, or lead beyond the end.
    """
    coded, given = np.frombuffer(gaps, np.uint8), np.frombuffer(values, np.uint8)
    joined = np.zeros(size, np.uint8)
    place, used = 0, 0
    for start in range(0, len(coded), _BLOCK):
        block = coded[start : start + _BLOCK]
        is_value = block != _ESCAPE
        ends = place + np.cumsum(block.astype(np.int64) + is_value)
        places = ends[is_value] - 1
        place, next_used = int(ends[-1]), used + len(places)
        if place > size or next_used > len(given):
            raise MalformedError(
                f"gaps lead to place {place} of {size} and value {next_used} of {len(given)}"
            )
        joined[places] = given[used:next_used]
        used = next_used
    if used != len(given) or (len(coded) and coded[-1] == _ESCAPE):
        raise MalformedError(f"gaps for {used} of {len(given)} values")
    return joined


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
        raise MalformedError(f"stream cannot be decompressed: {error}") from error
