"""Binary differences: pieces of the base with additions, and new bytes between them.

Colin Percival's method ("Naive Differences of Executable Code", 2003), through the bsdiff4 package, which only a server
needs; the streams are stored as ours, so that a reader knows every size before it allocates.
"""

import numpy as np
from numpy.typing import NDArray

from quantization.delta_streams import StreamReader, difference_forms, read_differences
from quantization.errors import MalformedError

MAX_BSDIFF_BYTES = 4 << 20
"""Largest content; making a difference takes 17 times as much memory, and about 2 s for each MiB."""
MAX_PIECES = 1 << 16
_MAX_RUN_BYTES = 16 << 10  # longest run of one byte: the time that bsdiff takes grows with its square
_PIECE_BYTES = 12  # three int32: bytes to go on in the base, bytes to add to, bytes to insert
_SIGN = np.uint64(1 << 63)


def is_affordable(content: bytes) -> bool:
    """Return whether a difference from or to the content can be looked for without taking all day."""
    if len(content) > MAX_BSDIFF_BYTES:
        return False
    values = np.frombuffer(content, np.uint8)
    starts = np.flatnonzero(values[1:] != values[:-1]) + 1
    return int(np.diff(starts, prepend=0, append=len(values)).max(initial=0)) <= _MAX_RUN_BYTES


def diff_streams(base: bytes, content: bytes) -> list[tuple[bool, list[bytes]]]:
    """Return the streams of a difference, with sparse additions and without; nothing where there is no bsdiff4.

    Args:
        base: An affordable content.
        content: An affordable content.
    """
    try:
        from bsdiff4 import core  # noqa: PLC0415 - a device does without it
    except ImportError:
        return []
    control, added, inserted = core.diff(base, content)
    pieces = _with_jumps(_signed(np.frombuffer(control, "<u8")).reshape(-1, 3))
    if len(pieces) > MAX_PIECES:
        return []
    columns = np.ascontiguousarray(pieces.T.astype("<i4")).tobytes()
    forms = difference_forms(np.frombuffer(added, np.uint8))
    return [(is_sparse, [columns, inserted, *streams]) for is_sparse, streams in forms]


def patch(reader: StreamReader, base: bytes, size: int, *, is_sparse: bool) -> bytes:
    """Return the content of `size` bytes that the streams make of `base`.

    Raises:
        MalformedError: If the streams are not a difference to this base.
    """
    if size > MAX_BSDIFF_BYTES:
        raise MalformedError(f"binary difference to {size} bytes; at most {MAX_BSDIFF_BYTES} are read")
    pieces = _read_pieces(reader, len(base), size)
    added_size = int(pieces[:, 1].sum())
    inserted = reader.read(size - added_size, size - added_size)
    added = read_differences(reader, added_size, is_sparse=is_sparse)
    return _assemble(pieces, np.frombuffer(base, np.uint8), added, np.frombuffer(inserted, np.uint8))


def _read_pieces(reader: StreamReader, base_size: int, size: int) -> NDArray[np.int64]:
    """Return the pieces, (N, 3): where in the base each starts, bytes to add to, bytes to insert."""
    data = reader.read(0, _PIECE_BYTES * min(MAX_PIECES, size))
    if len(data) % _PIECE_BYTES:
        raise MalformedError(f"{len(data)} bytes of pieces; each has {_PIECE_BYTES}")
    pieces = np.ascontiguousarray(np.frombuffer(data, "<i4").reshape(3, -1).T).astype(np.int64)
    lengths = pieces[:, 1:]
    if np.any(lengths < 0) or np.any(lengths.sum(axis=1) == 0) or int(lengths.sum()) != size:
        raise MalformedError(f"pieces of {int(lengths.sum())} bytes where {size} are expected")
    ends = np.cumsum(pieces[:, 0] + pieces[:, 1])
    starts = ends - pieces[:, 1]
    if np.any(starts < 0) or np.any(ends > base_size):
        raise MalformedError(f"a piece lies outside of a base of {base_size} bytes")
    return np.column_stack([starts, lengths])


def _assemble(
    pieces: NDArray[np.int64], base: NDArray[np.uint8], added: NDArray[np.uint8], inserted: NDArray[np.uint8]
) -> bytes:
    content = np.empty(len(added) + len(inserted), np.uint8)
    end = added_end = inserted_end = 0
    for start, add, insert in pieces.tolist():
        np.add(base[start : start + add], added[added_end : added_end + add], out=content[end : end + add])
        end, added_end = end + add, added_end + add
        content[end : end + insert] = inserted[inserted_end : inserted_end + insert]
        end, inserted_end = end + insert, inserted_end + insert
    return content.tobytes()


def _with_jumps(triples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return bsdiff's triples (add, insert, then go on) as pieces (go on, add, insert) without idle ones, (N, 3)."""
    starts = np.cumsum(triples[:, 0] + triples[:, 2]) - triples[:, 0] - triples[:, 2]
    pieces, end = [], 0
    for start, add, insert in zip(
        starts.tolist(), triples[:, 0].tolist(), triples[:, 1].tolist(), strict=True
    ):
        if add:
            pieces.append((start - end, add, insert))
            end = start + add
        elif insert:
            pieces.append((0, 0, insert))
    return np.array(pieces, np.int64).reshape(-1, 3)


def _signed(numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return bsdiff's numbers: 63 bits of magnitude, and the sign in the highest."""
    magnitudes = (numbers & ~_SIGN).astype(np.int64)
    return np.where(numbers & _SIGN, -magnitudes, magnitudes)
