"""Integer codes of 2 to 8 bits, packed without gaps.

Code i takes the bits [i*b, (i+1)*b) of a little-endian bit stream (bit k is bit k % 8 of byte k // 8), as the
low b bits of its two's complement. The last byte is filled with zero bits.

Codes are expanded by `_expand.c`, at the speed of a copy. Where that was not compiled, which is so in the bundle of
sources that Flower carries to devices, NumPy does the same in a few passes and takes about four times as long.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import AnyArray
from quantization.errors import MalformedError

_Expand = Callable[[AnyArray, int, AnyArray], None]
expand_into: _Expand | None
"""Writes packed codes to an array; None where it was not compiled."""
try:
    from quantization._expand import expand_into as _compiled
except ImportError:
    expand_into = None
else:
    expand_into = _compiled

_WORDS = 1 << 14  # of 8 codes, at a time: they and a copy stay in a core's cache
_CODES_PER_WORD = 8


def packed_size_bytes(count: int, bit_width: int) -> int:
    """Return the bytes that `count` codes of `bit_width` bits take."""
    return (count * bit_width + 7) // 8


def needed_bit_width(codes: NDArray[np.int8]) -> int:
    """Return the least bit-width, 2 to 8, that holds every code in two's complement."""
    if codes.size == 0:
        return 2
    farthest = max(
        int(codes.max()), ~int(codes.min())
    )  # ~x = -x-1: how far down reaches as far as how far up
    return max(2, farthest.bit_length() + 1)


def pack(codes: NDArray[np.int8], bit_width: int) -> bytes:
    """Return the codes, flattened, in `bit_width` bits each; `unpack` is the inverse.

    Args:
        codes: Any shape; every code in [-2^(b-1), 2^(b-1) - 1].
        bit_width: 2 to 8.

    Raises:
        ValueError: If a code needs more bits.
    """
    _check_bit_width(bit_width)
    if needed_bit_width(codes) > bit_width:
        raise ValueError(f"codes need {needed_bit_width(codes)} bits, not {bit_width}")
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    if bit_width == 8:
        return flat.tobytes()
    whole = -(-flat.size // _CODES_PER_WORD) * _CODES_PER_WORD
    padded = np.zeros(whole, np.uint8)
    padded[: flat.size] = flat
    words = padded.view("<u8")
    packed = np.empty((len(words), bit_width), np.uint8)
    for start in range(0, len(words), _WORDS):
        block = words[start : start + _WORDS]
        _gather(block, bit_width)
        packed[start : start + _WORDS] = block.view(np.uint8).reshape(-1, 8)[:, :bit_width]
    return packed.tobytes()[: packed_size_bytes(flat.size, bit_width)]


def unpack(data: bytes | memoryview, bit_width: int, count: int) -> NDArray[np.int8]:
    """Return the `count` codes that `pack` wrote, shape (count,).

    Raises:
        MalformedError: If the length is not that of `count` codes, or the filling bits are not zero.
    """
    _check_bit_width(bit_width)
    if count < 0 or len(data) != packed_size_bytes(count, bit_width):
        raise MalformedError(f"{len(data)} bytes cannot hold {count} codes of {bit_width} bits")
    source = np.frombuffer(data, np.uint8)
    if bit_width == 8:
        return source.view(np.int8).copy()
    used = (count * bit_width) % 8
    if used and int(source[-1]) >> used:
        raise MalformedError(f"the bits behind the last of {count} codes are not zero")
    if expand_into is None:
        return _unpack_words(source, bit_width)[:count]
    codes = np.empty(count, np.int8)
    expand_into(source, bit_width, codes)
    return codes


def _unpack_words(source: NDArray[np.uint8], bit_width: int) -> NDArray[np.int8]:
    """Return all codes, eight at a time: `bit_width` bytes are read as a word, whose fields are then spread."""
    words = -(-len(source) // bit_width)
    codes, moving = np.empty(words, "<u8"), np.empty(_WORDS, "<u8")
    readable = max(0, min(words, (len(source) - 8) // bit_width + 1))  # words of which 8 bytes are there
    tail = np.zeros((words - readable) * bit_width + 8, np.uint8)
    tail[: len(source) - readable * bit_width] = source[readable * bit_width :]
    for first, last, data in ((0, readable, source), (readable, words, tail)):
        if first == last:
            continue
        read: NDArray[np.uint64] = np.ndarray((last - first,), "<u8", data, 0, (bit_width,))
        for start in range(first, last, _WORDS):
            block = codes[start : min(start + _WORDS, last)]
            block[:] = read[start - first : start - first + len(block)]
            _spread(block, moving[: len(block)], bit_width)
            _extend_signs(block.view(np.uint8), bit_width)
    return codes.view(np.int8)


def _steps(bit_width: int) -> list[tuple[np.uint64, np.uint64, np.uint64]]:
    """Return how a word's fields are spread, in three steps: (shift, mask of what stays, mask of what moves).

    Each step halves groups of codes and moves the upper halves up: first the upper four codes to bit 32, then
    within each four the upper two, then within each pair the upper one.
    """
    steps = []
    for codes in (4, 2, 1):
        field = (1 << (codes * bit_width)) - 1
        low = sum(field << (8 * code) for code in range(0, 8, 2 * codes))
        high = low << (codes * bit_width)
        steps.append((np.uint64(codes * (8 - bit_width)), np.uint64(low), np.uint64(high)))
    return steps


def _spread(words: NDArray[np.uint64], moving: NDArray[np.uint64], bit_width: int) -> None:
    """Move the eight fields in the low bits of each word to its eight bytes, in place; `moving` is room to work."""
    for shift, low, high in _steps(bit_width):
        np.bitwise_and(words, high, out=moving)
        moving <<= shift
        words &= low
        words |= moving


def _gather(words: NDArray[np.uint64], bit_width: int) -> None:
    """Move the low bits of each byte together into the low bits of the word, in place: undoes `_spread`."""
    field = (1 << bit_width) - 1
    words &= np.uint64(sum(field << (8 * code) for code in range(8)))
    moving = np.empty_like(words)
    for shift, low, high in reversed(_steps(bit_width)):
        np.right_shift(words, shift, out=moving)
        moving &= high
        words &= low
        words |= moving


def _extend_signs(fields: NDArray[np.uint8], bit_width: int) -> None:
    """Turn numbers of `bit_width` bits into two's complement of 8 bits, in place."""
    sign = np.uint8(1 << (bit_width - 1))
    fields ^= sign
    fields -= sign  # wraps


def _check_bit_width(bit_width: int) -> None:
    if not 2 <= bit_width <= 8:
        raise ValueError(f"bit-width {bit_width} is not 2 to 8")
