import math
from dataclasses import replace

import pytest
from artifacts import example
from hypothesis import given
from hypothesis import strategies as st

from client.trial import RunCounts, RunMeter, TrialRules, Verdict, judge
from quantization.errors import ConfigurationError

RULES = TrialRules(least_seconds=10.0, least_runs=20, longest_seconds=100.0, latency_ratio=2.0)


def counts(runs: int, seconds: float = 0.01, failures: int = 0) -> RunCounts:
    made = RunCounts()
    for run in range(runs):
        made.add(seconds, is_good=run >= failures)
    return made


@pytest.mark.parametrize(
    ("tried", "before", "seconds", "verdict"),
    [
        (counts(100), counts(100), 9.0, Verdict.CONTINUES),
        (counts(19), counts(100), 99.0, Verdict.CONTINUES),
        (counts(100), counts(100), 10.0, Verdict.PASSED),
        (counts(0), counts(100), 100.0, Verdict.PASSED),
        (counts(1, failures=1), counts(100), 0.0, Verdict.FAILED),
        (counts(20, 0.1), counts(20), 0.0, Verdict.FAILED),
        (counts(20, 0.015), counts(20), 10.0, Verdict.PASSED),
        (counts(19, 0.1), counts(20), 0.0, Verdict.CONTINUES),
        (counts(20, 0.1), counts(19), 10.0, Verdict.PASSED),
    ],
)
def test_a_trial_ends_by_its_rules(
    tried: RunCounts, before: RunCounts, seconds: float, verdict: Verdict
) -> None:
    found, reason = judge(RULES, tried, before, seconds)
    assert found is verdict
    assert bool(reason) is (verdict is Verdict.FAILED)


def test_some_failures_can_be_allowed() -> None:
    rules = replace(RULES, most_failures=2)
    assert judge(rules, counts(50, failures=2), counts(50), 10.0)[0] is Verdict.PASSED
    assert judge(rules, counts(50, failures=3), counts(50), 10.0)[0] is Verdict.FAILED


@given(st.lists(st.floats(1e-6, 900.0), min_size=1, max_size=200))
def test_the_95th_percentile_is_right_to_a_fifth(seconds: list[float]) -> None:
    made = RunCounts()
    for value in seconds:
        made.add(value, is_good=True)
    wanted = sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]
    assert wanted * 0.999 <= made.p95_seconds() <= wanted * 1.2


def test_the_meter_counts_what_is_on_trial_apart() -> None:
    old, new = example("mlp").artifact(0).manifest, example("mlp").artifact(1).manifest
    meter = RunMeter()
    for _ in range(20):
        meter.record(old, 0.01, True)
    meter.begin(new)
    for _ in range(20):
        meter.record(new, 0.1, True)
        meter.record(old, 0.01, True)
    assert meter.judge(RULES, 0.0)[0] is Verdict.FAILED
    meter.end(is_kept=True)
    meter.begin(old)
    for _ in range(20):
        meter.record(old, 0.1, True)
    assert meter.judge(RULES, 10.0)[0] is Verdict.PASSED  # as slow as what was kept


def test_rules_that_contradict_each_other_are_refused() -> None:
    for wrong in (
        {"least_seconds": 101.0},
        {"latency_ratio": 1.0},
        {"latency_ratio": math.nan},
        {"most_failures": -1},
    ):
        with pytest.raises(ConfigurationError):
            replace(RULES, **wrong)
