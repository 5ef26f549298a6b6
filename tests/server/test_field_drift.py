"""Drift as telemetry shows it."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import ConfigurationError
from server.class_totals import ClassTotals
from server.field_drift import DriftRules, FieldDrift, Measure, Tally, observe, sure_drop

RULES = DriftRules(start_drop=0.03, stop_drop=0.01, window_samples=500, beginning_windows=2, sureness=2.0)


class Field:
    """A class whose counts grow."""

    def __init__(self) -> None:
        self.totals = ClassTotals()
        self.drift = FieldDrift()

    def serve(
        self, right: float, samples: int = 1000, *, labelled: bool = True, version: int = 1
    ) -> FieldDrift:
        hits = round(right * samples)
        seen = ClassTotals(samples=samples, labelled=samples, hits=hits)
        if not labelled:
            seen = ClassTotals(samples=samples, judged=samples, agreements=hits)
        self.totals += seen
        return self.look(version)

    def look(self, version: int = 1, content: str = "a") -> FieldDrift:
        self.drift = observe(self.drift, version, content, self.totals, RULES)
        return self.drift


def test_a_class_that_stays_as_it_began_does_not_drift() -> None:
    field = Field()
    assert field.serve(0.9).drop is None
    for right in (0.9, 0.91, 0.89, 0.9):
        seen = field.serve(right)
        assert seen.drop == 0.0
        assert not seen.is_drifting


def test_a_drop_beyond_chance_is_drift_until_it_is_nearly_gone() -> None:
    field = Field()
    field.serve(0.9)
    field.serve(0.9)
    assert field.serve(0.80).is_drifting
    assert field.serve(0.86).is_drifting  # above the lower threshold still
    assert 0.01 < (field.drift.drop or 0.0) < 0.03
    assert not field.serve(0.89).is_drifting
    assert not field.serve(0.86).is_drifting  # below the upper threshold still


def test_nothing_is_said_before_a_window_is_full() -> None:
    field = Field()
    field.serve(0.9)
    before = field.serve(0.9)
    assert field.serve(0.1, samples=499) == before
    assert field.serve(0.1, samples=1).is_drifting


def test_a_few_samples_have_to_lose_more_than_many() -> None:
    before = Tally(900, 1000)
    assert sure_drop(before, Tally(85, 100), 2.0) == 0.0
    assert sure_drop(before, Tally(8500, 10000), 2.0) > 0.02
    assert sure_drop(Tally(10, 10), Tally(10, 10), 2.0) == 0.0


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 5))
def test_a_sure_drop_never_exceeds_the_drop(n: int, m: int, p: float, q: float, sureness: float) -> None:
    before, after = Tally(round(p * n), n), Tally(round(q * m), m)
    drop = before.right / n - after.right / m
    assert 0.0 <= sure_drop(before, after, sureness) <= max(drop, 0.0)


def test_drift_does_not_creep_into_the_beginning() -> None:
    field = Field()
    field.serve(0.9, samples=500)
    for _ in range(10):
        field.serve(0.7, samples=500)
    assert field.drift.accuracy.beginning == Tally(450, 500)
    assert field.drift.is_drifting


def test_labels_decide_where_there_are_enough() -> None:
    field = Field()
    for _ in range(2):
        field.serve(0.9, labelled=False)
    assert field.serve(0.6, labelled=False).measure is Measure.AGREEMENT
    assert field.drift.is_drifting
    field.serve(0.9)
    assert field.serve(0.9).measure is Measure.ACCURACY
    assert not field.drift.is_drifting


def test_values_beyond_their_ranges_are_drift_too() -> None:
    field = Field()
    for clipped in (0.001, 0.001, 0.08):
        values = 1_000_000
        field.totals += ClassTotals(
            samples=1000, observed_values=values, clipped_values=round(clipped * values)
        )
        field.look()
    assert (field.drift.measure, field.drift.is_drifting) == (Measure.RANGE, True)


def test_a_new_content_begins_anew_and_the_same_content_goes_on() -> None:
    field = Field()
    field.serve(0.9)
    field.serve(0.9)
    field.serve(0.7)
    known = field.drift
    anew = observe(known, 2, "b", ClassTotals(), RULES)
    assert anew == FieldDrift(2, "b")

    back = observe(known, 3, "a", ClassTotals(), RULES)
    assert back.is_drifting
    assert back.accuracy.beginning == known.accuracy.beginning
    recovered = observe(back, 3, "a", ClassTotals(samples=1000, labelled=1000, hits=900), RULES)
    assert not recovered.is_drifting


def test_counts_that_fall_start_a_new_window() -> None:
    field = Field()
    field.serve(0.9)
    field.totals = ClassTotals(samples=10, labelled=10, hits=1)
    assert field.look().accuracy.counted == Tally(1, 10)
    assert not field.drift.is_drifting


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_drop": 0.01},
        {"stop_drop": -0.1},
        {"window_samples": 0},
        {"sureness": 11.0},
        {"start_drop": 1.1},
    ],
)
def test_rules_without_hysteresis_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        replace(RULES, **wrong)  # type: ignore[arg-type]


def test_all_of_it_is_plain_values() -> None:
    field = Field()
    field.serve(0.9)
    assert asdict(field.drift)["accuracy"]["beginning"] == {"right": 900, "total": 1000}
