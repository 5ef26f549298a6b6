import contextlib
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from artifacts import example
from dying_disk import DyingDisk, deaths
from hypothesis import given
from hypothesis import strategies as st

from client.garbage import collect
from client.slots import MAX_ATTEMPTS, NEXT_PHASE, Event, Phase, Slots, Target
from client.state import StateFolder
from quantization.artifact import Artifact
from quantization.errors import IllegalTransitionError, MalformedError

A, B, C = (Target(version, letter * 64) for version, letter in ((1, "a"), (2, "b"), (3, "c")))


def after(*events: Event | tuple[Event, Target]) -> Slots:
    slots = Slots(Phase.CONFIRMED, active=A)
    for event in events:
        slots = slots.advance(*event) if isinstance(event, tuple) else slots.advance(event)
    return slots


STAGED = (Event.TARGET_STAGED, B)
ON_TRIAL = (STAGED, Event.TEST_STARTED, Event.TEST_PASSED)


def test_a_candidate_that_proves_good_serves_and_what_served_is_kept() -> None:
    assert after(STAGED).serving == A
    assert after(STAGED, Event.TEST_STARTED).serving == A
    assert after(*ON_TRIAL).serving == B
    confirmed = after(*ON_TRIAL, Event.TRIAL_PASSED)
    assert confirmed == Slots(Phase.CONFIRMED, active=B, fallback=A)
    assert confirmed.targets == (B, A)


@pytest.mark.parametrize(
    "events",
    [
        (STAGED, Event.TEST_STARTED, Event.TEST_FAILED),
        (*ON_TRIAL, Event.TRIAL_FAILED),
        (*ON_TRIAL, Event.GIVEN_UP),
    ],
)
def test_a_candidate_that_fails_is_left_and_not_wanted_again(events: tuple[Event, ...]) -> None:
    slots = after(*events)
    assert slots == Slots(Phase.REVERTED, active=A, refused_version=2)
    assert not slots.wants(B)
    assert slots.wants(C)


def test_the_first_artifact_has_no_trial() -> None:
    slots = Slots().advance(Event.TARGET_STAGED, A).advance(Event.TEST_STARTED)
    assert slots.serving is None
    assert slots.advance(Event.TEST_PASSED) == Slots(Phase.CONFIRMED, active=A)
    assert slots.advance(Event.TEST_FAILED) == Slots(Phase.REVERTED, refused_version=1)


@pytest.mark.parametrize("events", [(STAGED,), ON_TRIAL])
def test_a_candidate_over_which_a_device_dies_is_tried_a_few_times(events: tuple[Event, ...]) -> None:
    slots = after(*events)
    for _ in range(MAX_ATTEMPTS + (events == ON_TRIAL)):
        assert slots.candidate == B
        if slots.phase is Phase.STAGED:
            slots = slots.advance(Event.TEST_STARTED)
        slots = slots.after_restart()
    assert slots == Slots(Phase.REVERTED, active=A, refused_version=2)


def test_what_served_before_can_be_had_back_once() -> None:
    slots = after(*ON_TRIAL, Event.TRIAL_PASSED, Event.ROLLED_BACK)
    assert slots == Slots(Phase.REVERTED, active=A, refused_version=2)
    with pytest.raises(IllegalTransitionError, match="no earlier artifact"):
        slots.advance(Event.ROLLED_BACK)


def test_earlier_content_under_a_newer_version_needs_no_trial() -> None:
    again = Target(3, A.manifest_digest)
    slots = after(*ON_TRIAL, Event.TRIAL_FAILED, (Event.TARGET_UNCHANGED, again))
    assert slots.active == again
    assert not slots.wants(again)


def test_older_targets_are_not_wanted() -> None:
    slots = after(STAGED)
    assert [slots.wants(target) for target in (A, B, C)] == [False, False, True]


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_events_that_the_table_does_not_know_are_refused(phase: Phase, event: Event) -> None:
    is_resting = phase in (Phase.IDLE, Phase.CONFIRMED, Phase.REVERTED)
    slots = Slots(phase, active=A, candidate=None if is_resting else B, fallback=C)
    if (phase, event) in NEXT_PHASE:
        assert slots.advance(event, Target(9, "9" * 64)).phase is NEXT_PHASE[phase, event]
    else:
        with pytest.raises(IllegalTransitionError, match=f"{event} cannot happen while {phase}"):
            slots.advance(event, C)


