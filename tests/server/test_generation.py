"""The table of steps."""

from pathlib import Path

import pytest

from server.generation import (
    FINAL_STEPS,
    NEXT_STEP,
    Event,
    Generation,
    IllegalTransitionError,
    Step,
    next_step,
)

HAPPY_PATH = [
    (Event.MOMENTS_FOLDED, Step.MOMENTS),
    (Event.RANGES_FOLDED, Step.RANGES),
    (Event.CANDIDATE_COMPILED, Step.PROPOSED),
    (Event.ASSESSMENT_FOLDED, Step.ASSESSED),
    (Event.JUDGED_NOT_WORSE, Step.PUBLISHED),
]


def test_a_generation_that_is_not_worse_ends_published() -> None:
    step = Step.STARTED
    for event, expected in HAPPY_PATH:
        step = next_step(step, event)
        assert step is expected
    assert step in FINAL_STEPS


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("event", Event)
def test_every_pair_outside_the_table_is_illegal(step: Step, event: Event) -> None:
    if (step, event) in NEXT_STEP:
        assert next_step(step, event) is NEXT_STEP[step, event]
    else:
        with pytest.raises(IllegalTransitionError, match=f"'{event}' cannot happen in step '{step}'"):
            next_step(step, event)


def test_only_an_assessed_generation_or_the_labs_own_is_published() -> None:
    before = {step for (step, _), after in NEXT_STEP.items() if after is Step.PUBLISHED}
    assert before == {Step.ASSESSED, Step.STARTED}
    assert NEXT_STEP[Step.STARTED, Event.LAB_CALIBRATED] is Step.PUBLISHED


def test_every_open_step_can_be_given_up() -> None:
    for step in set(Step) - FINAL_STEPS:
        assert next_step(step, Event.GAVE_UP) is Step.FAILED


def test_a_generation_is_open_until_a_final_step() -> None:
    assert Generation("0" * 64, "arm", 1, 0).is_open
    assert not Generation("0" * 64, "arm", 1, 0, step=Step.REJECTED).is_open


def test_the_format_page_names_every_step_and_event() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats" / "registry.md").read_text()
    assert [word for word in (*Step, *Event) if word not in page] == []
