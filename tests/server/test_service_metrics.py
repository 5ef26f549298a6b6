"""Tests of what the services of a server count."""

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError

from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.errors import (
    ConfigurationError,
    ForbiddenError,
    IllegalTransitionError,
    MalformedError,
    NotFoundError,
    OverloadedError,
    QuantFleetError,
    UnauthenticatedError,
)
from server.service_metrics import (
    INSTALL_OUTCOMES,
    REFUSAL_REASONS,
    ReportOutcome,
    ServiceMetrics,
    refusal_reason,
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OverloadedError("wait", 1.0), "overloaded"),
        (UnauthenticatedError("who"), "unauthenticated"),
        (ForbiddenError("no"), "forbidden"),
        (NotFoundError("none"), "not_found"),
        (MalformedError("bad"), "malformed"),
        (ConfigurationError("bad"), "malformed"),
        (IllegalTransitionError("moved"), "conflict"),
        (OperationalError("select", {}, Exception("away")), "unavailable"),
        (TimeoutError(), "stalled"),
        (QuantFleetError("odd"), "internal"),
        (ValueError("ours"), "internal"),
    ],
)
def test_refusals_are_counted_by_reason(error: Exception, reason: str) -> None:
    registry = CollectorRegistry()
    ServiceMetrics(registry).count_refusal(error)
    assert registry.get_sample_value("quantfleet_calls_refused_total", {"reason": reason}) == 1
    assert refusal_reason(error) in REFUSAL_REASONS


def test_every_reason_and_outcome_of_reports_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    ServiceMetrics(registry)
    for reason in REFUSAL_REASONS:
        assert registry.get_sample_value("quantfleet_calls_refused_total", {"reason": reason}) == 0
    for outcome in ReportOutcome:
        assert registry.get_sample_value("quantfleet_telemetry_reports_total", {"outcome": outcome}) == 0


def test_installs_are_counted_and_timed_once() -> None:
    registry = CollectorRegistry()
    attempts = [
        pb.InstallAttempt(
            version=2, outcome=pb.INSTALL_OUTCOME_ACTIVATED, fetched_bytes=2000, install_seconds=3.0
        ),
        pb.InstallAttempt(
            version=2, outcome=pb.INSTALL_OUTCOME_CONFIRMED, fetched_bytes=2000, install_seconds=3.0
        ),
        pb.InstallAttempt(version=3, outcome=pb.INSTALL_OUTCOME_FETCH_FAILED, fetched_bytes=10),
        pb.InstallAttempt(version=3, outcome=99),
    ]
    ServiceMetrics(registry).count_installs(pb.TelemetryReport(device_class="arm", installs=attempts))
    for outcome in ("activated", "confirmed", "fetch_failed", "other"):
        labels = {"device_class": "arm", "outcome": outcome}
        assert registry.get_sample_value("quantfleet_install_total", labels) == 1
    assert registry.get_sample_value("quantfleet_install_duration_seconds_count") == 1
    assert registry.get_sample_value("quantfleet_install_duration_seconds_sum") == 3.0
    assert registry.get_sample_value("quantfleet_install_fetched_bytes_count") == 3
    assert registry.get_sample_value("quantfleet_install_fetched_bytes_sum") == 2010


def test_outcomes_are_those_of_the_schema() -> None:
    assert len(INSTALL_OUTCOMES) == len(pb.InstallOutcome.keys()) - 1
    assert "activated" in INSTALL_OUTCOMES
