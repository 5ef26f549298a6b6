"""Lets telemetry move the open rollouts, every few seconds.

Several server processes may review one registry: of two that move a rollout at the same moment, the database refuses
one, which reads it again the next time.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from quantization.errors import IllegalTransitionError, QuantFleetError
from server.rollout_registry import RolloutRegistry
from server.telemetry_registry import TelemetryRegistry

_log = structlog.get_logger()


class Reviewer:
    """Use it as an async context manager around the server's life."""

    def __init__(
        self,
        rollouts: RolloutRegistry,
        telemetry: TelemetryRegistry,
        *,
        review_seconds: float,
        on_change: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """Review rollouts.

        Args:
            rollouts: Has them.
            telemetry: Has the evidence.
            review_seconds: How often.
            on_change: Called, in the event loop, when one has moved.
            clock: Seconds since 1970 (UTC).
        """
        self._rollouts = rollouts
        self._telemetry = telemetry
        self._review_seconds = review_seconds
        self._on_change = on_change
        self._clock = clock
        self._executor = ThreadPoolExecutor(1, "quantfleet-review")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="reviewer")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._review_seconds)
            try:
                moved = await asyncio.get_running_loop().run_in_executor(self._executor, self.review)
            except (SQLAlchemyError, QuantFleetError) as error:
                _log.warning("rollouts_not_reviewed", error=str(error).splitlines()[0][:200])
                continue
            if moved:
                self._on_change()

    def review(self) -> int:
        """Let telemetry move every open rollout once; return how many have moved.

        Raises:
            SQLAlchemyError: The database cannot be read.
        """
        moved = 0
        for rollout in self._rollouts.rollouts(only_open=True):
            try:
                after = self._telemetry.review(self._rollouts, rollout, self._clock())
            except IllegalTransitionError as error:
                _log.info("rollout_moved_elsewhere", rollout_id=rollout.rollout_id, error=str(error))
                continue
            if after.revision != rollout.revision:
                moved += 1
                _log.info(
                    "rollout_advanced",
                    rollout_id=rollout.rollout_id,
                    device_class=rollout.device_class,
                    version=rollout.version,
                    phase=str(after.phase),
                    share=after.share,
                    reason=after.reason,
                )
        return moved
