import math

import numpy as np
import pytest
from hypothesis import given
from statistics_strategies import device_counts

from quantization.errors import ConfigurationError, IncompatibleStatsError, MalformedError
from quantization.side_by_side import (
    ENTROPY_STEPS_PER_NAT,
    LATENCY_BUCKETS,
    AssessmentCounts,
    count_outputs,
    of_device,
)


@given(device_counts(), device_counts(), device_counts())
def test_merge_is_a_commutative_monoid(a: AssessmentCounts, b: AssessmentCounts, c: AssessmentCounts) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(AssessmentCounts.empty()) == a


@given(device_counts())
def test_the_wire_form_carries_every_field(counts: AssessmentCounts) -> None:
    assert AssessmentCounts.from_array(counts.to_array()) == counts


def _scores(*classes: int) -> np.ndarray:
    return np.eye(4)[list(classes)] * 9


def test_hits_and_agreements_are_counted_in_pairs() -> None:
    counts = count_outputs(
        current=_scores(0, 1, 2, 3),
        candidate=_scores(0, 2, 1, 0),
        reference=_scores(0, 2, 2, 0),
        labels=np.array([0, 1, 1, -1]),
    )
    assert (counts.samples, counts.labelled) == (4, 3)
    assert (counts.current_hits, counts.candidate_hits) == (2, 2)
    assert (counts.only_current_hits, counts.only_candidate_hits) == (1, 1)
    assert (counts.current_agreements, counts.candidate_agreements) == (2, 3)
    assert (counts.only_current_agreements, counts.only_candidate_agreements) == (1, 2)
    assert counts.current_classes.tolist() == [1, 1, 1, 1]
    assert counts.candidate_classes.tolist() == [2, 1, 1, 0]


def test_outputs_that_are_not_finite_hit_nothing_and_agree_with_nothing() -> None:
    broken = _scores(0, 0)
    broken[0, 3] = np.nan
    broken[1, 2] = -np.inf
    counts = count_outputs(_scores(0, 0), broken, broken, np.array([0, 0]))
    assert (counts.candidate_nonfinite, counts.candidate_hits, counts.candidate_agreements) == (2, 0, 0)
    assert counts.candidate_classes.tolist() == [0, 0, 0, 0]


def test_entropy_is_that_of_the_softmax() -> None:
    uniform, certain = np.zeros((2, 4)), _scores(0, 1) * 9
    counts = count_outputs(uniform, certain, uniform)
    assert counts.current_entropy == pytest.approx(2 * math.log(4) * ENTROPY_STEPS_PER_NAT, abs=2)
    assert counts.candidate_entropy == 0


def test_outputs_with_positions_count_every_position_and_no_label() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
    counts = count_outputs(maps, maps, maps, np.array([0, 1]))
    assert (counts.samples, counts.labelled, counts.candidate_agreements) == (30, 0, 30)


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(1e-6, 0), (1e-9, 0), (1.5e-6, 1), (2e-6, 2), (1.0, 39), (1e9, LATENCY_BUCKETS - 1)],
)
def test_latency_per_sample_falls_into_half_octaves(seconds: float, bucket: int) -> None:
    one = _scores(0)
    counts = count_outputs(one, one, one, candidate_seconds=seconds)
    assert np.flatnonzero(counts.candidate_latency).tolist() == [bucket]
    assert not counts.current_latency.any()


def test_a_latency_that_is_none_is_refused() -> None:
    one = _scores(0)
    with pytest.raises(ConfigurationError, match="latency of -1"):
        count_outputs(one, one, one, candidate_seconds=-1)


@pytest.mark.parametrize("shape", [(2, 3), (3, 4), (2,)])
def test_outputs_of_different_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MalformedError, match=r"must be \(N, classes"):
        count_outputs(np.zeros((2, 4)), np.zeros(shape), np.zeros((2, 4)))


def test_models_of_different_classes_do_not_merge() -> None:
    with pytest.raises(IncompatibleStatsError, match="3 and 4 classes"):
        count_outputs(*np.zeros((3, 1, 4))).merge(count_outputs(*np.zeros((3, 1, 3))))


GOOD = of_device(count_outputs(_scores(0, 1), _scores(0, 2), _scores(0, 2), np.array([0, 2])))


def _position(name: str) -> int:
    return 2 + list(AssessmentCounts.__dataclass_fields__).index(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("samples", 1),
        ("samples", -1),
        ("samples", 1 << 40),
        ("labelled", 3),
        ("failures", 2),
        ("candidate_hits", 1),
        ("only_current_hits", 1),
        ("candidate_agreements", 3),
        ("only_candidate_agreements", 0),
        ("candidate_entropy", -1),
        ("candidate_nonfinite", 1),
    ],
)
def test_counts_that_contradict_each_other_are_refused(name: str, value: int) -> None:
    array = GOOD.to_array()
    array[_position(name)] = value
    with pytest.raises(MalformedError):
        AssessmentCounts.from_array(array)


@pytest.mark.parametrize(
    "array",
    [
        GOOD.to_array()[:-1],
        GOOD.to_array().astype(np.int32),
        GOOD.to_array().reshape(1, -1),
        np.array([2, *GOOD.to_array()[1:]]),
        np.array([1, 1 << 60, *GOOD.to_array()[2:]]),
        np.array([1, -1, *GOOD.to_array()[2:]]),
        np.zeros(0, np.int64),
        np.array([*GOOD.to_array()[:-1], -1]),
    ],
)
def test_vectors_of_another_form_are_refused(array: np.ndarray) -> None:
    with pytest.raises(MalformedError):
        AssessmentCounts.from_array(array)
