"""Counts of telemetry merge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import MalformedError
from server.telemetry_counts import TelemetryCounts

LATENCIES = st.lists(st.integers(0, 50), min_size=64, max_size=64).map(tuple)


@st.composite
def counts(draw: st.DrawFn) -> TelemetryCounts:
    samples = draw(st.integers(0, 1000))
    labelled, judged = draw(st.integers(0, samples)), draw(st.integers(0, samples))
    return TelemetryCounts(
        samples,
        labelled,
        draw(st.integers(0, labelled)),
        judged,
        draw(st.integers(0, judged)),
        draw(st.integers(0, 9)),
        draw(st.integers(0, 9)),
        draw(LATENCIES),
        draw(st.integers(0, 1 << 40)),
    )


@given(counts(), counts(), counts())
def test_merge_is_a_commutative_monoid(a: TelemetryCounts, b: TelemetryCounts, c: TelemetryCounts) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(TelemetryCounts()) == a


def test_a_quantile_lies_in_its_bucket() -> None:
    latency = [0] * 64
    latency[20], latency[30] = 90, 10
    octaves = TelemetryCounts(latency=tuple(latency)).latency_octaves(0.95)
    assert octaves == pytest.approx(15.25)
    assert TelemetryCounts(latency=tuple(latency)).latency_octaves(0.5) == pytest.approx(10 + 50 / 180)
    assert TelemetryCounts().latency_octaves() is None


def test_a_failure_rate_counts_what_was_asked() -> None:
    assert TelemetryCounts(samples=90, failures=10).failure_rate == pytest.approx(0.1)
    assert TelemetryCounts().failure_rate == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": -1},
        {"samples": 1, "labelled": 2},
        {"samples": 2, "labelled": 1, "hits": 2},
        {"samples": 2, "judged": 3},
        {"samples": 2, "judged": 1, "agreements": 2},
        {"samples": 1 << 63},
        {"load_failures": -1},
        {"latency": (0,) * 63},
        {"latency": (-1,) + (0,) * 63},
        {"memory_bytes": 1 << 60},
    ],
)
def test_counts_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MalformedError):
        TelemetryCounts(**wrong)  # type: ignore[arg-type]


def test_a_fleet_counts_more_than_one_report_may() -> None:
    one = TelemetryCounts(samples=1 << 38)
    assert one.merge(one).merge(one).samples == 3 << 38