@given(st.lists(st.tuples(st.sampled_from(Event), st.integers(0, 9), st.sampled_from("abc")), max_size=30))
def test_whatever_happens_an_artifact_keeps_serving_and_the_bytes_say_all(
    events: list[tuple[Event, int, str]],
) -> None:
    slots = Slots(active=A)
    for event, version, letter in events:
        try:
            slots = slots.advance(event, Target(version, letter * 64))
        except IllegalTransitionError:
            continue
        assert slots.serving is not None
        assert Slots.from_bytes(slots.to_bytes()) == slots
        assert len(slots.targets) <= 3


def signed(text: str) -> bytes:
    return sha256(text.encode()).hexdigest().encode() + b"\n" + text.encode()


def test_bytes_that_are_no_slots_are_refused() -> None:
    data = after(STAGED).to_bytes()
    fields = json.loads(data.partition(b"\n")[2])
    wrong = [
        {**fields, "format": 2}, {**fields, "more": 1}, {**fields, "phase": "done"}, {**fields, "candidate": None},
        {**fields, "active": {"version": -1, "manifest_digest": "a" * 64}}, {**fields, "phase": "idle"},
        {**fields, "active": {"version": 1, "manifest_digest": "../a"}}, {**fields, "active": 3},
    ]  # fmt: skip
    bad = [
        data[:-1],
        data[:-1] + b" ",
        b"",
        data + bytes(5000),
        signed("[]"),
        signed("1" * 3000),
        signed("{"),
    ]
    for damage in bad + [signed(json.dumps(case)) for case in wrong]:
        with pytest.raises(MalformedError):
            Slots.from_bytes(damage)


# Each act is one that changes what is installed; every file-system operation of it is one at which the device dies.


def fill(state: StateFolder, artifact: Artifact) -> None:
    for digest, stored in artifact.blobs.items():
        if not state.has_blob(digest):
            state.store_blob(digest, stored)
    state.store_manifest(artifact.manifest)


OLD, NEW = (example("mlp").artifact(number, width=4.0 + number, is_observed=False) for number in range(2))


def install(state: StateFolder) -> None:
    fill(state, NEW)
    state.advance(Event.TARGET_STAGED, Target(9, NEW.manifest.digest()))


TO_TEST = (Event.TEST_STARTED,)
TO_TRIAL = (Event.TEST_STARTED, Event.TEST_PASSED)
# What was staged went through these events, then this is done; what may serve behind it, and in which phase.
ACTS: dict[
    str, tuple[tuple[Event, ...] | None, Callable[[StateFolder], object], tuple[Artifact, ...], Phase]
] = {
    "install": (None, install, (OLD,), Phase.STAGED),
    "test": ((), lambda state: state.advance(Event.TEST_STARTED), (OLD,), Phase.TESTING),
    "activate": (TO_TEST, lambda state: state.advance(Event.TEST_PASSED), (OLD, NEW), Phase.TRIAL),
    "confirm": (TO_TRIAL, lambda state: state.advance(Event.TRIAL_PASSED), (NEW,), Phase.CONFIRMED),
    "revert": (TO_TRIAL, lambda state: state.advance(Event.TRIAL_FAILED), (OLD, NEW), Phase.REVERTED),
    "collect": (None, collect, (OLD,), Phase.CONFIRMED),
    "restart": (
        TO_TRIAL,
        lambda state: state.write_slots(state.slots().after_restart()),
        (NEW,),
        Phase.TRIAL,
    ),
}


@pytest.mark.parametrize("act", ACTS)
def test_a_device_that_dies_at_any_write_keeps_a_working_model_and_no_wrong_one(
    act: str, tmp_path: Path
) -> None:
    events, do, may_serve, ends_as = ACTS[act]

    def prepare() -> None:
        with StateFolder(tmp_path) as state:
            fill(state, OLD)
            state.write_slots(Slots(Phase.CONFIRMED, active=Target(1, OLD.manifest.digest())))
            if act == "install":
                collect(state)
            else:
                fill(state, NEW)
            if events is not None:
                state.advance(Event.TARGET_STAGED, Target(9, NEW.manifest.digest()))
            for event in events or ():
                state.advance(event)

    def act_on(disk: DyingDisk) -> None:
        with StateFolder(tmp_path, disk=disk) as state:
            do(state)

    count = 0
    for kind, lives in deaths(prepare, act_on):
        count += 1
        with StateFolder(tmp_path) as state:
            manifest = state.read_manifest()
            assert manifest in [artifact.manifest for artifact in may_serve], (kind, lives)
            assert manifest is not None
            assert state.missing_blobs(manifest) == []
            for digest in state.digests():
                state.read_blob(digest)
            with contextlib.suppress(IllegalTransitionError):  # it had been done
                do(state)
            assert state.slots().phase is ends_as, (kind, lives)
    assert count >= 2
