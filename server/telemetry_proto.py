"""Reports of devices, from the wire to values; whatever a device says is checked here.

The rules:

1. Only samples judged by the corrected float model count as judged: agreement with any other model would reward doing
   nothing while the world drifts.
2. A version has failed on a device that could not load it, got wrong answers on its golden inputs, or went back from it
   in its trial. That it could not be fetched, or was not trusted, says nothing of it.
"""

from collections.abc import Sequence

from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.blob import check_digest
from quantization.blob_ref import check_name
from quantization.errors import MalformedError
from quantization.side_by_side import LATENCY_BUCKETS, MAX_COUNT
from server.telemetry_counts import TelemetryCounts
from server.telemetry_reports import DeviceReport

MAX_REPORTS = 256
"""Reports of one call."""
MAX_INSTALLS = 16
"""Attempts to install of one report."""

_MAX_SECONDS = 1e9
_MAX_VERSION = (1 << 31) - 1
_MAX_FETCHED_BYTES = 1 << 50
_FAILED = frozenset(
    {pb.INSTALL_OUTCOME_REVERTED, pb.INSTALL_OUTCOME_LOAD_FAILED, pb.INSTALL_OUTCOME_SELF_TEST_FAILED}
)


def reports_from_proto(request: pb.ReportRequest, device: str) -> tuple[DeviceReport, ...]:
    """Return the reports of one call, in order of their sequence.

    Args:
        request: As it came.
        device: Name of the device, as its identity proves it.

    Raises:
        MalformedError: If a report is none, there are too many of them, or they are out of order.
    """
    if len(request.reports) > MAX_REPORTS:
        raise MalformedError(f"{len(request.reports)} reports in one call; at most {MAX_REPORTS} are taken")
    reports = tuple(_report_from_proto(report, device) for report in request.reports)
    sequences = [report.sequence for report in reports]
    if sequences != sorted(set(sequences)):
        raise MalformedError("reports of one call must be in ascending order of their sequence")
    return reports


def _report_from_proto(report: pb.TelemetryReport, device: str) -> DeviceReport:
    _require(0 <= report.covered_seconds <= _MAX_SECONDS, f"a report covers {report.covered_seconds} s")
    observed, clipped = _count(report.counts.observed_values), report.counts.clipped_values
    _require(clipped <= observed, "a report clips more values than it observed")
    _check_installs(report.installs)
    return DeviceReport(
        model_digest=check_digest(report.model_digest.hex()),
        device_class=check_name(report.device_class, "device class"),
        device_id=device,
        sequence=report.sequence,
        version=report.version,
        counts=_counts_from_proto(report),
        failed_versions=tuple(a.version for a in report.installs if a.outcome in _FAILED),
        manifest_digest=check_digest(report.manifest_digest.hex()),
        observed_values=observed,
        clipped_values=clipped,
    )


def _counts_from_proto(report: pb.TelemetryReport) -> TelemetryCounts:
    counts, latency, memory = report.counts, report.latency, report.memory
    if len(latency.counts) > LATENCY_BUCKETS:
        raise MalformedError(f"latencies in {len(latency.counts)} buckets; there are {LATENCY_BUCKETS}")
    _require(counts.agreements <= counts.judged <= counts.samples, "a report judges more than it answers")
    _require(
        not counts.judged or counts.judge != pb.JUDGE_UNSPECIFIED,
        "a report does not say who judged its samples",
    )
    is_evidence = counts.judge == pb.JUDGE_CORRECTED_FLOAT_MODEL
    return TelemetryCounts(
        samples=_count(counts.samples),
        labelled=_count(counts.labelled),
        hits=_count(counts.hits),
        judged=counts.judged if is_evidence else 0,
        agreements=counts.agreements if is_evidence else 0,
        failures=_count(counts.failures),
        load_failures=_count(counts.load_failures),
        latency=(*map(_count, latency.counts), *(0,) * (LATENCY_BUCKETS - len(latency.counts))),
        memory_bytes=memory.peak_rss_bytes,
    )


def _check_installs(installs: Sequence[pb.InstallAttempt]) -> None:
    if len(installs) > MAX_INSTALLS:
        raise MalformedError(
            f"{len(installs)} attempts to install in one report; at most {MAX_INSTALLS} are taken"
        )
    for attempt in installs:
        _require(1 <= attempt.version <= _MAX_VERSION, f"an attempt to install version {attempt.version}")
        if attempt.manifest_digest:
            check_digest(attempt.manifest_digest.hex())
        seconds, size_bytes = attempt.install_seconds, attempt.fetched_bytes
        _require(0 <= seconds <= _MAX_SECONDS, f"an attempt to install that took {seconds} s")
        _require(size_bytes <= _MAX_FETCHED_BYTES, f"an attempt to install that fetched {size_bytes} bytes")


def _count(value: int) -> int:
    _require(value <= MAX_COUNT, f"a report counts {value}")
    return value


def _require(is_met: bool, otherwise: str) -> None:
    if not is_met:
        raise MalformedError(otherwise)
