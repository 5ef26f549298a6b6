"""Runs of the tuner as values: why one starts, where it stands, and what may follow.

A run's row is in the registry before Flower is asked to start it, and it ends by an event in `NEXT_STATE` alone. The
ServerApp is told the run's key: it writes Flower's id of the run into the row, says when it is through, and stops when
the row was closed meanwhile. So a tuner that dies between any two of its steps leaves nothing that runs unseen.
"""

from dataclasses import dataclass
from enum import StrEnum

from quantization.errors import IllegalTransitionError


class Cause(StrEnum):
    """Why a run starts; the value is what the registry stores."""

    COMMAND = "command"
    DRIFT = "drift"
    SCHEDULE = "schedule"


class RunState(StrEnum):
    """Where a run stands; the value is what the registry stores."""

    STARTING = "starting"
    SUBMITTED = "submitted"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    LOST = "lost"
    OVERDUE = "overdue"


class RunEvent(StrEnum):
    """What happened to a run."""

    SUBMITTED = "submitted"
    BEGAN = "began"
    COMPLETED = "completed"
    FAILED = "failed"
    LOST = "lost"
    OVERDUE = "overdue"


NEXT_STATE: dict[tuple[RunState, RunEvent], RunState] = {
    (RunState.STARTING, RunEvent.SUBMITTED): RunState.SUBMITTED,
    (
        RunState.STARTING,
        RunEvent.BEGAN,
    ): RunState.RUNNING,  # the ServerApp was faster than the answer to the tuner
    (RunState.SUBMITTED, RunEvent.BEGAN): RunState.RUNNING,
    (RunState.RUNNING, RunEvent.COMPLETED): RunState.COMPLETED,
    **{
        (state, event): RunState(event)
        for state in (RunState.STARTING, RunState.SUBMITTED, RunState.RUNNING)
        for event in (RunEvent.FAILED, RunEvent.LOST, RunEvent.OVERDUE)
    },
}
"""Every transition there is; a pair that is not here is illegal."""

ENDED_STATES = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.LOST, RunState.OVERDUE})
"""States that nothing follows."""


def next_state(state: RunState, event: RunEvent) -> RunState:
    """Return the state that follows.

    Raises:
        IllegalTransitionError: `event` cannot happen in `state`.
    """
    try:
        return NEXT_STATE[state, event]
    except KeyError:
        raise IllegalTransitionError(f"event '{event}' cannot happen to a run that is '{state}'") from None


@dataclass(frozen=True, slots=True)
class TuningRun:
    """One Flower run that the tuner started, and everything known of it so far.

    Attributes:
        key: Its name in the registry, 32 hex digits; the run configuration holds it as `tuning-run`.
        model_name: The model that it tunes.
        cause: Why it was started.
        reason: The same in words.
        attempt: Counts the runs for this cause that ended without getting a generation any further, from 1.
        state: Where it stands.
        run_id: Flower's id of the run; empty while it is not known.
        marker: Where the model's generations stood when it was started (`server.tuning_registry`).
        detail: How it ended, in words.
        started_at_seconds: When the row was made, seconds since 1970 (UTC).
        finished_at_seconds: When it ended; None while it has not.
    """

    key: str
    model_name: str
    cause: Cause
    reason: str = ""
    attempt: int = 1
    state: RunState = RunState.STARTING
    run_id: str = ""
    marker: str = ""
    detail: str = ""
    started_at_seconds: float = 0.0
    finished_at_seconds: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may still be at work."""
        return self.state not in ENDED_STATES

    @property
    def is_unfinished(self) -> bool:
        """Whether it ended before its work was done, so that another run has to go on."""
        return self.state in ENDED_STATES and self.state is not RunState.COMPLETED


@dataclass(frozen=True, slots=True)
class TuningRequest:
    """A request of an operator for a generation.

    Attributes:
        number: Counts from 1.
        model_name: The model to tune.
        actor: Who asks.
        reason: Why, in words.
        at_seconds: When, seconds since 1970 (UTC).
        run_key: The run that it got; None while it waits.
    """

    number: int
    model_name: str
    actor: str
    reason: str
    at_seconds: float
    run_key: str | None = None
