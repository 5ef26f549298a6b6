"""Differences between contents that consist of words: bytes, or float32, in *planes*.

A plane holds one byte of every word: the lowest bytes of all words stand together, then the next ones, so that those
that are mostly zeros compress. There are three kinds:

* bytes: content minus base, modulo 256.
* words: as unsigned integers of 4 bytes, modulo 2^32, folded (0, -1, 1, -2 become 0, 1, 2, 3).
* short words, for float32 of which many have few significant bits (`renormalization.shortened`): the upper 21 bits are
  subtracted and folded, modulo 2^21. The lower 11 are not: a float that was changed has zeros there, which say nothing,
  where a difference to what the base has there would be noise.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOW_BITS = 11
_LOW = np.uint32((1 << _LOW_BITS) - 1)
_HIGH_BITS = 32 - _LOW_BITS
_HIGH = np.uint32((1 << _HIGH_BITS) - 1)


class Words(IntEnum):
    """What is subtracted; the numbers are on the wire."""

    BYTES = 0
    WORDS = 1
    SHORT_WORDS = 2

    @property
    def size_bytes(self) -> int:
        """Of one word."""
        return 1 if self is Words.BYTES else 4


def planes(base: bytes, content: bytes, words: Words) -> NDArray[np.uint8]:
    """Return the differences, shape (size_bytes, number of words); `joined` is the inverse.

    Args:
        base: As long as `content`.
        content: A whole number of words.
        words: What is subtracted.
    """
    if words is Words.BYTES:
        return (np.frombuffer(content, np.uint8) - np.frombuffer(base, np.uint8)).reshape(1, -1)
    new, old = np.frombuffer(content, "<u4"), np.frombuffer(base, "<u4")
    coded = _folded(new - old, 32) if words is Words.WORDS else _short_difference(old, new)
    return np.ascontiguousarray(coded.astype("<u4").view(np.uint8).reshape(-1, 4).T)


def joined(found: NDArray[np.uint8], base: bytes, words: Words) -> bytes:
    """Return the content whose differences to `base` these are; undoes `planes`."""
    if words is Words.BYTES:
        content: NDArray[Any] = np.frombuffer(base, np.uint8) + found.reshape(-1)
        return content.tobytes()
    coded = np.ascontiguousarray(found.T).reshape(-1).view("<u4")
    old = np.frombuffer(base, "<u4")
    if words is Words.WORDS:
        return (old + _unfolded(coded)).astype("<u4").tobytes()
    change = _unfolded(coded & _HIGH) & _HIGH
    high = ((old >> _LOW_BITS) + change) & _HIGH
    low = (coded >> _HIGH_BITS) ^ _low_guess(old, change)
    return ((high << _LOW_BITS) | low).astype("<u4").tobytes()


def _short_difference(old: NDArray[np.uint32], new: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the folded difference of the upper bits in the lower 21, and what the lower bits are in the upper 11."""
    change = ((new >> _LOW_BITS) - (old >> _LOW_BITS)) & _HIGH
    low = (new & _LOW) ^ _low_guess(old, change)
    return np.asarray(_folded(change, _HIGH_BITS) | (low << _HIGH_BITS), np.uint32)


def _low_guess(old: NDArray[np.uint32], change: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return what the lower bits are most likely: as they were, or zeros where the upper ones changed."""
    return np.where(change == 0, old & _LOW, np.uint32(0))


def _folded(difference: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    """Return numbers of so many bits, small where the difference, modulo 2^bits, is near 0."""
    spare = 32 - bits
    signed = (difference.astype(np.uint32) << spare).view(np.int32) >> spare
    folded = ((signed << 1) ^ (signed >> 31)).view(np.uint32)
    return np.asarray(folded & np.uint32((1 << bits) - 1), np.uint32)


def _unfolded(folded: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the difference, modulo 2^32 or less: undoes `_folded`."""
    plain = folded.astype(np.uint32)
    return np.asarray((plain >> 1) ^ (np.uint32(0) - (plain & np.uint32(1))), np.uint32)
