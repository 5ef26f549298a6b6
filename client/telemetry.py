"""What a device counts of the artifacts that it runs, and the reports that it makes of that.

The rules:

1. Counts belong to a target: what ran before it, and what runs in its place where it fails, is counted apart.
2. A report never counts more labels, nor more judged samples, than samples. Those that come late wait for the samples
   of a later report of the same target; what still waits when the target is forgotten is lost.
3. Counting costs one lock and never waits for the disk or the network.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from client.runtime import Run
from client.slots import Target
from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.artifact import Manifest

LATENCY_BUCKETS = 64
"""Bucket k counts samples that took 2^(k/2) to 2^((k+1)/2) microseconds."""

MAX_INSTALLS = 16
"""Most attempts in one report."""

_KEPT_TARGETS = 4


@dataclass(slots=True)
class _Verdicts:
    """Answers that somebody judged.

    Attributes:
        judged: How many.
        right: Those that were right.
    """

    judged: int = 0
    right: int = 0

    def add(self, judged: int, right: int) -> None:
        self.judged += judged
        self.right += right

    def take(self, most: int) -> tuple[int, int]:
        """Return at most so many, in the proportion in which they are right, and keep the rest."""
        if self.judged <= most:
            judged, right = self.judged, self.right
        else:
            judged = most
            right = min(
                max(round(self.right * most / self.judged), most - self.judged + self.right), self.right
            )
        self.judged, self.right = self.judged - judged, self.right - right
        return judged, right


@dataclass(slots=True)
class _Runs:
    """How inferences went.

    Attributes:
        samples: Inputs that were answered.
        failures: Inputs that should have been answered and were not.
        latency: Samples per bucket.
        sum_seconds: Of all latencies.
    """

    samples: int = 0
    failures: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)
    sum_seconds: float = 0.0

    def add(self, run: Run) -> None:
        """Count one batch."""
        if not run.is_good:
            self.failures += run.rows
            return
        self.samples += run.rows
        self.sum_seconds += run.rows * run.seconds
        self.latency[latency_bucket(run.seconds)] += run.rows


@dataclass(slots=True, eq=False)
class Counted:
    """What was counted of one target since its last report; whoever changes it holds the lock of its `Telemetry`.

    Attributes:
        manifest: Of the artifact.
        target: Under which it runs.
        runs: How its inferences went.
        labels: Samples whose class became known.
        agreements: Samples that the corrected float model answered too.
        observed_values: Values seen at sites.
        clipped_values: Those of them beyond their site's range.
    """

    manifest: Manifest
    target: Target
    runs: _Runs = field(default_factory=_Runs)
    labels: _Verdicts = field(default_factory=_Verdicts)
    agreements: _Verdicts = field(default_factory=_Verdicts)
    observed_values: int = 0
    clipped_values: int = 0

    def is_empty(self) -> bool:
        """Return whether there is nothing to report."""
        return not (self.runs.samples or self.runs.failures or self.observed_values)

    def take(self) -> pb.TelemetryReport:
        """Return what was counted as a report, and start anew."""
        runs, self.runs = self.runs, _Runs()
        labelled, hits = self.labels.take(runs.samples)
        judged, agreements = self.agreements.take(runs.samples)
        report = pb.TelemetryReport(
            model_digest=bytes.fromhex(self.manifest.model_digest),
            device_class=self.manifest.device_class,
            version=self.target.version,
            generation=self.manifest.generation,
            manifest_digest=bytes.fromhex(self.target.manifest_digest),
            counts=pb.TelemetryCounts(
                samples=runs.samples,
                failures=runs.failures,
                labelled=labelled,
                hits=hits,
                judged=judged,
                agreements=agreements,
                judge=pb.JUDGE_CORRECTED_FLOAT_MODEL if judged else pb.JUDGE_UNSPECIFIED,
                observed_values=self.observed_values,
                clipped_values=self.clipped_values,
            ),
        )
        if runs.samples:
            last = max(bucket for bucket, count in enumerate(runs.latency) if count)
            report.latency.counts.extend(runs.latency[: last + 1])
            report.latency.sum_microseconds = round(runs.sum_seconds * 1e6)
        self.observed_values = self.clipped_values = 0
        return report


@dataclass(frozen=True, slots=True)
class Totals:
    """What was counted since the agent started; kept for whoever looks at the device itself.

    Attributes:
        samples: Inputs that were answered.
        failures: Inputs that should have been answered and were not.
        latency: Samples per bucket.
        sum_seconds: Of all latencies.
    """

    samples: int = 0
    failures: int = 0
    latency: tuple[int, ...] = (0,) * LATENCY_BUCKETS
    sum_seconds: float = 0.0


class Telemetry:
    """Counts of one device; safe to call from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Count from nothing; `clock` counts seconds and never goes back."""
        self._clock = clock
        self._lock = threading.Lock()
        self._targets: list[Counted] = []  # newest first
        self._installs: list[pb.InstallAttempt] = []
        self._total = _Runs()
        self._taken_at = clock()

    def serve(self, manifest: Manifest, target: Target) -> None:
        """Count what this artifact does under this target from now on; the hook of an updater."""
        with self._lock:
            if any(one.manifest is manifest and one.target == target for one in self._targets):
                return
            self._targets.insert(0, Counted(manifest, target))

    def record(self, manifest: Manifest, run: Run) -> None:
        """Count one batch; the hook of a runtime."""
        with self._lock:
            self._of(manifest).runs.add(run)
            self._total.add(run)

    def of(self, manifest: Manifest) -> Counted:
        """Return where the runs of an artifact are counted now."""
        with self._lock:
            return self._of(manifest)

    def label(self, counted: Counted, *, is_hit: bool) -> None:
        """Count one answer whose true class became known."""
        with self._lock:
            counted.labels.add(1, int(is_hit))

    def judge(self, counted: Counted, judged: int, agreements: int) -> None:
        """Count answers that the corrected float model gave too."""
        with self._lock:
            counted.agreements.add(judged, agreements)

    def clip(self, counted: Counted, observed: int, clipped: int) -> None:
        """Count values that were seen at sites, and those beyond their site's range."""
        with self._lock:
            counted.observed_values += observed
            counted.clipped_values += clipped

    def install(self, attempt: pb.InstallAttempt) -> None:
        """Report how an attempt to install a target ended; of too many, the newest."""
        with self._lock:
            self._installs.append(attempt)
            del self._installs[:-MAX_INSTALLS]

    def totals(self) -> Totals:
        """Return what was counted since the start."""
        with self._lock:
            total = self._total
            return Totals(total.samples, total.failures, tuple(total.latency), total.sum_seconds)

    def take(self, serving: Manifest | None, memory: pb.MemoryUse) -> list[pb.TelemetryReport]:
        """Return what is to be reported now, without sequences, and start anew.

        Args:
            serving: What serves now; attempts to install go with its report, and wait while there is nothing.
            memory: What the process takes.
        """
        with self._lock:
            now = self._clock()
            covered, self._taken_at = now - self._taken_at, now
            installs = self._installs if serving is not None else []
            last = self._of(serving) if serving is not None else None
            counted = [one for one in reversed(self._targets) if one is not last]
            reports = [one.take() for one in counted if not one.is_empty()]
            if last is not None and (installs or not last.is_empty()):
                report = last.take()
                report.installs.extend(installs)
                self._installs = []
                reports.append(report)
            for report in reports:
                report.covered_seconds = covered
                report.memory.CopyFrom(memory)
            self._forget(last)
        return reports

    def _of(self, manifest: Manifest) -> Counted:
        for one in self._targets:
            if one.manifest is manifest:
                return one
        found = Counted(manifest, Target(0, manifest.digest()))
        self._targets.insert(0, found)
        return found

    def _forget(self, last: Counted | None) -> None:
        """Keep what serves and the newest few."""
        kept = self._targets[:_KEPT_TARGETS]
        if last is not None and all(one is not last for one in kept):
            kept.append(last)
        self._targets = kept


def latency_bucket(seconds: float) -> int:
    """Return the bucket of a latency; the first also takes those below, the last those above."""
    return min(int(2 * math.log2(max(seconds * 1e6, 1.0))), LATENCY_BUCKETS - 1)
