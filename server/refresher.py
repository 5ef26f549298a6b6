"""Signs anew what is about to expire, and says what only an operator can renew."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import structlog

from quantization.errors import QuantFleetError

_log = structlog.get_logger()

Renewal = Callable[[], object]
"""Renews what is due and returns something true if it did; may block."""


class Refresher:
    """Runs renewals every so often; use it as an async context manager around the server's life."""

    def __init__(self, renewals: Mapping[str, Renewal], *, refresh_seconds: float) -> None:
        """Run renewals.

        Args:
            renewals: By what they renew, for the log.
            refresh_seconds: How often.
        """
        self._renewals = renewals
        self._refresh_seconds = refresh_seconds
        self._executor = ThreadPoolExecutor(1, "quantfleet-refresh")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Renew once, so that a server that was off for long starts with what devices believe."""
        await self._refresh()
        self._task = asyncio.create_task(self._run(), name="refresher")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_seconds)
            await self._refresh()

    async def _refresh(self) -> None:
        for name, renew in self._renewals.items():
            try:
                renewed = await asyncio.get_running_loop().run_in_executor(self._executor, renew)
            except (QuantFleetError, OSError) as error:
                _log.error("renewal_failed", what=name, error=str(error))
            else:
                if renewed:
                    _log.info("renewed", what=name)
