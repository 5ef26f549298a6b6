"""Ends a wait that lasts too long: a stream that is read in one thread is cancelled from another."""

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Watchdog:
    """Calls a function, once, if what is waited for takes too long; use it as a context manager.

    It costs one thread while it is used, and one lock for every wait.

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
        self._wakes_at = math.inf
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
        with self._changed:
            self._deadline = time.monotonic() + seconds if seconds > 0 else math.inf
            if self._deadline < self._wakes_at:
                self._changed.notify()

    def disarm(self) -> None:
        """Bite no more until it is armed again."""
        with self._changed:
            self._deadline = math.inf

    def _run(self) -> None:
        with self._changed:
            while self._is_open:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self.has_bitten = True
                    break
                self._wakes_at = self._deadline
                self._changed.wait(None if math.isinf(left) else left)
        if self.has_bitten:
            self._bite()
