"""What telemetry decides at every stage of a rollout."""

from dataclasses import replace

import numpy as np
import pytest

from quantization.errors import ConfigurationError
from server.rollout import ABORTS, Event, Phase, Rollout, RolloutPlan, advance, possible_events
from server.rollout_rules import Evidence, Situation, block_sizes, decide
from server.rollout_settings import DEFAULT_RULES, RolloutRules
from server.rollout_units import Marks, Unit

PLAN = RolloutPlan()
MEASURES = {
    "accuracy": Event.ACCURACY_DROPPED,
    "agreement": Event.AGREEMENT_DROPPED,
    "failures": Event.FAILURES_ROSE,
    "latency": Event.LATENCY_ROSE,
    "memory": Event.MEMORY_ROSE,
}


def rollout(**changes: object) -> Rollout:
    return replace(Rollout("r1", "a" * 64, "arm", 5, 4, "new", "base"), **changes)  # type: ignore[arg-type]


def evidence(
    measure: str, drop: float, *, blocks: int = 80, step: int = 0, spread: float = 0.02, seed: int = 0
) -> Evidence:
    rng = np.random.default_rng(seed)
    seen = Evidence.none()
    for _ in range(blocks):
        for k in range(6):
            loss = float(rng.normal(0, spread)) + drop * (k == 0)
            seen = seen.observe(Unit(k == 0, step, **{measure: loss}), PLAN)
    return seen


FINE = evidence("accuracy", 0.0)


def decided(value: Rollout, situation: Situation, hours: float = 0.1) -> Event | None:
    event = decide(value, situation, now_seconds=hours * 3600).event
    assert event is None or event in possible_events(value)
    return event


@pytest.mark.parametrize(("measure", "event"), MEASURES.items())
def test_a_measure_that_is_worse_takes_the_version_back(measure: str, event: Event) -> None:
    drop = {"latency": 0.5, "memory": 0.4}.get(measure, 0.04)
    spread = {"latency": 0.2, "memory": 0.1}.get(measure, 0.02)
    assert decided(rollout(), Situation(evidence(measure, drop, spread=spread))) is event
    assert decided(rollout(), Situation(evidence(measure, 0.0, spread=spread))) not in ABORTS
    assert decided(rollout(), Situation(evidence(measure, -drop, spread=spread))) not in ABORTS


def test_a_step_passes_when_the_version_is_shown_not_to_be_worse() -> None:
    assert decided(rollout(), Situation(FINE)) is Event.STEP_PASSED
    last = rollout(phase=Phase.EXPANDING, step=2)
    assert decided(last, Situation(evidence("accuracy", 0.0, step=2))) is Event.LAST_STEP_PASSED


def test_a_step_needs_units_of_its_own() -> None:
    second = rollout(phase=Phase.EXPANDING, step=1)
    assert decided(second, Situation(FINE)) is None
    seen = FINE.observe(Unit(True, 1, accuracy=0.0), PLAN)
    assert decided(second, Situation(seen)) is Event.STEP_PASSED


def test_a_step_needs_some_canaries() -> None:
    few = Situation(evidence("accuracy", 0.0, blocks=DEFAULT_RULES.least_units - 1))
    assert decided(rollout(), few, hours=7) is None


def test_time_without_an_alarm_passes_a_step_but_not_the_last() -> None:
    few = Situation(evidence("accuracy", 0.0, blocks=5))
    assert decided(rollout(), few, hours=1) is None
    assert decided(rollout(), few, hours=7) is Event.STEP_PASSED
    last = rollout(phase=Phase.EXPANDING, step=2)
    little = Situation(evidence("accuracy", 0.0, blocks=5, step=2))
    assert decided(last, little, hours=7) is None
    assert decided(last, little, hours=49) is Event.STALLED


