"""Which certificates are good no more, in memory: read from the registry every few seconds, asked for every call."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from quantization.errors import QuantFleetError
from server.identity_records import Revoked

POLL_SECONDS = 2.0

_log = structlog.get_logger()


class Revocations:
    """Use it as an async context manager around the server's life.

    What it knows when the block starts is complete; later news takes `poll_seconds` at most. While the registry cannot
    be read, what was known last holds.
    """

    def __init__(self, source: Callable[[], Revoked], *, poll_seconds: float = POLL_SECONDS) -> None:
        """Read from a source.

        Args:
            source: Such as `IdentityRegistry.revoked`; it may block, and is called in a thread.
            poll_seconds: How often.
        """
        self._source = source
        self._poll_seconds = poll_seconds
        self._revoked = Revoked()
        self._executor = ThreadPoolExecutor(1, "quantfleet-revocations")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Read once; errors are the source's."""
        await self.refresh()
        self._task = asyncio.create_task(self._run(), name="revocations")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._executor.shutdown(wait=False, cancel_futures=True)

    def is_revoked(self, serial: str, uri: str) -> bool:
        """Return whether a certificate, or whom it names, was revoked."""
        return self._revoked.holds(serial, uri)

    async def refresh(self) -> None:
        """Read what is revoked now."""
        loop = asyncio.get_running_loop()
        self._revoked = await loop.run_in_executor(self._executor, self._source)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self.refresh()
            except (SQLAlchemyError, QuantFleetError) as error:
                _log.warning("revocations_not_read", error=str(error).splitlines()[0][:200])
