"""When a run is due."""

from dataclasses import replace

import pytest

from quantization.errors import ConfigurationError
from server.tuning_runs import Cause, RunState, TuningRun
from server.tuning_triggers import (
    ClassSituation,
    Hold,
    Start,
    TriggerRules,
    TuningSituation,
    decide,
    is_given_up,
    next_attempt,
    retry_wait_seconds,
)

RULES = TriggerRules(
    every_seconds=3600, retry_seconds=5, most_retry_seconds=60, most_attempts=3, pause_seconds=100
)
CALM = ClassSituation("arm", last_closed_seconds=1000.0)
DRIFTING = replace(CALM, is_drifting=True, drop=0.07)


def run_that(
    state: RunState, *, attempt: int = 1, started: float = 1000.0, ended: float = 1100.0
) -> TuningRun:
    is_open = state in (RunState.STARTING, RunState.SUBMITTED, RunState.RUNNING)
    return TuningRun(
        "k" * 32,
        "digits",
        Cause.DRIFT,
        attempt=attempt,
        state=state,
        run_id="7",
        started_at_seconds=started,
        finished_at_seconds=None if is_open else ended,
    )


DONE = run_that(RunState.COMPLETED)


def decided(now: float = 1200.0, **found: object) -> Start | Hold:
    situation = TuningSituation(**{"last_run": DONE, "classes": (CALM,), **found})  # type: ignore[arg-type]
    return decide(situation, RULES, now)


@pytest.mark.parametrize("state", [RunState.STARTING, RunState.SUBMITTED, RunState.RUNNING])
def test_nothing_starts_beside_an_open_run(state: RunState) -> None:
    held = decided(last_run=run_that(state), requests=("ana asked",), classes=(DRIFTING,))
    assert held == Hold("run 7 is open")


def test_nothing_starts_during_a_rollout_of_any_class() -> None:
    busy = replace(CALM, device_class="x86", open_rollout="r1")
    held = decided(now=1e6, requests=("ana asked",), classes=(DRIFTING, busy))
    assert held == Hold("rollout r1 of 'x86' is open")


def test_a_request_starts_a_run_even_where_a_generation_waits_for_its_signature() -> None:
    waiting = replace(CALM, unsigned_generation=4)
    assert decided(requests=("ana asked: new light",), classes=(waiting,)) == Start(
        Cause.COMMAND, "ana asked: new light"
    )
    held = decided(now=1e6, classes=(replace(waiting, is_drifting=True),))
    assert held == Hold("generation 4 of 'arm' waits to be signed and published")


def test_drift_starts_a_run_at_once_if_the_last_generation_was_good() -> None:
    start = decided(classes=(CALM, replace(DRIFTING, device_class="x86")))
    assert start == Start(Cause.DRIFT, "'x86' has surely lost 7.0 points since its version began")


@pytest.mark.parametrize(("fruitless", "pause"), [(1, 100), (2, 200), (3, 400), (7, 6400), (50, 6400)])
def test_a_class_whose_generations_brought_nothing_waits_twice_as_long_each_time(
    fruitless: int, pause: float
) -> None:
    rules = replace(RULES, every_seconds=0)
    situation = TuningSituation(DONE, classes=(replace(DRIFTING, fruitless=fruitless),))
    early = decide(situation, rules, 1000.0 + pause - 1)
    assert early == Hold("'arm' drifts, but its last generations brought nothing; it waits")
    assert isinstance(decide(situation, rules, 1000.0 + pause), Start)


def test_drift_that_nobody_watches_starts_nothing() -> None:
    rules = replace(RULES, every_seconds=0, is_drift_watched=False)
    assert decide(TuningSituation(DONE, classes=(DRIFTING,)), rules, 1e9) == Hold("nothing asks for a run")


def test_a_schedule_counts_from_the_start_of_the_last_run() -> None:
    assert decided(now=4599.0) == Hold("nothing asks for a run")
    assert decided(now=4600.0) == Start(Cause.SCHEDULE, "a run is due every 1 h")
    assert isinstance(decided(now=0.0, last_run=None), Start)


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.LOST, RunState.OVERDUE])
def test_a_run_that_ended_early_is_followed_by_another_for_the_same_cause(state: RunState) -> None:
    assert isinstance(decided(now=1104.0, last_run=run_that(state)), Hold)
    start = decided(now=1105.0, last_run=run_that(state))
    assert isinstance(start, Start)
    assert (start.cause, start.attempt) == (Cause.DRIFT, 2)
    assert state in start.reason


def test_attempts_are_counted_anew_when_a_run_got_a_generation_further() -> None:
    last = run_that(RunState.LOST, attempt=3)
    assert next_attempt(last, has_progressed=True) == 1
    assert isinstance(decided(now=1105.0, last_run=last, has_progressed=True), Start)


def test_a_cause_is_dropped_after_so_many_attempts_but_a_new_one_is_heard() -> None:
    last = run_that(RunState.FAILED, attempt=3)
    given_up = TuningSituation(last, classes=(CALM,))
    assert is_given_up(given_up, RULES)
    assert not is_given_up(replace(given_up, has_progressed=True), RULES)
    assert not is_given_up(TuningSituation(DONE), RULES)
    assert decide(given_up, RULES, 2000.0) == Hold("nothing asks for a run")
    assert isinstance(decide(replace(given_up, requests=("ana asked",)), RULES, 2000.0), Start)


def test_a_request_does_not_wait_for_the_next_attempt() -> None:
    start = decided(now=1101.0, last_run=run_that(RunState.LOST), requests=("ana asked",))
    assert start == Start(Cause.COMMAND, "ana asked")


def test_waits_double_up_to_a_bound() -> None:
    assert [retry_wait_seconds(attempt, RULES) for attempt in (1, 2, 3, 4, 5, 6, 99)] == [
        5,
        5,
        10,
        20,
        40,
        60,
        60,
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_seconds": -1.0},
        {"most_attempts": 0},
        {"retry_seconds": 0.0},
        {"retry_seconds": 61.0, "most_retry_seconds": 60.0},
    ],
)
def test_rules_that_would_start_without_end_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        TriggerRules(**wrong)  # type: ignore[arg-type]
