"""The inputs that were answered last: what the model said, until somebody knows better."""

import secrets
import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

from quantization.errors import NotFoundError

_Source = TypeVar("_Source")


class RecentSamples(Generic[_Source]):
    """Remembers a bounded number of answers, the newest; safe to call from many threads.

    Numbers of samples begin at random, so that a label that comes after a restart finds no stranger.
    """

    def __init__(self, capacity: int) -> None:
        """Remember at most so many answers; about 100 bytes each."""
        self._capacity = capacity
        self._lock = threading.Lock()
        self._next = 1 + secrets.randbits(48)
        self._answers: list[tuple[int, int, _Source] | None] = [None] * capacity

    def add(self, classes: Sequence[int], source: _Source) -> int:
        """Remember the answers to a batch; return the number of its first input.

        Args:
            classes: What the model said, for each input; empty where an answer is no class, and nothing is remembered.
            source: Who said so.
        """
        with self._lock:
            first = self._next
            self._next += max(len(classes), 1)
            for offset in range(max(len(classes) - self._capacity, 0), len(classes)):
                number = first + offset
                self._answers[number % self._capacity] = (number, classes[offset], source)
        return first

    def skip(self, count: int) -> int:
        """Return the number of the first of so many inputs whose answers are not remembered."""
        with self._lock:
            first = self._next
            self._next += max(count, 1)
        return first

    def take(self, number: int) -> tuple[int, _Source]:
        """Return what was said to an input, and who said so; it is forgotten.

        Raises:
            NotFoundError: If it is not remembered.
        """
        with self._lock:
            answer = self._answers[number % self._capacity] if self._capacity else None
            if answer is None or answer[0] != number:
                raise NotFoundError(
                    f"sample {number} is not known: it was never answered with a class, or too long ago, or has its "
                    "label already"
                )
            self._answers[number % self._capacity] = None
        return answer[1], answer[2]
