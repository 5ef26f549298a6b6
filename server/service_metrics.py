"""What the services of one server process count; the number of devices does not change how many series there are.

A class is a label only once the registry knows it: whoever counts passes names that a report was stored under.
"""

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Histogram
from sqlalchemy.exc import SQLAlchemyError

from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.errors import (
    ConfigurationError,
    DigestMismatchError,
    ForbiddenError,
    IllegalTransitionError,
    MalformedError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
)

INSTALL_SECONDS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
FETCHED_BYTES = (0.0, *(float(4**power) for power in range(5, 16)))
"""Bounds of buckets: nothing, then 1 KiB to 1 GiB in steps of four."""

_OUTCOMES = {
    number: name.removeprefix("INSTALL_OUTCOME_").lower()
    for name, number in pb.InstallOutcome.items()
    if number != pb.INSTALL_OUTCOME_UNSPECIFIED
}
INSTALL_OUTCOMES = tuple(_OUTCOMES.values())
"""Values of the label `outcome` of installs; what a newer device reports beside these counts as `other`."""


class ReportOutcome(StrEnum):
    """What became of a telemetry report."""

    STORED = "stored"
    REPEATED = "repeated"
    REFUSED = "refused"
    IMPLAUSIBLE = "implausible"
    """Stored, and not counted: the device cannot have counted that much."""


_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (OverloadedError, "overloaded"),
    (UnauthenticatedError, "unauthenticated"),
    (ForbiddenError, "forbidden"),
    (NotFoundError, "not_found"),
    (MalformedError, "malformed"),
    (ConfigurationError, "malformed"),
    (DigestMismatchError, "damaged"),
    (IllegalTransitionError, "conflict"),
    (SQLAlchemyError, "unavailable"),
    (TimeoutError, "stalled"),
)
REFUSAL_REASONS = tuple(dict.fromkeys([*(reason for _, reason in _REASONS), "internal"]))
"""Values of the label `reason` of refused calls."""


def refusal_reason(error: BaseException) -> str:
    """Return why a call was refused, one of `REFUSAL_REASONS`."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "internal")


class ServiceMetrics:
    """Metrics on the registry that is handed in.

    Attributes:
        installs: Attempts to install that devices reported, by class and outcome.
        install_seconds: How long they took.
        fetched_bytes: What they fetched.
        calls_refused: Calls that ended with an error, by reason.
        reports: Telemetry reports, by what became of them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.installs = Counter(
            "quantfleet_install",
            "Attempts to install a target that devices reported.",
            ("device_class", "outcome"),
            registry=registry,
        )
        self.install_seconds = Histogram(
            "quantfleet_install_duration_seconds",
            "From the first request to the end of an attempt to install, without the trial.",
            registry=registry,
            buckets=INSTALL_SECONDS,
        )
        self.fetched_bytes = Histogram(
            "quantfleet_install_fetched_bytes",
            "Bytes of payloads that an attempt to install received.",
            registry=registry,
            buckets=FETCHED_BYTES,
        )
        self.calls_refused = Counter(
            "quantfleet_calls_refused", "Calls that were refused.", ("reason",), registry=registry
        )
        self.reports = Counter(
            "quantfleet_telemetry_reports", "Reports that devices sent.", ("outcome",), registry=registry
        )
        for reason in REFUSAL_REASONS:
            self.calls_refused.labels(reason)
        for outcome in ReportOutcome:
            self.reports.labels(outcome)

    def count_refusal(self, error: BaseException) -> None:
        """Count a call that ended with an error."""
        self.calls_refused.labels(refusal_reason(error)).inc()

    def count_report(self, outcome: ReportOutcome, reports: int = 1) -> None:
        """Count reports by what became of them."""
        self.reports.labels(outcome).inc(reports)

    def count_installs(self, report: pb.TelemetryReport) -> None:
        """Count the attempts to install that a report tells of; for reports that were stored, once each.

        An attempt whose outcome is its second end (a trial passed or failed) has been timed at its first.
        """
        for attempt in report.installs:
            outcome = _OUTCOMES.get(attempt.outcome, "other")
            self.installs.labels(report.device_class, outcome).inc()
            if attempt.outcome in (pb.INSTALL_OUTCOME_CONFIRMED, pb.INSTALL_OUTCOME_REVERTED):
                continue
            self.fetched_bytes.observe(attempt.fetched_bytes)
            if 0 < attempt.install_seconds < float("inf"):
                self.install_seconds.observe(attempt.install_seconds)
