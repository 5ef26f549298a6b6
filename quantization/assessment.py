"""Whether a candidate may go live, from the counts of both models side by side.

The rules:

1. A candidate is refused where it is shown to be worse, and where nothing was shown at all.
2. Where enough samples have labels, labels decide. Otherwise agreement with the corrected float model does, and the
   few labels there are can only refuse.
3. A destroyed candidate agrees with its own float model when its corrections destroyed that too. So agreement
   never stands alone: collapsed or uninformative outputs, and moments farther from the lab's than before, refuse.
4. The verdict names what it rests on.
"""

import math
from dataclasses import dataclass

import numpy as np

from quantization.arrays import IntArray
from quantization.side_by_side import (
    ENTROPY_STEPS_PER_NAT,
    AssessmentCounts,
    count_outputs,
    of_device,
)

__all__ = [
    "DEFAULT_JUDGE",
    "AssessmentCounts",
    "JudgeSettings",
    "Verdict",
    "count_outputs",
    "judge",
    "of_device",
    "sign_test",
]


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How much evidence refuses a candidate.

    Attributes:
        enough_labels: From so many labelled samples on, labels alone decide.
        significance: One-sided level of the sign test at which a candidate counts as worse.
        tolerated_loss: Loss of hit rate beyond which weaker evidence (`suspicion`) refuses too.
        suspicion: That weaker level.
        least_agreement: Least part of samples where candidate and corrected float model must agree.
        tolerated_failures: Part of devices on which the candidate may fail to run.
        least_diversity: Least entropy of the predicted classes over the fleet, as part of the current
            model's.
        tolerated_distance: How much larger than the current one, as a factor, the moments' distance may be.
    """

    enough_labels: int = 50
    significance: float = 0.02
    tolerated_loss: float = 0.05
    suspicion: float = 0.2
    least_agreement: float = 0.75
    tolerated_failures: float = 0.02
    least_diversity: float = 0.5
    tolerated_distance: float = 1.1


DEFAULT_JUDGE = JudgeSettings()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate may go live, and what said so.

    Attributes:
        is_not_worse: Whether it may.
        basis: What decided: "health" (it fails, or nothing was assessed), "labels", or "agreement" (with the
            corrected float model, entropy and moments).
        reason: One sentence with the figures.
        statistic: The figure that decided: a p-value for tests, a rate or a ratio otherwise.
    """

    is_not_worse: bool
    basis: str
    reason: str
    statistic: float


def judge(
    counts: AssessmentCounts,
    *,
    current_distance: float | None = None,
    candidate_distance: float | None = None,
    settings: JudgeSettings = DEFAULT_JUDGE,
) -> Verdict:
    """Return whether the candidate is not worse than the current model, as far as the counts can tell.

    Args:
        counts: Of all devices that assessed.
        current_distance: How far the current model's moments lie from the lab's (`moments.distance` or
            alike); None where unknown.
        candidate_distance: Likewise, with the candidate's corrections.
        settings: How much evidence refuses.
    """
    refusal = _refuse_on_health(counts, settings)
    if refusal is not None:
        return refusal
    if counts.labelled >= settings.enough_labels:
        return _judge_by_labels(counts, settings)
    refusal = _refuse_on_outputs(counts, settings) or _refuse_on_moments(
        current_distance, candidate_distance, settings
    )
    if refusal is not None:
        return refusal
    if counts.labelled and not (by_few_labels := _judge_by_labels(counts, settings)).is_not_worse:
        return by_few_labels
    return _judge_by_agreement(counts, settings)


def sign_test(worse: int, better: int) -> float:
    """Return how likely at least `worse` losses are among the pairs that differ, were both models equal.

    The exact one-sided sign test (McNemar's for paired hits); from 2,000 pairs on its normal approximation
    with continuity correction, which is within 1e-3 of it.
    """
    pairs = worse + better
    if pairs == 0:
        return 1.0
    if pairs >= 2000:
        z = (worse - 0.5 - pairs / 2) / (math.sqrt(pairs) / 2)
        return 0.5 * math.erfc(z / math.sqrt(2))
    return sum(math.comb(pairs, k) for k in range(worse, pairs + 1)) / (1 << pairs)


