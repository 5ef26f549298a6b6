"""Stores what devices report, many calls in one transaction.

A transaction costs one flush of the disk, whatever it holds: so calls that come while one is under way wait, and are
stored together by the next. A call waits for two transactions at most where the database keeps up.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from quantization.errors import OverloadedError, QuantFleetError
from server.telemetry_reports import DeviceReports, Folded
from server.telemetry_settings import TelemetrySettings

FoldAll = Callable[[Sequence[DeviceReports]], Sequence[Folded | QuantFleetError]]
"""Stores calls in one transaction; may block. Returns what became of each."""

_Waiting = tuple[DeviceReports, asyncio.Future[Folded]]


class TelemetryWriter:
    """The calls that wait, and the one thread that stores them; use it as an async context manager."""

    def __init__(self, fold_all: FoldAll, settings: TelemetrySettings) -> None:
        self._fold_all = fold_all
        self._settings = settings
        self._waiting: deque[_Waiting] = deque()
        self._is_due = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, "quantfleet-telemetry")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="telemetry-writer")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for _reports, future in self._waiting:
            future.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting_seconds(self) -> float:
        """How long the calls that wait now are expected to take."""
        return len(self._waiting) / self._settings.reports_per_second

    async def store(self, reports: DeviceReports) -> Folded:
        """Return what became of a device's reports, once they are stored for good.

        Raises:
            OverloadedError: Too many calls wait.
            QuantFleetError: The reports are refused.
            SQLAlchemyError: The database cannot be reached; whether they are stored is not known.
            TimeoutError: Likewise, it took too long.
        """
        if len(self._waiting) >= self._settings.max_waiting_calls:
            raise OverloadedError(
                f"reports of {len(self._waiting)} devices wait to be stored", max(1.0, self.waiting_seconds)
            )
        future: asyncio.Future[Folded] = asyncio.get_running_loop().create_future()
        self._waiting.append((reports, future))
        self._is_due.set()
        async with asyncio.timeout(self._settings.wait_seconds):
            return await future

    async def _run(self) -> None:
        while True:
            await self._is_due.wait()
            most = self._settings.calls_per_transaction
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            if not self._waiting:
                self._is_due.clear()
            await self._store([(reports, future) for reports, future in taken if not future.done()])

    async def _store(self, taken: Sequence[_Waiting]) -> None:
        if not taken:
            return
        calls = [reports for reports, _ in taken]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._fold_all, calls)
        except Exception as error:  # noqa: BLE001 - whatever ails the database, whoever waits is told
            _answer(taken, [error] * len(taken))
        else:
            _answer(taken, results)


def _answer(taken: Sequence[_Waiting], results: Sequence[Folded | Exception]) -> None:
    for (_, future), result in zip(taken, results, strict=True):
        if future.done():  # the device has gone meanwhile
            continue
        if isinstance(result, Folded):
            future.set_result(result)
        else:
            future.set_exception(result)
