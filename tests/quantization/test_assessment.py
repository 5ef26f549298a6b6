"""Destroyed candidates are refused with and without labels, equal ones pass."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from quantization.assessment import AssessmentCounts, count_outputs, judge, of_device, sign_test

CLASSES = 10


class Field:
    """A synthetic classification task: scores of models of a given accuracy over the same samples."""

    def __init__(self, samples: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.labels = self.rng.integers(0, CLASSES, samples)

    def scores(self, accuracy: float) -> np.ndarray:
        is_hit = self.rng.random(self.labels.size) < accuracy
        wrong = (self.labels + self.rng.integers(1, CLASSES, self.labels.size)) % CLASSES
        predicted = np.where(is_hit, self.labels, wrong)
        return np.eye(CLASSES)[predicted] * 4 + self.rng.normal(scale=0.1, size=(self.labels.size, CLASSES))

    def flipped(self, scores: np.ndarray, part: float) -> np.ndarray:
        """Return what quantization makes of scores: another answer for a part of the samples."""
        is_flipped = self.rng.random(len(scores)) < part
        return np.where(is_flipped[:, None], np.roll(scores, 1, axis=1), scores)

    def counts(
        self, current: np.ndarray, candidate: np.ndarray, reference: np.ndarray, labelled: float
    ) -> AssessmentCounts:
        labels = np.where(self.rng.random(self.labels.size) < labelled, self.labels, -1)
        return of_device(count_outputs(current, candidate, reference, labels))


def _destroyed(kind: str, field: Field, scores: np.ndarray) -> np.ndarray:
    if kind == "random":
        return field.rng.normal(size=scores.shape)
    if kind == "constant":
        return np.tile(np.eye(CLASSES)[3] * 4, (len(scores), 1))
    if kind == "uniform":
        return field.rng.normal(scale=1e-3, size=scores.shape)
    return np.where(np.arange(len(scores))[:, None] % 50 == 0, np.nan, scores)


KINDS = ("random", "constant", "uniform", "nan")


@pytest.mark.parametrize(("kind", "labelled", "seed"), list(product(KINDS, (0.0, 0.02, 0.3, 1.0), range(3))))
def test_a_destroyed_candidate_is_refused_with_and_without_labels(
    kind: str, labelled: float, seed: int
) -> None:
    field = Field(500, seed)
    current = field.scores(0.6)
    counts = field.counts(current, _destroyed(kind, field, current), field.scores(0.9), labelled)
    assert not judge(counts).is_not_worse


@pytest.mark.parametrize("kind", ["constant", "uniform", "nan"])
def test_a_candidate_destroyed_by_its_corrections_is_refused_though_its_float_model_agrees(kind: str) -> None:
    field = Field(500, 0)
    current = field.scores(0.6)
    candidate = _destroyed(kind, field, current)
    verdict = judge(field.counts(current, candidate, candidate, 0.0))
    assert not verdict.is_not_worse


def test_a_candidate_whose_moments_moved_away_from_the_labs_is_refused_without_labels() -> None:
    field = Field(500, 0)
    current = field.scores(0.6)
    candidate = field.scores(0.3)  # confidently wrong, and its float model with it
    counts = field.counts(current, candidate, candidate, 0.0)
    assert judge(counts, current_distance=0.5, candidate_distance=0.1).is_not_worse
    verdict = judge(counts, current_distance=0.5, candidate_distance=0.8)
    assert (verdict.is_not_worse, verdict.basis) == (False, "agreement")
    assert "0.8 lab deviations" in verdict.reason
    assert not judge(counts, current_distance=0.5, candidate_distance=float("nan")).is_not_worse


@pytest.mark.parametrize("labelled", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("samples", [40, 500, 5000])
def test_an_equal_candidate_passes_nearly_always(labelled: float, samples: int) -> None:
    refused = 0
    for seed in range(100):
        field = Field(samples, seed)
        reference = field.scores(0.8)
        current, candidate = field.flipped(reference, 0.02), field.flipped(reference, 0.02)
        refused += not judge(field.counts(current, candidate, reference, labelled)).is_not_worse
    assert refused <= 5


@pytest.mark.parametrize("labelled", [0.0, 0.1, 0.5])
def test_a_better_candidate_passes(labelled: float) -> None:
    for seed in range(20):
        field = Field(1000, seed)
        reference = field.scores(0.9)
        current, candidate = field.scores(0.5), field.flipped(reference, 0.03)
        assert judge(field.counts(current, candidate, reference, labelled)).is_not_worse


@pytest.mark.parametrize(("labels", "loss"), [(200, 0.15), (1000, 0.06), (5000, 0.03)])
def test_a_loss_that_the_labels_can_show_is_refused(labels: int, loss: float) -> None:
    refused = 0
    for seed in range(50):
        field = Field(labels, seed)
        current = field.scores(0.9)
        candidate = field.flipped(current, loss / 0.9 * 1.1)
        refused += not judge(field.counts(current, candidate, candidate, 1.0)).is_not_worse
    assert refused >= 45


def test_enough_labels_decide_alone() -> None:
    field = Field(400, 0)
    reference = field.scores(0.1)  # corrections destroyed the float model, but not the candidate
    counts = field.counts(field.scores(0.5), field.scores(0.9), reference, 0.5)
    verdict = judge(counts, current_distance=0.1, candidate_distance=9.0)
    assert (verdict.is_not_worse, verdict.basis) == (True, "labels")


def test_few_labels_can_refuse_but_not_approve() -> None:
    field = Field(300, 1)
    current, good = field.scores(1.0), field.scores(1.0)
    bad = np.roll(good, 1, axis=1)
    few = 0.05
    refused = judge(field.counts(current, bad, bad, few))
    assert (refused.is_not_worse, refused.basis) == (False, "labels")
    approved = judge(field.counts(current, good, good, few))
    assert (approved.is_not_worse, approved.basis) == (True, "agreement")


def test_nothing_assessed_is_refused() -> None:
    verdict = judge(AssessmentCounts.empty(devices=5))
    assert (verdict.is_not_worse, verdict.basis) == (False, "health")
    assert "no device had samples" in verdict.reason


@pytest.mark.parametrize(("failures", "is_refused"), [(0, False), (2, False), (3, True), (100, True)])
def test_a_candidate_that_fails_on_devices_is_refused(failures: int, is_refused: bool) -> None:
    field = Field(500, 0)
    scores = field.scores(0.9)
    counts = replace(field.counts(scores, scores, scores, 1.0), devices=100, failures=failures)
    verdict = judge(counts)
    assert verdict.is_not_worse is not is_refused
    if is_refused:
        assert verdict.reason == f"the candidate failed on {failures} of 100 devices"


def test_a_sensor_that_breaks_both_models_does_not_refuse() -> None:
    field = Field(500, 0)
    scores = _destroyed("nan", field, field.scores(0.9))
    assert judge(field.counts(scores, scores, scores, 0.0)).is_not_worse


def _exact(worse: int, better: int) -> float:
    """The same probability from Pascal's triangle."""
    row = [1]
    for _ in range(worse + better):
        row = [a + b for a, b in zip([0, *row], [*row, 0], strict=True)]
    return float(Fraction(sum(row[worse:]), 2 ** (worse + better)))


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (0, 5), (3, 3), (12, 4), (60, 40)])
def test_the_sign_test_is_exact(worse: int, better: int) -> None:
    assert sign_test(worse, better) == pytest.approx(_exact(worse, better), rel=1e-12)


@pytest.mark.parametrize("worse", [960, 1000, 1030, 1060])
def test_the_sign_test_of_many_pairs_is_close_to_exact(worse: int) -> None:
    assert sign_test(worse, 2000 - worse) == pytest.approx(_exact(worse, 2000 - worse), abs=1e-3)
