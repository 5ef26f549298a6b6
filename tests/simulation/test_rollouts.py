"""Rates of false alarms and misses over many rollouts, with seeds."""

import pytest

from server.rollout import Event, RolloutPlan
from server.rollout_settings import DEFAULT_RULES, RolloutRules
from simulation.rollouts import Change, FieldSettings, RolloutOutcome, simulate_rollout

PLAN = RolloutPlan()
FIELD = FieldSettings(devices=800)
WORSE_BY_TWO_POINTS = Change(drop=0.02)


def outcomes(change: Change, seeds: range, field: FieldSettings = FIELD) -> list[RolloutOutcome]:
    return [simulate_rollout(seed, change, field, PLAN) for seed in seeds]


@pytest.mark.slow
@pytest.mark.parametrize("labelled_part", [1.0, 0.1])
def test_an_equal_version_is_taken_back_no_oftener_than_stated(labelled_part: float) -> None:
    ended = outcomes(Change(), range(200), FieldSettings(labelled_part=labelled_part))
    assert sum(o.is_taken_back for o in ended) <= DEFAULT_RULES.false_alarm_rate * len(ended)
    assert sum(o.is_complete for o in ended) >= 0.95 * len(ended)


@pytest.mark.slow
@pytest.mark.parametrize("labelled_part", [1.0, 0.1])
def test_a_version_two_points_worse_is_hardly_ever_complete(labelled_part: float) -> None:
    ended = outcomes(WORSE_BY_TWO_POINTS, range(200), FieldSettings(labelled_part=labelled_part))
    assert sum(o.is_complete for o in ended) <= 0.05 * len(ended)
    assert sum(o.is_taken_back for o in ended) >= 0.9 * len(ended)


def test_an_equal_version_reaches_all_devices() -> None:
    assert [o.event for o in outcomes(Change(), range(8))] == [Event.LAST_STEP_PASSED] * 8


def test_a_version_two_points_worse_is_taken_back() -> None:
    assert sum(o.is_taken_back for o in outcomes(WORSE_BY_TWO_POINTS, range(8))) >= 7


@pytest.mark.parametrize(
    ("change", "event"),
    [
        (Change(does_load=False), Event.LOADING_FAILED),
        (Change(drop=0.7), Event.MODEL_DESTROYED),
        (Change(octaves=3.3), Event.LATENCY_ROSE),
    ],
)
def test_what_is_gross_is_caught_on_two_canaries(change: Change, event: Event) -> None:
    for outcome in outcomes(change, range(5)):
        assert outcome.event is event
        assert outcome.canary_units <= 3
        assert outcome.exposed <= 0.08 * FIELD.devices


def test_a_version_25_points_worse_is_caught_among_the_canaries() -> None:
    for outcome in outcomes(Change(drop=0.25), range(5)):
        assert outcome.is_taken_back
        assert outcome.canary_units <= 12
        assert outcome.exposed <= 0.08 * FIELD.devices


@pytest.mark.parametrize("change", [Change(does_load=False), Change(drop=0.7), Change(octaves=3.3)])
def test_a_dozen_devices_are_enough_for_what_is_gross(change: Change) -> None:
    for outcome in outcomes(change, range(10), FieldSettings(devices=12)):
        assert outcome.is_taken_back
        assert outcome.exposed <= 6


def test_a_fleet_too_small_to_tell_waits_for_its_operator() -> None:
    dozen = FieldSettings(devices=12)
    assert [o.event for o in outcomes(Change(), range(3), dozen)] == [Event.STALLED] * 3
    trusting = RolloutRules(needs_proof=False)
    ended = [simulate_rollout(seed, Change(), dozen, PLAN, trusting) for seed in range(20)]
    assert sum(o.is_complete for o in ended) >= 19


def test_less_evidence_is_needed_where_more_false_alarms_are_allowed() -> None:
    eager = RolloutRules(false_alarm_rate=0.3, miss_rate=0.3)
    units = [
        [simulate_rollout(seed, WORSE_BY_TWO_POINTS, FIELD, PLAN, rules).canary_units for seed in range(4)]
        for rules in (eager, DEFAULT_RULES)
    ]
    assert sum(units[0]) < sum(units[1])
