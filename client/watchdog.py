"""Ends a wait that lasts too long: a stream that is read in one thread is cancelled from another."""

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Watchdog:
    """Calls a function, once, if what is waited for takes too long; use it as a context manager.

    It costs one thread while it is used. It bites when the time is over, or up to as much later: that a wait ended in
    time is said without a lock, because a stream has thousands of them in a second.

    Attributes:
        has_bitten: Whether it did.
    """

    def __init__(self, bite: Callable[[], object]) -> None:
        """Watch over waits.

        Args:
            bite: Ends the wait; any thread may call it.
        """
        self.has_bitten = False
        self._bite = bite
        self._changed = threading.Condition()
        self._deadline = math.inf
        self._limit = self._sleeps = math.inf
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name="quantfleet-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join()

    def arm(self, seconds: float) -> None:
        """Bite if `disarm` does not come within so many seconds from now; 0 or infinity for never."""
        limit = seconds if seconds > 0 else math.inf
        self._deadline = time.monotonic() + limit
        self._limit = limit
        if limit < self._sleeps:  # the thread sleeps for longer than that
            with self._changed:
                self._changed.notify()

    def disarm(self) -> None:
        """Bite no more until it is armed again."""
        self._deadline = math.inf

    def _run(self) -> None:
        with self._changed:
            while self._is_open:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self.has_bitten = True
                    break
                self._sleeps = min(left, self._limit)
                if self._limit >= self._sleeps:  # else it was armed meanwhile, for less
                    self._changed.wait(None if math.isinf(self._sleeps) else self._sleeps)
        if self.has_bitten:
            self._bite()
