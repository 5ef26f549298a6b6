"""When the tuner starts a run: a function of what the registry shows, and of the time.

The rules, the first that holds:

1. While a run is open, or a rollout of the model is, nothing starts: the next generation starts from what devices run,
   and a rollout is about to change that.
2. A run that ended before its work was done is followed by another, after a pause that doubles with each that gets no
   generation any further, as often as `most_attempts`.
3. An operator's request starts a run.
4. While a generation waits for its signature nothing else starts.
5. A class that drifts starts a run. If its last generations brought nothing (unchanged, rejected, failed, recalled),
   it waits for `pause_seconds`, doubled with each of them.
6. A schedule starts a run when the last one that was started is `every_seconds` old.

Nothing here reads a clock: times are passed in.
"""

from dataclasses import dataclass

from quantization.errors import ConfigurationError
from server.tuning_runs import Cause, TuningRun

_MOST_PAUSES = 6
"""How often the pause doubles: 64 times as long, at most."""


@dataclass(frozen=True, slots=True)
class TriggerRules:
    """When the tuner starts a run.

    Attributes:
        every_seconds: A run is due when the last one is this old; 0 for no schedule.
        is_drift_watched: Whether a class that drifts starts a run.
        retry_seconds: Shortest wait before a run that ended early is followed by another.
        most_retry_seconds: Longest.
        most_attempts: Runs for one cause that get no generation any further, before the cause is dropped.
        pause_seconds: Wait of a class that drifts after a generation that brought nothing; doubles.
    """

    every_seconds: float = 0.0
    is_drift_watched: bool = True
    retry_seconds: float = 5.0
    most_retry_seconds: float = 900.0
    most_attempts: int = 10
    pause_seconds: float = 3600.0

    def __post_init__(self) -> None:
        """Refuse what would start runs without end, or none."""
        if self.every_seconds < 0 or self.pause_seconds < 0 or self.most_attempts < 1:
            raise ConfigurationError(
                f"schedule {self.every_seconds} s and pause {self.pause_seconds} s must be 0 or more, attempts "
                f"{self.most_attempts} at least 1"
            )
        if not 0 < self.retry_seconds <= self.most_retry_seconds:
            raise ConfigurationError(
                f"retry {self.retry_seconds} s must be above 0 and at most {self.most_retry_seconds} s"
            )


@dataclass(frozen=True, slots=True)
class ClassSituation:
    """What the registry shows of one class.

    Attributes:
        device_class: Name of the class.
        is_drifting: Whether telemetry says that it drifts.
        drop: By how much, a part of all answers.
        fruitless: Closed generations since the last one that is published and was not recalled.
        last_closed_seconds: When the last generation was closed, seconds since 1970 (UTC); 0 for never.
        open_rollout: Name of its open rollout; empty if none is.
        unsigned_generation: Number of the published generation that waits for a signature; None if none does.
    """

    device_class: str
    is_drifting: bool = False
    drop: float = 0.0
    fruitless: int = 0
    last_closed_seconds: float = 0.0
    open_rollout: str = ""
    unsigned_generation: int | None = None


@dataclass(frozen=True, slots=True)
class TuningSituation:
    """What the registry shows of one model.

    Attributes:
        last_run: The newest run; None before the first.
        has_progressed: Whether generations got any further since that run was started.
        requests: Who asks for a generation, in words; empty if nobody does.
        classes: Every class that the model was prepared for.
    """

    last_run: TuningRun | None = None
    has_progressed: bool = False
    requests: tuple[str, ...] = ()
    classes: tuple[ClassSituation, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """A run is due.

    Attributes:
        cause: Why.
        reason: The same in words.
        attempt: See `server.tuning_runs.TuningRun`.
    """

    cause: Cause
    reason: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing starts now.

    Attributes:
        reason: Why, in words.
    """

    reason: str


def decide(situation: TuningSituation, rules: TriggerRules, now_seconds: float) -> Start | Hold:
    """Return whether a run starts now, and why, or why not."""
    held = _open(situation)
    if held is not None:
        return held
    retry = _retry(situation, rules, now_seconds)
    if isinstance(retry, Start):
        return retry
    if situation.requests:
        return Start(Cause.COMMAND, "; ".join(situation.requests))
    return retry or _unsigned(situation) or _due(situation, rules, now_seconds)


def next_attempt(run: TuningRun, *, has_progressed: bool) -> int:
    """Return which attempt follows a run that ended early: the first again, if it got anything done."""
    return 1 if has_progressed else run.attempt + 1


def retry_wait_seconds(attempt: int, rules: TriggerRules) -> float:
    """Return how long an attempt waits after the run before it ended; the first two wait as long."""
    doubled: float = rules.retry_seconds * 2.0 ** min(max(attempt - 2, 0), 40)
    return min(doubled, rules.most_retry_seconds)


def is_given_up(situation: TuningSituation, rules: TriggerRules) -> bool:
    """Return whether the last run ended early, and no other will follow it of itself."""
    last = situation.last_run
    if last is None or not last.is_unfinished:
        return False
    return next_attempt(last, has_progressed=situation.has_progressed) > rules.most_attempts


def _open(situation: TuningSituation) -> Hold | None:
    if situation.last_run is not None and situation.last_run.is_open:
        return Hold(f"run {situation.last_run.run_id or situation.last_run.key} is open")
    for one in situation.classes:
        if one.open_rollout:
            return Hold(f"rollout {one.open_rollout} of '{one.device_class}' is open")
    return None


def _retry(situation: TuningSituation, rules: TriggerRules, now_seconds: float) -> Start | Hold | None:
    last = situation.last_run
    if last is None or not last.is_unfinished or is_given_up(situation, rules):
        return None
    attempt = next_attempt(last, has_progressed=situation.has_progressed)
    due_seconds = (last.finished_at_seconds or 0.0) + retry_wait_seconds(attempt, rules)
    if now_seconds < due_seconds:
        return Hold(
            f"the last run ended early ({last.state}); attempt {attempt} follows in {due_seconds - now_seconds:.0f} s"
        )
    return Start(last.cause, f"the last run ended early ({last.state}: {last.detail})"[:500], attempt)


def _unsigned(situation: TuningSituation) -> Hold | None:
    for one in situation.classes:
        if one.unsigned_generation is not None:
            return Hold(
                f"generation {one.unsigned_generation} of '{one.device_class}' waits to be signed and published"
            )
    return None


def _due(situation: TuningSituation, rules: TriggerRules, now_seconds: float) -> Start | Hold:
    drifting = [one for one in situation.classes if one.is_drifting and rules.is_drift_watched]
    for one in drifting:
        if now_seconds >= one.last_closed_seconds + _pause_seconds(one, rules):
            reason = (
                f"'{one.device_class}' has surely lost {100 * one.drop:.1f} points since its version began"
            )
            return Start(Cause.DRIFT, reason)
    last = situation.last_run
    if rules.every_seconds and (last is None or now_seconds >= last.started_at_seconds + rules.every_seconds):
        return Start(Cause.SCHEDULE, f"a run is due every {rules.every_seconds / 3600:g} h")
    if drifting:
        names = ", ".join(f"'{one.device_class}'" for one in drifting)
        return Hold(f"{names} drifts, but its last generations brought nothing; it waits")
    return Hold("nothing asks for a run")


def _pause_seconds(one: ClassSituation, rules: TriggerRules) -> float:
    return rules.pause_seconds * 2.0 ** min(one.fruitless - 1, _MOST_PAUSES) if one.fruitless else 0.0
