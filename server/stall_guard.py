"""Ends a stream on which nothing happens, at the price of reading the clock for every message."""

import asyncio
from types import TracebackType
from typing import Self


class StallGuard:
    """A timeout that starts over whenever there is progress.

    A stream that stands still ends after `limit_seconds` or up to a quarter less, because the timer is set anew
    only once in a while: setting it for each chunk would cost a tenth of what sending one does.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._timeout = asyncio.timeout(limit_seconds)
        self._now = asyncio.get_running_loop().time
        self._reset_at = 0.0

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)

    def progress(self) -> None:
        """Say that something happened."""
        now = self._now()
        if now >= self._reset_at and not self._timeout.expired():
            self._timeout.reschedule(now + self._limit_seconds)
            self._reset_at = now + self._limit_seconds / 4
