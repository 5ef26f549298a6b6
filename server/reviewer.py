"""Lets telemetry move the open rollouts.

Several server processes may review one registry: of two that move a rollout at the same moment, the database refuses
one, which reads it again the next time.
"""

from collections.abc import Callable

import structlog

from quantization.errors import IllegalTransitionError, QuantFleetError
from server.rollout import Rollout
from server.rollout_registry import RolloutRegistry
from server.telemetry_registry import TelemetryRegistry

_log = structlog.get_logger()


class Reviewer:
    """Reviews all open rollouts whenever it is asked to."""

    def __init__(
        self,
        rollouts: RolloutRegistry,
        telemetry: TelemetryRegistry,
        *,
        on_change: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """Review rollouts.

        Args:
            rollouts: Has them.
            telemetry: Has the evidence.
            on_change: Called when one has moved.
            clock: Seconds since 1970 (UTC).
        """
        self._rollouts = rollouts
        self._telemetry = telemetry
        self._on_change = on_change
        self._clock = clock

    def review(self) -> None:
        """Let telemetry move every open rollout once; one that cannot be reviewed does not hinder the others.

        Raises:
            SQLAlchemyError: The database cannot be read.
        """
        for rollout in self._rollouts.rollouts(only_open=True):
            try:
                self._review(rollout)
            except IllegalTransitionError as error:
                _log.info("rollout_moved_elsewhere", rollout_id=rollout.rollout_id, error=str(error))
            except QuantFleetError as error:
                _log.warning("rollout_not_reviewed", rollout_id=rollout.rollout_id, error=str(error))

    def _review(self, rollout: Rollout) -> None:
        after = self._telemetry.review(self._rollouts, rollout, self._clock())
        if after.revision == rollout.revision:
            return
        self._on_change()
        _log.info(
            "rollout_advanced",
            rollout_id=rollout.rollout_id,
            device_class=rollout.device_class,
            version=rollout.version,
            phase=str(after.phase),
            share=after.share,
            reason=after.reason,
        )
