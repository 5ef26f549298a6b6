"""When a rollout goes on and when it is taken back, decided from telemetry.

The rules:

1. What is gross is caught at once: a device is marked that cannot load the version, fails or answers far more wrongly
   than before, or is several times slower or larger. Marks on more than a tolerated part of canaries take the version
   back; two marked canaries among the first are enough.
2. What is small is found by `server.sequential_testing`: per measure, canaries against devices that keep the base
   version. All measures and the marks together raise a false alarm with `false_alarm_rate` at most.
3. A step passes as soon as the version is shown not to be worse, or after `step_seconds` without an alarm. The
   last step passes only when that is shown, with `miss_rate` at most for a version worse by the margin; a rollout that
   cannot show it waits for the operator (`STALLED`). Fleets too small to show it are let off by `needs_proof`.
4. Labels decide where enough devices have them; else agreement with the corrected float model does.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from server.rollout import Event, Phase, Rollout, RolloutPlan, passing_event
from server.rollout_settings import DEFAULT_RULES, RolloutRules
from server.rollout_units import Marks, Unit
from server.sequential_testing import Comparison, Wealth, log_tail_wealth, reaches


class Measure(StrEnum):
    """What canaries are compared by."""

    ACCURACY = "accuracy"
    AGREEMENT = "agreement"
    FAILURES = "failures"
    LATENCY = "latency"
    MEMORY = "memory"


_ALARMS = {
    Measure.ACCURACY: Event.ACCURACY_DROPPED,
    Measure.AGREEMENT: Event.AGREEMENT_DROPPED,
    Measure.FAILURES: Event.FAILURES_ROSE,
    Measure.LATENCY: Event.LATENCY_ROSE,
    Measure.MEMORY: Event.MEMORY_ROSE,
}
_ALARM_PARTS = len(Measure) + 1  # each measure, and the marks


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the units of a rollout have shown so far, by measure."""

    accuracy: Comparison
    agreement: Comparison
    failures: Comparison
    latency: Comparison
    memory: Comparison
    canary_units: int = 0
    step_units: int = 0
    step: int = 0

    @classmethod
    def none(cls, rules: RolloutRules = DEFAULT_RULES) -> "Evidence":
        """Return what is known before the first unit."""
        return cls(
            accuracy=Comparison.with_margin(rules.rate_margin),
            agreement=Comparison.with_margin(rules.rate_margin),
            failures=Comparison(Wealth(rules.failure_margin)),
            latency=Comparison(Wealth(rules.latency_margin)),
            memory=Comparison(Wealth(rules.memory_margin)),
        )

    def observe(self, unit: Unit, plan: RolloutPlan, rules: RolloutRules = DEFAULT_RULES) -> "Evidence":
        """Return the evidence with one unit more; units come in the order in which they were complete."""
        size = block_sizes(plan, rules.block_size)[unit.step]
        losses = {measure: getattr(unit, measure) for measure in Measure}
        compared = {
            str(measure): getattr(self, measure).observe(loss, is_canary=unit.is_canary, block_size=size)
            for measure, loss in losses.items()
            if loss is not None
        }
        before = self.step_units if unit.step == self.step else 0
        return replace(
            self,
            **compared,
            canary_units=self.canary_units + unit.is_canary,
            step_units=before + unit.is_canary,
            step=unit.step,
        )


def block_sizes(plan: RolloutPlan, most: int) -> tuple[int, ...]:
    """Return how many others one canary is compared with at each step of the plan.

    Others are the devices that no share reaches, 1 - the last share of all. A step may use half of those that the
    steps before it left, so that some remain for the last one.
    """
    left, before, sizes = 1 - plan.shares[-1], 0.0, []
    for share in plan.shares:
        size = max(1, min(most, int(left / 2 / (share - before))))
        sizes.append(size)
        left, before = max(0.0, left - size * (share - before)), share
    return tuple(sizes)


