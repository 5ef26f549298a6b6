"""Reviews of open rollouts."""

from dataclasses import replace
from typing import Any

from structlog.testing import capture_logs

from quantization.errors import IllegalTransitionError, MalformedError
from server.reviewer import Reviewer
from server.rollout import Rollout, RolloutPlan

OPEN = Rollout(
    rollout_id="0",
    model_digest="ab" * 32,
    device_class="arm",
    version=2,
    base_version=1,
    manifest_digest="cd" * 32,
    base_manifest_digest="ef" * 32,
    plan=RolloutPlan((0.1,)),
    reason="",
    started_at_seconds=0.0,
    step_at_seconds=0.0,
)


class Rollouts:
    """Three open ones."""

    def rollouts(self, *, only_open: bool) -> tuple[Rollout, ...]:
        assert only_open
        return tuple(replace(OPEN, rollout_id=name) for name in ("broken", "elsewhere", "good"))


class Telemetry:
    """Moves one of them."""

    def review(self, _rollouts: object, rollout: Rollout, _now: float) -> Rollout:
        if rollout.rollout_id == "broken":
            raise MalformedError("counts cannot be read")
        if rollout.rollout_id == "elsewhere":
            raise IllegalTransitionError("somebody else has moved it")
        return replace(rollout, revision=rollout.revision + 1)


def test_a_rollout_that_cannot_be_reviewed_does_not_hinder_the_others() -> None:
    changes: list[int] = []
    rollouts: Any = Rollouts()
    telemetry: Any = Telemetry()
    reviewer = Reviewer(rollouts, telemetry, on_change=lambda: changes.append(1), clock=lambda: 0.0)
    with capture_logs() as logs:
        reviewer.review()
    assert changes == [1]
    assert [event["event"] for event in logs] == [
        "rollout_not_reviewed", "rollout_moved_elsewhere", "rollout_advanced",
    ]  # fmt: skip