def _refuse_on_health(counts: AssessmentCounts, settings: JudgeSettings) -> Verdict | None:
    if counts.failures > settings.tolerated_failures * counts.devices:
        rate = counts.failures / max(counts.devices, 1)
        reason = f"the candidate failed on {counts.failures} of {counts.devices} devices"
        return Verdict(False, "health", reason, rate)
    if counts.samples == 0:
        return Verdict(False, "health", "no device had samples to assess the candidate with", 0.0)
    if counts.candidate_nonfinite > counts.current_nonfinite:
        reason = f"{counts.candidate_nonfinite} of {counts.samples} outputs of the candidate are not finite"
        return Verdict(False, "health", reason, counts.candidate_nonfinite / counts.samples)
    return None


def _judge_by_labels(counts: AssessmentCounts, settings: JudgeSettings) -> Verdict:
    probability = sign_test(counts.only_current_hits, counts.only_candidate_hits)
    loss = (counts.current_hits - counts.candidate_hits) / counts.labelled
    is_worse = _is_worse(probability, loss, settings)
    reason = (
        f"right on {counts.candidate_hits} of {counts.labelled} labelled samples, before on {counts.current_hits}"
        f" (worse? sign test p = {probability:.2g})"
    )
    return Verdict(not is_worse, "labels", reason, probability)


def _judge_by_agreement(counts: AssessmentCounts, settings: JudgeSettings) -> Verdict:
    probability = sign_test(counts.only_current_agreements, counts.only_candidate_agreements)
    loss = (counts.current_agreements - counts.candidate_agreements) / counts.samples
    is_worse = _is_worse(probability, loss, settings)
    reason = (
        f"agrees with the corrected float model on {counts.candidate_agreements} of {counts.samples} samples"
        f", before on {counts.current_agreements} (worse? sign test p = {probability:.2g})"
    )
    return Verdict(not is_worse, "agreement", reason, probability)


def _is_worse(probability: float, loss: float, settings: JudgeSettings) -> bool:
    if probability < settings.significance:
        return True
    return loss > settings.tolerated_loss and probability < settings.suspicion


def _refuse_on_outputs(counts: AssessmentCounts, settings: JudgeSettings) -> Verdict | None:
    agreement = counts.candidate_agreements / counts.samples
    if agreement < settings.least_agreement:
        reason = f"agrees with its own float model on {agreement:.1%} of samples only"
        return Verdict(False, "agreement", reason, agreement)
    before, after = _class_entropy(counts.current_classes), _class_entropy(counts.candidate_classes)
    if after < settings.least_diversity * before:
        reason = f"predicts fewer classes: entropy {after:.2f} nats over the fleet, {before:.2f} before"
        return Verdict(False, "agreement", reason, after / before)
    return _refuse_on_entropy(counts)


def _refuse_on_entropy(counts: AssessmentCounts) -> Verdict | None:
    most = math.log(max(counts.candidate_classes.size, 2))
    before, after = (
        entropy / counts.samples / ENTROPY_STEPS_PER_NAT / most
        for entropy in (counts.current_entropy, counts.candidate_entropy)
    )
    if after > 0.95 and before < 0.9:
        reason = f"its outputs say nothing: {after:.0%} of the greatest entropy, {before:.0%} before"
        return Verdict(False, "agreement", reason, after)
    return None


def _refuse_on_moments(
    current: float | None, candidate: float | None, settings: JudgeSettings
) -> Verdict | None:
    if current is None or candidate is None:
        return None
    if not candidate <= settings.tolerated_distance * current + 0.02:  # NaN refuses
        reason = f"its moments lie {candidate:.3g} lab deviations from the lab's, {current:.3g} before"
        return Verdict(False, "agreement", reason, candidate / max(current, 1e-9))
    return None


def _class_entropy(classes: IntArray) -> float:
    """Return the entropy of the predicted classes, in nats; 0 where there are none."""
    total = int(classes.sum())
    if total == 0:
        return 0.0
    parts = classes[classes > 0] / total
    return float(-(parts * np.log(parts)).sum())