@dataclass(frozen=True, slots=True)
class Decision:
    """What telemetry says: an event for `rollout.advance`, or None to wait, and why in words."""

    event: Event | None
    reason: str


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a decision rests on.

    Attributes:
        evidence: Of the units.
        canaries: Marks of devices with the new version.
        others: Marks of devices with the base version: what the world does to all.
    """

    evidence: Evidence
    canaries: Marks = field(default_factory=Marks)
    others: Marks = field(default_factory=Marks)


def decide(
    rollout: Rollout, situation: Situation, *, now_seconds: float, rules: RolloutRules = DEFAULT_RULES
) -> Decision:
    """Return what the rollout should do now.

    Args:
        rollout: Where it stands.
        situation: What telemetry shows.
        now_seconds: Seconds since 1970 (UTC).
        rules: How much evidence moves it.
    """
    if not rollout.is_open:
        return Decision(None, "the rollout is closed")
    alarm = _gross_alarm(situation, rules) or _small_alarm(situation.evidence, rules)
    if alarm is not None:
        return alarm
    if rollout.phase is Phase.PAUSED:
        return Decision(None, "paused")
    return _progress(rollout, situation.evidence, now_seconds - rollout.step_at_seconds, rules)


def _gross_alarm(situation: Situation, rules: RolloutRules) -> Decision | None:
    canaries, others = situation.canaries, situation.others
    tolerated = rules.tolerated_marks
    if others.marked:
        tolerated = min(0.19, max(tolerated, (others.marked + 1) / (others.devices + 2)))
    wealth = log_tail_wealth(canaries.marked, canaries.devices, tolerated)
    if not reaches(wealth, rules.false_alarm_rate / _ALARM_PARTS):
        return None
    kinds = (
        (canaries.loading, Event.LOADING_FAILED, "cannot load the version"),
        (canaries.destroyed, Event.MODEL_DESTROYED, "answer far worse than before"),
        (canaries.slow, Event.LATENCY_ROSE, "are far slower than before"),
        (canaries.large, Event.MEMORY_ROSE, "need far more memory than before"),
    )
    count, event, words = max(kinds, key=lambda kind: kind[0])
    return Decision(event, f"{count} of {canaries.devices} canaries {words}")


def _small_alarm(evidence: Evidence, rules: RolloutRules) -> Decision | None:
    for measure, event in _ALARMS.items():
        worse = getattr(evidence, measure).worse
        if worse.has_reached(rules.false_alarm_rate / _ALARM_PARTS):
            reason = f"{measure} of {worse.blocks} canaries is worse (log e-value {worse.log_peak:.1f})"
            return Decision(event, reason)
    return None


def _progress(rollout: Rollout, evidence: Evidence, age_seconds: float, rules: RolloutRules) -> Decision:
    units = evidence.step_units if evidence.step == rollout.step else 0
    has_labels = evidence.accuracy.worse.blocks >= rules.enough_labelled
    measure = Measure.ACCURACY if has_labels else Measure.AGREEMENT
    comparison = evidence.accuracy if has_labels else evidence.agreement
    is_fine = comparison.fine is not None and comparison.fine.has_reached(rules.miss_rate)
    said = f"{measure} of {comparison.worse.blocks} canaries"
    is_seen = units > 0 and evidence.canary_units >= rules.least_units
    if is_seen and is_fine:
        return Decision(passing_event(rollout), f"not worse by {rules.rate_margin:.1%}: {said}")
    may_pass = not (rollout.is_last_step and rules.needs_proof)
    if is_seen and may_pass and age_seconds >= rules.step_seconds:
        return Decision(passing_event(rollout), f"no alarm in {age_seconds:.0f} s: {said}")
    if age_seconds >= rules.stall_seconds:
        return Decision(Event.STALLED, f"not shown to be as good in {age_seconds:.0f} s: {said}")
    return Decision(None, f"{units} units in this step; {said}")


class Verdict(StrEnum):
    """What a rule says of a version."""

    UNDECIDED = "undecided"
    NOT_WORSE = "not_worse"
    WORSE = "worse"


def measure_verdict(comparison: Comparison, rules: RolloutRules = DEFAULT_RULES) -> Verdict:
    """Return what one measure says by now."""
    if comparison.worse.has_reached(rules.false_alarm_rate / _ALARM_PARTS):
        return Verdict.WORSE
    is_fine = comparison.fine is not None and comparison.fine.has_reached(rules.miss_rate)
    return Verdict.NOT_WORSE if is_fine else Verdict.UNDECIDED


def marks_verdict(situation: Situation, rules: RolloutRules = DEFAULT_RULES) -> Verdict:
    """Return what the marks say by now; they can only say that the version is worse."""
    return Verdict.UNDECIDED if _gross_alarm(situation, rules) is None else Verdict.WORSE
