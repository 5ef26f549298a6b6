"""Integer codes of 2 to 8 bits, packed without gaps.

Code i takes the bits [i*b, (i+1)*b) of a little-endian bit stream (bit k is bit k % 8 of byte k // 8), as the
low b bits of its two's complement. The last byte is filled with zero bits.
"""

import numpy as np
from numpy.typing import NDArray

from quantization.errors import MalformedError

_BLOCK = (
    1 << 16
)  # codes at a time, a multiple of 8 so that blocks end on bytes; keeps the bits, one a byte, in cache


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
    blocks = []
    for start in range(0, flat.size, _BLOCK):
        bits = np.unpackbits(flat[start : start + _BLOCK, None], axis=1, count=bit_width, bitorder="little")
        blocks.append(np.packbits(bits, bitorder="little").tobytes())
    return b"".join(blocks)


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
    codes = np.empty(count, np.int8)
    sign = np.uint8(1 << (bit_width - 1))
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        first = start * bit_width // 8
        block = source[first : first + packed_size_bytes(size, bit_width)]
        bits = np.unpackbits(block, count=size * bit_width, bitorder="little").reshape(size, bit_width)
        low = np.packbits(bits, axis=1, bitorder="little")[:, 0]
        codes[start : start + size] = ((low ^ sign) - sign).view(np.int8)  # wraps: extends the sign
    return codes


def _check_bit_width(bit_width: int) -> None:
    if not 2 <= bit_width <= 8:
        raise ValueError(f"bit-width {bit_width} is not 2 to 8")
