"""The table of phases, and which devices a share means."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.errors import ConfigurationError, IllegalTransitionError
from server.rollout import (
    ABORTS,
    CLOSED_PHASES,
    NEXT_PHASE,
    Event,
    Phase,
    Rollout,
    RolloutPlan,
    advance,
    has_new_version,
    passing_event,
    plan_for,
    position,
    possible_events,
    resuming_event,
    target_of,
)

DEVICES = [f"device-{k}" for k in range(4000)]


def rollout(**changes: object) -> Rollout:
    return replace(Rollout("r1", "a" * 64, "arm", 5, 4, "new", "base"), **changes)  # type: ignore[arg-type]


def move(value: Rollout, event: Event, now: float = 7.0) -> Rollout:
    version = 6 if event in ABORTS else None
    return advance(value, event, now_seconds=now, reason="because", rolled_back_version=version)


def test_a_version_that_is_not_worse_reaches_all_by_steps() -> None:
    shares = []
    value = rollout()
    while value.is_open:
        shares.append(value.share)
        value = move(value, passing_event(value))
    assert (*shares, value.share) == (*value.plan.shares, 1.0)
    assert (value.phase, value.revision, value.finished_at_seconds) == (Phase.COMPLETE, 3, 7.0)


def test_a_plan_of_one_share_is_complete_after_the_canaries() -> None:
    assert move(rollout(plan=RolloutPlan((0.3,))), Event.LAST_STEP_PASSED).phase is Phase.COMPLETE


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("step", range(3))
def test_what_is_not_possible_is_illegal(phase: Phase, event: Event, step: int) -> None:
    value = rollout(phase=phase, step=step)
    if event in possible_events(value):
        assert move(value, event).phase is NEXT_PHASE[phase, event]
    else:
        with pytest.raises(IllegalTransitionError, match=f"'{event}' cannot happen in phase '{phase}'"):
            move(value, event)


def test_every_pair_of_the_table_is_possible_at_some_step() -> None:
    possible = {
        (phase, event)
        for phase in Phase
        for step in range(3)
        for event in possible_events(rollout(phase=phase, step=step))
    } | {(Phase.CANARY, e) for e in possible_events(rollout(plan=RolloutPlan((0.5,))))}
    assert possible == set(NEXT_PHASE)


def test_a_step_is_not_skipped() -> None:
    with pytest.raises(IllegalTransitionError, match="at step 1 of 3"):
        move(rollout(), Event.LAST_STEP_PASSED)


@pytest.mark.parametrize("step", range(3))
def test_a_paused_rollout_resumes_where_it_was(step: int) -> None:
    value = rollout(phase=Phase.EXPANDING if step else Phase.CANARY, step=step)
    paused = move(value, Event.PAUSED)
    assert (paused.phase, paused.share) == (Phase.PAUSED, value.share)
    resumed = move(paused, resuming_event(paused))
    assert (resumed.phase, resumed.step) == (value.phase, step)
    wrong = ({Event.CANARY_RESUMED, Event.EXPANSION_RESUMED} - {resuming_event(paused)}).pop()
    with pytest.raises(IllegalTransitionError):
        move(paused, wrong)


def test_every_abort_rolls_back_wherever_devices_have_the_version() -> None:
    for phase in set(Phase) - CLOSED_PHASES:
        for event in ABORTS:
            assert NEXT_PHASE[phase, event] is Phase.ROLLED_BACK
    assert {e for p, e in NEXT_PHASE if p is Phase.COMPLETE} == {Event.RECALLED}
    assert not [pair for pair in NEXT_PHASE if pair[0] is Phase.ROLLED_BACK]


@pytest.mark.parametrize("version", [None, 4, 5])
def test_rolling_back_needs_a_newer_version(version: int | None) -> None:
    with pytest.raises(IllegalTransitionError, match="above 5"):
        advance(rollout(), Event.RECALLED, now_seconds=0.0, rolled_back_version=version)


def test_only_rolling_back_takes_a_version() -> None:
    with pytest.raises(IllegalTransitionError, match="nothing else"):
        advance(rollout(), Event.PAUSED, now_seconds=0.0, rolled_back_version=6)


def test_a_rolled_back_rollout_gives_all_devices_the_base_as_a_newer_version() -> None:
    back = move(rollout(), Event.ACCURACY_DROPPED)
    assert {target_of(back, device) for device in DEVICES[:100]} == {(6, "base")}


def test_devices_outside_the_share_keep_the_base() -> None:
    value = rollout()
    targets = {device: target_of(value, device) for device in DEVICES}
    assert set(targets.values()) == {(5, "new"), (4, "base")}
    assert all((target == (5, "new")) == has_new_version(value, device) for device, target in targets.items())


@given(
    st.text(max_size=20),
    st.text(max_size=20),
    st.lists(st.floats(0.001, 0.999), min_size=2, max_size=4, unique=True),
)
@settings(max_examples=100, deadline=None)
def test_a_growing_share_drops_nobody(name: str, device: str, shares: list[float]) -> None:
    plan = RolloutPlan(tuple(sorted(shares)))
    steps = [rollout(rollout_id=name, plan=plan, step=step) for step in range(len(shares))]
    had = [has_new_version(value, device) for value in (*steps, replace(steps[-1], phase=Phase.COMPLETE))]
    assert had == sorted(had)
    assert had[-1]


@pytest.mark.parametrize("step", range(3))
def test_a_share_is_that_part_of_the_devices(step: int) -> None:
    value = rollout(step=step)
    part = sum(has_new_version(value, device) for device in DEVICES) / len(DEVICES)
    assert part == pytest.approx(value.share, abs=0.025)


def test_each_rollout_has_other_canaries() -> None:
    first, second = ({d for d in DEVICES if has_new_version(rollout(rollout_id=r), d)} for r in ("r1", "r2"))
    assert len(first & second) < len(first) / 4


def test_positions_are_the_same_in_every_release() -> None:
    assert position("r1", "device-0") == 1284164733323659438
    assert position("r1", "1") != position("r11", "")


@pytest.mark.parametrize("shares", [(), (0.0,), (0.5, 0.5), (0.5, 0.2), (0.5, 1.0), (float("nan"),)])
def test_shares_that_do_not_grow_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="must grow"):
        RolloutPlan(shares)


@pytest.mark.parametrize("devices", [2, 3, 7, 12, 50, 1000])
def test_a_small_fleet_has_canaries_and_others(devices: int) -> None:
    names = DEVICES[:devices]
    plan = plan_for("r1", names)
    chosen = sum(has_new_version(rollout(plan=plan), name) for name in names)
    assert min(4, devices // 2) <= chosen <= max(devices // 2, 70)


@pytest.mark.parametrize("devices", range(2, 30))
def test_every_step_of_a_small_fleet_reaches_somebody_and_leaves_somebody(devices: int) -> None:
    names = DEVICES[:devices]
    plan = plan_for("r1", names)
    reached = [
        sum(has_new_version(rollout(plan=plan, step=step), name) for name in names)
        for step in range(len(plan.shares))
    ]
    assert reached == sorted(set(reached))
    assert 0 < reached[0] <= reached[-1] < devices


def test_a_large_fleet_keeps_its_plan() -> None:
    assert plan_for("r1", DEVICES) == RolloutPlan()
    assert plan_for("r1", []) == RolloutPlan()


def test_a_version_follows_a_lower_one() -> None:
    with pytest.raises(ConfigurationError, match="cannot follow"):
        rollout(version=4)
    with pytest.raises(ConfigurationError, match="step 3"):
        rollout(step=3)
