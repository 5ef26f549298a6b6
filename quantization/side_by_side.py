"""Counts of a candidate beside the current model on the same inputs.

The rules:

1. Counts are integers and `merge` adds them: the same in any order and grouping, with
   `AssessmentCounts.empty` as identity. Entropies are sums in steps of 2^-20 nats.
2. Both models see the same samples, so hits are also counted in pairs: what only one of them got right.
3. Without labels the reference is the float model with the candidate's corrections. Agreement with the
   *uncorrected* model would reward doing nothing under drift.
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from quantization.arrays import AnyArray, FloatArray, IntArray
from quantization.errors import ConfigurationError, IncompatibleStatsError, MalformedError

LATENCY_BUCKETS = 64
"""Bucket k counts latencies in [2^(k/2), 2^((k+1)/2)) microseconds; the ends are open: 1 us to 72 minutes."""

ENTROPY_STEPS_PER_NAT = 1 << 20
MAX_CLASSES = 1 << 17
MAX_COUNT = 1 << 38
_FORMAT_VERSION = 1
_HEADER = 2  # version, classes


@dataclass(frozen=True, slots=True, eq=False)
class AssessmentCounts:
    """What devices counted while running two models side by side.

    Attributes:
        devices: Devices that took part, failed ones included.
        failures: Devices on which the candidate could not be built or run.
        samples: Inputs that both models saw; for outputs with positions, every position is a sample.
        labelled: Samples whose class is known.
        current_hits: Labelled samples that the current model got right; likewise `candidate_hits`.
        only_current_hits: Labelled samples that only the current model got right; likewise
            `only_candidate_hits`.
        current_agreements: Samples where the current model says what the corrected float model says; likewise
            `candidate_agreements`.
        only_current_agreements: Samples where only the current model does; likewise
            `only_candidate_agreements`.
        current_entropy: Sum of the entropies of the current model's class probabilities, in steps of 2^-20
            nats; likewise `candidate_entropy`.
        current_nonfinite: Samples with an output of the current model that is NaN or infinite; likewise
            `candidate_nonfinite`.
        current_latency: Batches by latency per sample, int64 (64,); likewise `candidate_latency`.
        current_classes: Samples by the class that the current model predicts, int64 (K,); likewise
            `candidate_classes`. K = 0 for the identity.
    """

    devices: int
    failures: int
    samples: int
    labelled: int
    current_hits: int
    candidate_hits: int
    only_current_hits: int
    only_candidate_hits: int
    current_agreements: int
    candidate_agreements: int
    only_current_agreements: int
    only_candidate_agreements: int
    current_entropy: int
    candidate_entropy: int
    current_nonfinite: int
    candidate_nonfinite: int
    current_latency: IntArray
    candidate_latency: IntArray
    current_classes: IntArray
    candidate_classes: IntArray

    MAX_ELEMENTS: ClassVar[int] = _HEADER + 16 + 2 * LATENCY_BUCKETS + 2 * MAX_CLASSES
    """Length of the longest vector that `to_array` writes."""

    def __post_init__(self) -> None:
        """Refuse counts that no device can have counted."""
        _check_counts(self)

    @classmethod
    def empty(cls, devices: int = 0, failures: int = 0) -> "AssessmentCounts":
        """Return the identity of `merge`, or what devices without samples, or that failed, send."""
        latency, classes = np.zeros(LATENCY_BUCKETS, np.int64), np.zeros(0, np.int64)
        return cls._of([devices, failures, *[0] * 14], latency, latency, classes, classes)

    @classmethod
    def _of(cls, scalars: list[int], *arrays: IntArray) -> "AssessmentCounts":
        values = dict(zip(_FIELDS, (*scalars, *arrays), strict=True))
        return cls(**values)  # type: ignore[arg-type]  # in the order of the fields

    def merge(self, other: "AssessmentCounts") -> "AssessmentCounts":
        """Return the counts of both; commutative and associative.

        Raises:
            IncompatibleStatsError: If the models have different numbers of classes.
        """
        sizes = {counts.current_classes.size for counts in (self, other)} - {0}
        if len(sizes) > 1:
            raise IncompatibleStatsError(
                f"models of {' and '.join(map(str, sorted(sizes)))} classes cannot merge"
            )
        scalars = [getattr(self, name) + getattr(other, name) for name in _SCALARS]
        return AssessmentCounts._of(
            scalars,
            self.current_latency + other.current_latency,
            self.candidate_latency + other.candidate_latency,
            _added(self.current_classes, other.current_classes),
            _added(self.candidate_classes, other.candidate_classes),
        )

    def to_array(self) -> IntArray:
        """Return every field as one int64 vector of 2 + 16 + 128 + 2 K elements, the form that travels."""
        scalars = [_FORMAT_VERSION, self.current_classes.size, *(getattr(self, name) for name in _SCALARS)]
        parts = (self.current_latency, self.candidate_latency, self.current_classes, self.candidate_classes)
        return np.concatenate([np.array(scalars, np.int64), *parts])

    @classmethod
    def from_array(cls, array: IntArray) -> "AssessmentCounts":
        """Return the counts that `to_array` wrote.

        Raises:
            MalformedError: If the vector is not one that `to_array` can have written.
        """
        fixed = _HEADER + len(_SCALARS) + 2 * LATENCY_BUCKETS
        if array.ndim != 1 or array.dtype != np.int64 or array.size < fixed:
            raise MalformedError(f"assessment counts of {array.size} elements, expected at least {fixed}")
        version, classes = int(array[0]), int(array[1])
        if version != _FORMAT_VERSION:
            raise MalformedError(
                f"assessment counts of format {version}, this version reads {_FORMAT_VERSION}"
            )
        if not 0 <= classes <= MAX_CLASSES or array.size != fixed + 2 * classes:
            raise MalformedError(f"{array.size} elements cannot be assessment counts of {classes} classes")
        scalars = array[_HEADER : _HEADER + len(_SCALARS)].tolist()
        rest = array[_HEADER + len(_SCALARS) :]
        cuts = np.cumsum([LATENCY_BUCKETS, LATENCY_BUCKETS, classes])
        return cls._of(scalars, *(part.copy() for part in np.split(rest, cuts)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AssessmentCounts) and np.array_equal(self.to_array(), other.to_array())

    def __hash__(self) -> int:
        return hash(self.to_array().tobytes())


_FIELDS = tuple(item.name for item in fields(AssessmentCounts))
_SCALARS = _FIELDS[:16]


def count_outputs(
    current: FloatArray,
    candidate: FloatArray,
    reference: FloatArray,
    labels: IntArray | None = None,
    *,
    current_seconds: float = 0.0,
    candidate_seconds: float = 0.0,
) -> AssessmentCounts:
    """Return the counts of one batch, without a device; merge batches, then `of_device`.

    Args:
        current: Class scores of the current model, (N, K) or (N, K, positions...).
        candidate: Of the candidate, same shape.
        reference: Of the float model with the candidate's corrections, same shape.
        labels: Class of each sample, int64 (N,), -1 where unknown; ignored for outputs with positions.
        current_seconds: How long the current model took for the batch; 0 is not counted.
        candidate_seconds: Likewise.

    Raises:
        MalformedError: If the shapes differ.
    """
    if not current.shape == candidate.shape == reference.shape or current.ndim < 2:
        raise MalformedError(
            f"outputs of shapes {current.shape}, {candidate.shape}, {reference.shape};"
            " all must be (N, classes, ...)"
        )
    classes = current.shape[1]
    has_positions = current.ndim > 2
    old, new, truth = (_Outputs.of(scores) for scores in (current, candidate, reference))
    known = None if labels is None or has_positions else np.asarray(labels, np.int64)
    if known is not None and known.shape != old.classes.shape:
        raise MalformedError(f"{known.size} labels for {old.classes.size} samples")
    is_labelled = np.zeros(old.classes.size, bool) if known is None else (known >= 0) & (known < classes)
    target = np.full(old.classes.size, -2) if known is None else known
    old_hits, new_hits = is_labelled & (old.classes == target), is_labelled & (new.classes == target)
    is_judged = truth.classes >= 0
    old_agrees, new_agrees = (
        is_judged & (old.classes == truth.classes),
        is_judged & (new.classes == truth.classes),
    )
    return AssessmentCounts(
        devices=0,
        failures=0,
        samples=old.classes.size,
        labelled=int(is_labelled.sum()),
        current_hits=int(old_hits.sum()),
        candidate_hits=int(new_hits.sum()),
        only_current_hits=int((old_hits & ~new_hits).sum()),
        only_candidate_hits=int((new_hits & ~old_hits).sum()),
        current_agreements=int(old_agrees.sum()),
        candidate_agreements=int(new_agrees.sum()),
        only_current_agreements=int((old_agrees & ~new_agrees).sum()),
        only_candidate_agreements=int((new_agrees & ~old_agrees).sum()),
        current_entropy=old.entropy_steps,
        candidate_entropy=new.entropy_steps,
        current_nonfinite=int((old.classes < 0).sum()),
        candidate_nonfinite=int((new.classes < 0).sum()),
        current_latency=_latency(current_seconds, current.shape[0]),
        candidate_latency=_latency(candidate_seconds, current.shape[0]),
        current_classes=np.bincount(old.classes[old.classes >= 0], minlength=classes).astype(np.int64),
        candidate_classes=np.bincount(new.classes[new.classes >= 0], minlength=classes).astype(np.int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Outputs:
    """One model's outputs: the class of each sample (-1 where not finite), and the sum of entropies."""

    classes: IntArray
    entropy_steps: int

    @classmethod
    def of(cls, scores: FloatArray) -> "_Outputs":
        rows: AnyArray = np.moveaxis(np.asarray(scores, np.float64), 1, -1).reshape(-1, scores.shape[1])
        is_finite = np.asarray(np.isfinite(rows).all(axis=1))
        rows = np.where(is_finite[:, None], rows, 0.0)
        logits = rows - rows.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        total = powers.sum(axis=1)
        entropy = np.log(total) - (powers * logits).sum(axis=1) / total
        steps = np.rint(np.where(is_finite, entropy, 0.0) * ENTROPY_STEPS_PER_NAT).astype(np.int64)
        return cls(np.where(is_finite, logits.argmax(axis=1), -1), int(np.maximum(steps, 0).sum()))


