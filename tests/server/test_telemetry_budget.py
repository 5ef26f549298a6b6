"""What a device can have counted by now."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.side_by_side import LATENCY_BUCKETS
from server.telemetry_budget import (
    CLOCK_SKEW_SECONDS,
    MAX_OFFLINE_SECONDS,
    MAX_VALUES_PER_SECOND,
    Budget,
    without_counts,
)
from server.telemetry_counts import TelemetryCounts
from server.telemetry_reports import DeviceReport

NOW = 1.8e9
BUDGET = Budget(100.0, NOW)


def report(observed_values: int = 0, latency: int = 0, **counts: int) -> DeviceReport:
    buckets = (latency, *(0,) * (LATENCY_BUCKETS - 1))
    return DeviceReport(
        "a" * 64,
        "arm",
        "d",
        1,
        1,
        TelemetryCounts(**counts, latency=buckets),
        observed_values=observed_values,
    )


@pytest.mark.parametrize(
    "told",
    [
        report(samples=1000),
        report(failures=1000),
        report(samples=400, failures=300, load_failures=300),
        report(latency=1000),
        report(samples=1000, observed_values=int(10 * MAX_VALUES_PER_SECOND)),
        report(observed_values=int(10 * MAX_VALUES_PER_SECOND)),
    ],
)
def test_what_is_counted_takes_time(told: DeviceReport) -> None:
    assert BUDGET.counted_until(NOW - 10.0, told) == NOW
    assert BUDGET.counted_until(NOW - 9.9, told) is None
    assert BUDGET.counted_until(NOW - 50.0, told) == NOW - 40.0
    assert BUDGET.counted_until(NOW - 9.9, without_counts(told)) == NOW - 9.9


def test_a_device_that_was_away_tells_of_a_week_at_most() -> None:
    most = report(samples=int(100 * MAX_OFFLINE_SECONDS))
    for before in (None, 0.0, NOW - 2 * MAX_OFFLINE_SECONDS):
        assert BUDGET.counted_until(before, most) == NOW
        assert BUDGET.counted_until(before, report(samples=most.counts.samples + 100)) is None
    assert BUDGET.counted_until(NOW, report(samples=1)) is None


def test_a_clock_that_went_back_silences_no_device() -> None:
    """A little, which is another server's clock, gives a device nothing."""
    assert BUDGET.counted_until(NOW + 365 * 86_400.0, report(samples=100)) == NOW - MAX_OFFLINE_SECONDS + 1.0
    assert BUDGET.counted_until(NOW + CLOCK_SKEW_SECONDS / 2, report(samples=100)) is None


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**9)), max_size=30))
def test_no_device_counts_more_than_its_rate_allows(steps: list[tuple[float, int]]) -> None:
    budget, until, counted, began = BUDGET, None, 0, NOW
    for seconds, samples in steps:
        budget = replace(budget, now_seconds=budget.now_seconds + seconds)
        after = budget.counted_until(until, report(samples=samples))
        if after is not None:
            until, counted = after, counted + samples
    assert counted <= 100.0 * (MAX_OFFLINE_SECONDS + budget.now_seconds - began) * (1 + 1e-9)
