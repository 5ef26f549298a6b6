from dataclasses import replace
from typing import Any

import pytest

from server.rollout import Phase, Rollout, RolloutPlan
from simulation.fleet_timeline import Timeline
from simulation.fleet_verdict import failures_of
from simulation.local_fleet_result import Accuracies

_FINE = Accuracies(lab=0.99, drifted=0.2, tuned=0.96, least=0.7, after=0.96)
_PLAN = RolloutPlan((0.25, 0.6))


def _rollout(version: int, phase: Phase, step: int = 0) -> Rollout:
    return Rollout("r", "ab" * 32, "x86-vnni", version, version - 1, "cd" * 32, "ef" * 32, _PLAN, phase, step)


_GOOD, _BAD = _rollout(2, Phase.COMPLETE, 1), _rollout(3, Phase.ROLLED_BACK)


def _failures(
    accuracies: Accuracies = _FINE, good: Rollout = _GOOD, bad: Rollout = _BAD, **counts: Any
) -> str:
    timeline = Timeline(**counts)
    return "; ".join(failures_of(accuracies, (good, bad), timeline, agents=12, answers=800))


def test_what_went_as_it_should_has_no_failures() -> None:
    assert _failures() == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"accuracies": replace(_FINE, tuned=0.2)}, "has not made the fleet better"),
        ({"accuracies": replace(_FINE, least=0.5)}, "accuracy fell to 50.0 %"),
        ({"good": _rollout(2, Phase.ROLLED_BACK)}, "the tuned generation ended rolled_back"),
        ({"bad": _rollout(3, Phase.COMPLETE, 1)}, "the bad generation ended complete at step 2"),
        ({"bad": _rollout(3, Phase.ROLLED_BACK, 1)}, "the bad generation ended rolled_back at step 2"),
        ({"unanswered": 8, "errors": ["no agent"]}, "8 inputs were not answered: no agent"),
    ],
)
def test_what_did_not_is_named(change: dict[str, Any], reason: str) -> None:
    assert reason in _failures(**change)


def test_a_fall_that_chance_explains_is_none() -> None:
    assert _failures(replace(_FINE, least=0.96 - 0.25 - 0.02)) == ""
