"""Waits for what another thread or process does."""

import time
from collections.abc import Callable
from typing import TypeVar

_Value = TypeVar("_Value")

DEADLINE_SECONDS = 60.0


def eventually(ask: Callable[[], _Value], deadline_seconds: float = DEADLINE_SECONDS) -> _Value:
    """Return the first answer that is true; AssertionError with the last one if none comes in time."""
    until = time.monotonic() + deadline_seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > until:
            raise AssertionError(f"not within {deadline_seconds:g} s; the last answer was {answer!r}")
        time.sleep(0.01)