def of_device(counts: AssessmentCounts) -> AssessmentCounts:
    """Return the same counts as the whole contribution of one device."""
    return counts.merge(AssessmentCounts.empty(devices=1))


def _latency(seconds: float, samples: int) -> IntArray:
    """Return the histogram of one batch's latency per sample."""
    buckets = np.zeros(LATENCY_BUCKETS, np.int64)
    if seconds < 0 or not math.isfinite(seconds):
        raise ConfigurationError(f"a latency of {seconds} s")
    if seconds > 0 and samples > 0:
        microseconds = max(seconds / samples * 1e6, 1.0)
        buckets[min(int(2 * math.log2(microseconds)), LATENCY_BUCKETS - 1)] = 1
    return buckets


def _added(a: IntArray, b: IntArray) -> IntArray:
    """Return a + b, where one of them may be the empty identity."""
    if a.size == 0 or b.size == 0:
        return b if a.size == 0 else a
    return a + b


def _check_counts(counts: AssessmentCounts) -> None:
    arrays = (
        counts.current_latency,
        counts.candidate_latency,
        counts.current_classes,
        counts.candidate_classes,
    )
    scalars = [getattr(counts, name) for name in _SCALARS]
    if not all(0 <= value < 1 << 62 for value in scalars) or counts.samples > MAX_COUNT:
        raise MalformedError("assessment counts must not be negative, nor beyond 2^38 samples")
    if counts.current_classes.shape != counts.candidate_classes.shape:
        raise MalformedError("both models must have the same number of classes")
    if any(array.size and not 0 <= int(array.min()) <= int(array.max()) <= MAX_COUNT for array in arrays):
        raise MalformedError("assessment counts must not be negative, nor beyond 2^38")
    if counts.failures > counts.devices or counts.labelled > counts.samples:
        raise MalformedError("assessment counts a part that is larger than the whole")
    for word, whole in (("hits", counts.labelled), ("agreements", counts.samples)):
        _check_pairs(counts, word, whole)
    for side in ("current", "candidate"):
        predicted = int(getattr(counts, f"{side}_classes").sum())
        if predicted + getattr(counts, f"{side}_nonfinite") != counts.samples:
            raise MalformedError(f"classes of the {side} model do not add up to {counts.samples} samples")


def _check_pairs(counts: AssessmentCounts, word: str, whole: int) -> None:
    """Refuse paired counts that contradict each other."""
    old, new = getattr(counts, f"current_{word}"), getattr(counts, f"candidate_{word}")
    only_old, only_new = getattr(counts, f"only_current_{word}"), getattr(counts, f"only_candidate_{word}")
    if not (only_old <= old and old - only_old == new - only_new and old + only_new <= whole):
        raise MalformedError(f"paired {word} contradict each other")