def test_a_fleet_too_small_to_show_it_may_be_let_off() -> None:
    last = rollout(phase=Phase.EXPANDING, step=2)
    little = Situation(evidence("accuracy", 0.0, blocks=5, step=2))
    trusting = RolloutRules(needs_proof=False)
    early, late = (decide(last, little, now_seconds=h * 3600, rules=trusting).event for h in (1, 7))
    assert (early, late) == (None, Event.LAST_STEP_PASSED)
    bad = Situation(evidence("accuracy", 0.05, step=2))
    assert decide(last, bad, now_seconds=7 * 3600, rules=trusting).event is Event.ACCURACY_DROPPED


def test_silent_canaries_stall_the_rollout() -> None:
    assert decided(rollout(), Situation(Evidence.none()), hours=7) is None
    assert decided(rollout(), Situation(Evidence.none()), hours=49) is Event.STALLED


def test_agreement_decides_where_labels_are_few() -> None:
    seen = evidence("agreement", 0.0)
    assert decided(rollout(), Situation(seen)) is Event.STEP_PASSED
    rng = np.random.default_rng(1)
    for _ in range(DEFAULT_RULES.enough_labelled):  # labels that say nothing yet
        for k in range(6):
            seen = seen.observe(Unit(k == 0, 0, accuracy=float(rng.normal(0, 0.2))), PLAN)
    assert decided(rollout(), Situation(seen)) is None


@pytest.mark.parametrize(
    ("marks", "event"),
    [
        (Marks(2, 2, loading=2), Event.LOADING_FAILED),
        (Marks(2, 2, destroyed=2), Event.MODEL_DESTROYED),
        (Marks(4, 3, slow=3), Event.LATENCY_ROSE),
        (Marks(40, 9, large=9, slow=1), Event.MEMORY_ROSE),
    ],
)
def test_few_marked_canaries_take_the_version_back_at_once(marks: Marks, event: Event) -> None:
    assert decided(rollout(), Situation(Evidence.none(), marks)) is event
    assert decided(rollout(), Situation(FINE, marks)) is event


@pytest.mark.parametrize("marks", [Marks(1, 1, loading=1), Marks(200, 4, loading=4), Marks()])
def test_a_mark_here_and_there_is_tolerated(marks: Marks) -> None:
    assert decided(rollout(), Situation(Evidence.none(), marks)) is None


def test_what_happens_to_all_devices_is_not_the_versions_fault() -> None:
    marks = Marks(10, 5, destroyed=5)
    assert decided(rollout(), Situation(Evidence.none(), marks, Marks(100, 1, destroyed=1))) in ABORTS
    assert decided(rollout(), Situation(Evidence.none(), marks, Marks(100, 40, destroyed=40))) is None


def test_a_paused_rollout_is_still_taken_back_and_nothing_else() -> None:
    paused = rollout(phase=Phase.PAUSED)
    assert decided(paused, Situation(FINE), hours=100) is None
    assert decided(paused, Situation(evidence("accuracy", 0.05))) is Event.ACCURACY_DROPPED


@pytest.mark.parametrize("phase", [Phase.COMPLETE, Phase.ROLLED_BACK])
def test_a_closed_rollout_is_left_alone(phase: Phase) -> None:
    marks = Marks(9, 9, loading=9)
    assert decided(rollout(phase=phase), Situation(evidence("accuracy", 0.05), marks)) is None


def test_a_decision_moves_the_rollout() -> None:
    decision = decide(rollout(), Situation(FINE), now_seconds=9.0)
    assert decision.event is not None
    moved = advance(rollout(), decision.event, now_seconds=9.0, reason=decision.reason)
    assert (moved.phase, moved.step) == (Phase.EXPANDING, 1)
    assert "not worse by 2.0%" in moved.reason


def test_blocks_leave_devices_for_later_steps() -> None:
    assert block_sizes(PLAN, 8) == (5, 1, 1)
    assert block_sizes(RolloutPlan((0.01, 0.05)), 8) == (8, 8)
    assert block_sizes(RolloutPlan((0.9,)), 8) == (1,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"false_alarm_rate": 0.0},
        {"miss_rate": 1.0},
        {"tolerated_marks": 0.0},
        {"tolerated_marks": 0.5},
        {"unit_samples": 0},
        {"block_size": 0},
    ],
)
def test_rules_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        RolloutRules(**wrong)  # type: ignore[arg-type]
