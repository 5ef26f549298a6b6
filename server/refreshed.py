"""A value that is read again when it is old, by a thread of its own: whoever asks never waits for long.

The rules:

1. At most one read is under way, and a read that hangs costs one thread, not one a question.
2. A read that fails leaves the last value, and is tried again when the value is old once more.
"""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

_log = structlog.get_logger()
_Value = TypeVar("_Value")


class Refreshed(Generic[_Value]):
    """The last value that could be read; any thread may ask."""

    def __init__(
        self,
        name: str,
        read: Callable[[], _Value],
        first: _Value,
        *,
        max_age_seconds: float,
        wait_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read nothing yet.

        Args:
            name: What is read, for the log.
            read: Reads the value; may block, may raise.
            first: The value until one could be read.
            max_age_seconds: From when on a value is read again.
            wait_seconds: How long `get` waits for a read at most.
            clock: Seconds that never go back.
        """
        self._name = name
        self._read = read
        self._value = first
        self._max_age_seconds = max_age_seconds
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._started_at = float("-inf")
        self._read_at: float | None = None
        self._is_fresh = False
        self._done = threading.Event()
        self._done.set()

    def get(self) -> _Value:
        """Return the value, read again if it was old and reading took no longer than `wait_seconds`."""
        with self._lock:
            if self._done.is_set() and self._clock() - self._started_at >= self._max_age_seconds:
                self._done.clear()
                self._started_at = self._clock()
                threading.Thread(target=self._refresh, name=f"refresh-{self._name}", daemon=True).start()
        self._done.wait(self._wait_seconds)
        return self._value

    @property
    def is_fresh(self) -> bool:
        """Whether the last read has succeeded, and none hangs."""
        return self._is_fresh and (
            self._done.is_set() or self._clock() - self._started_at < self._wait_seconds
        )

    @property
    def age_seconds(self) -> float | None:
        """How long ago the value was read; None before the first."""
        return None if self._read_at is None else self._clock() - self._read_at

    def _refresh(self) -> None:
        try:
            self._value = self._read()
            self._read_at, self._is_fresh = self._clock(), True
        except Exception as error:  # noqa: BLE001 - whatever it was, the last value stays
            self._is_fresh = False
            _log.warning("refresh_failed", what=self._name, error=str(error).partition("\n")[0])
        finally:
            self._done.set()
