import pytest
from artifacts import example

from client.runtime import Run
from client.slots import Target
from client.telemetry import MAX_INSTALLS, Telemetry, latency_bucket
from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.artifact import Manifest

OLD, NEW = (example("mlp").artifact(number, width=4.0 + number).manifest for number in range(2))
MEMORY = pb.MemoryUse(peak_rss_bytes=7, store_bytes=3)


def served(*manifests: Manifest, clock: list[float] | None = None) -> Telemetry:
    now = clock or [0.0]
    telemetry = Telemetry(lambda: now[0])
    for version, manifest in enumerate(manifests, 1):
        telemetry.serve(manifest, Target(version, manifest.digest()))
    return telemetry


def test_a_report_says_what_ran_and_how_it_went() -> None:
    clock = [5.0]
    telemetry = served(OLD, clock=clock)
    telemetry.record(OLD, Run(3, 100e-6, 100e-6, True))
    telemetry.record(OLD, Run(2, 1.0, 1.0, False))
    counted = telemetry.of(OLD)
    telemetry.label(counted, is_hit=True)
    telemetry.label(counted, is_hit=False)
    telemetry.judge(counted, 3, 2)
    telemetry.clip(counted, 100, 7)
    clock[0] = 12.5
    (report,) = telemetry.take(OLD, MEMORY)
    assert report == pb.TelemetryReport(
        model_digest=bytes.fromhex(OLD.model_digest),
        device_class="x86-vnni",
        version=1,
        generation=0,
        manifest_digest=bytes.fromhex(OLD.digest()),
        covered_seconds=7.5,
        counts=pb.TelemetryCounts(
            samples=3,
            failures=2,
            labelled=2,
            hits=1,
            judged=3,
            agreements=2,
            judge=pb.JUDGE_CORRECTED_FLOAT_MODEL,
            observed_values=100,
            clipped_values=7,
        ),
        latency=pb.LatencyHistogram(counts=[0] * 13 + [3], sum_microseconds=300),
        memory=MEMORY,
    )
    assert telemetry.take(OLD, MEMORY) == []


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (1e-6, 0), (1.5e-6, 1), (2e-6, 2), (1.0, 39), (1e9, 63)]
)
def test_latencies_fall_into_half_octaves(seconds: float, bucket: int) -> None:
    assert latency_bucket(seconds) == bucket


def test_each_target_has_a_report_of_its_own_and_the_one_that_serves_has_the_attempts() -> None:
    telemetry = served(OLD, NEW)
    telemetry.record(OLD, Run(1, 1e-3, 1e-3, True))
    telemetry.record(NEW, Run(2, 1e-3, 1e-3, True))
    telemetry.install(pb.InstallAttempt(version=2, outcome=pb.INSTALL_OUTCOME_ACTIVATED))
    reports = telemetry.take(NEW, MEMORY)
    assert [(report.version, report.counts.samples, len(report.installs)) for report in reports] == [
        (1, 1, 0), (2, 2, 1)
    ]  # fmt: skip


def test_the_same_artifact_under_a_newer_version_is_counted_apart() -> None:
    telemetry = served(OLD)
    telemetry.record(OLD, Run(1, 1e-3, 1e-3, True))
    telemetry.serve(OLD, Target(9, OLD.digest()))
    telemetry.record(OLD, Run(2, 1e-3, 1e-3, True))
    reports = telemetry.take(OLD, MEMORY)
    assert [(report.version, report.counts.samples) for report in reports] == [(1, 1), (9, 2)]


def test_a_report_never_counts_more_labels_or_judged_samples_than_samples() -> None:
    telemetry = served(OLD)
    counted = telemetry.of(OLD)
    for number in range(10):
        telemetry.label(counted, is_hit=number % 2 == 0)
    telemetry.judge(counted, 10, 3)
    seen: list[tuple[int, int, int, int]] = []
    for rows in (4, 4, 4):
        telemetry.record(OLD, Run(rows, 1e-3, 1e-3, True))
        (report,) = telemetry.take(OLD, MEMORY)
        counts = report.counts
        assert counts.hits <= counts.labelled <= counts.samples
        assert counts.agreements <= counts.judged <= counts.samples
        seen.append((counts.labelled, counts.hits, counts.judged, counts.agreements))
    assert [sum(column) for column in zip(*seen, strict=True)] == [10, 5, 10, 3]


def test_attempts_wait_while_nothing_serves_and_are_bounded() -> None:
    telemetry = served()
    for version in range(1, MAX_INSTALLS + 5):
        telemetry.install(pb.InstallAttempt(version=version))
    assert telemetry.take(None, MEMORY) == []
    telemetry.serve(OLD, Target(30, OLD.digest()))
    (report,) = telemetry.take(OLD, MEMORY)
    assert [attempt.version for attempt in report.installs] == list(range(5, MAX_INSTALLS + 5))


def test_what_no_target_named_is_counted_under_version_zero() -> None:
    telemetry = served()
    telemetry.record(OLD, Run(1, 1e-3, 1e-3, True))
    (report,) = telemetry.take(OLD, MEMORY)
    assert (report.version, report.manifest_digest.hex()) == (0, OLD.digest())


def test_targets_that_are_long_gone_take_no_memory() -> None:
    telemetry = served(OLD)
    for version in range(2, 50):
        telemetry.serve(NEW, Target(version, NEW.digest()))
        telemetry.take(OLD, MEMORY)
    assert len(telemetry._targets) <= 5
    telemetry.record(OLD, Run(1, 1e-3, 1e-3, True))
    assert [report.version for report in telemetry.take(OLD, MEMORY)] == [1]


def test_totals_go_on_over_reports() -> None:
    telemetry = served(OLD)
    for _ in range(3):
        telemetry.record(OLD, Run(2, 1e-3, 1e-3, True))
        telemetry.take(OLD, MEMORY)
    telemetry.record(OLD, Run(1, 1e-3, 1e-3, False))
    totals = telemetry.totals()
    assert (totals.samples, totals.failures, sum(totals.latency)) == (6, 1, 6)
    assert totals.sum_seconds == pytest.approx(6e-3)
