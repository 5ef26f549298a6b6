"""Work that blocks and is done again and again, in a thread, for as long as a server lives.

Whatever goes wrong is logged, and the work is done again after the same wait: were it to end, nobody would see that
rollouts are no longer reviewed, or that a device that was revoked is still answered.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import structlog

_log = structlog.get_logger()


class Periodic:
    """One piece of work in one thread; use it as an async context manager around the server's life."""

    def __init__(
        self, name: str, work: Callable[[], object], *, every_seconds: float, is_due_at_once: bool = False
    ) -> None:
        """Do nothing yet.

        Args:
            name: Of the work, for the log.
            work: May block, and may raise.
            every_seconds: Wait between two times.
            is_due_at_once: Whether the block starts only when the work was done once; then errors are the work's.
        """
        self._name = name
        self._work = work
        self._every_seconds = every_seconds
        self._is_due_at_once = is_due_at_once
        self._executor = ThreadPoolExecutor(1, f"quantfleet-{name}")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._is_due_at_once:
            await self._do()
        self._task = asyncio.create_task(self._run(), name=self._name)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self._do()
            except Exception as error:  # noqa: BLE001 - whatever it is, it may have passed the next time
                reason = str(error).partition("\n")[0][:200]
                _log.warning("work_failed", work=self._name, error=type(error).__name__, reason=reason)

    async def _do(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._work)
