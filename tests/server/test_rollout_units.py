"""What one device contributes, and when it is marked."""

from dataclasses import replace

import pytest

from server.rollout_settings import DEFAULT_RULES
from server.rollout_units import Expectation, Marks, Unit, is_mature, marks_of, unit_of
from server.telemetry_counts import TelemetryCounts


def latency(bucket: int, count: int = 100) -> tuple[int, ...]:
    return tuple(count if k == bucket else 0 for k in range(64))


def counted(right: int, number: int = 100, **changes: object) -> TelemetryCounts:
    made = TelemetryCounts(number, number, right, number, right, 0, 0, latency(28), 90 << 20)
    return replace(made, **changes)  # type: ignore[arg-type]


FLEET = counted(9000, 10000)
USUAL = Expectation(counted(900, 1000), FLEET)
NEW_DEVICE = Expectation(TelemetryCounts(), FLEET)


def unit(counts: TelemetryCounts, expectation: Expectation = USUAL) -> Unit:
    return unit_of(counts, expectation, is_canary=True, step=0)


def test_a_device_that_does_as_before_loses_nothing() -> None:
    assert unit(counted(90)) == Unit(True, 0, pytest.approx(0.0), None, 0.0, 0.0, 0.0)


def test_a_loss_is_against_the_devices_own_past() -> None:
    weak = Expectation(counted(700, 1000), FLEET)
    assert unit(counted(70), weak).accuracy == pytest.approx(0.0, abs=0.01)
    assert unit(counted(70)).accuracy == pytest.approx(0.2)


def test_a_new_device_is_expected_to_do_as_its_class() -> None:
    losses = unit(counted(80, latency=latency(30)), NEW_DEVICE)
    assert losses.accuracy == pytest.approx(0.1)
    assert losses.latency == pytest.approx(1.0)


def test_a_short_past_weighs_less_than_a_long_one() -> None:
    short = unit(counted(90), Expectation(counted(0, 5), FLEET)).accuracy
    long = unit(counted(90), Expectation(counted(0, 5000), FLEET)).accuracy
    assert short is not None
    assert long is not None
    assert -0.3 < short < 0
    assert long < -0.85


def test_agreement_stands_in_where_there_are_no_labels() -> None:
    losses = unit(counted(90, labelled=0, hits=0, agreements=80))
    assert losses.accuracy is None
    assert losses.agreement == pytest.approx(0.1)


def test_what_was_never_measured_is_no_loss() -> None:
    silent = TelemetryCounts(100, 100, 90)
    assert unit(silent, Expectation(TelemetryCounts(), TelemetryCounts())) == Unit(True, 0, failures=0.0)


def test_failures_latency_and_memory_are_rises() -> None:
    losses = unit(counted(90, failures=100, latency=latency(32), memory_bytes=180 << 20))
    assert losses.failures == pytest.approx(0.5)
    assert losses.latency == pytest.approx(2.0)
    assert losses.memory == pytest.approx(1.0)


def test_a_unit_needs_its_inputs() -> None:
    assert not is_mature(counted(90, 99))
    assert is_mature(counted(90))
    assert is_mature(TelemetryCounts(samples=100, judged=100))
    assert not is_mature(TelemetryCounts(samples=100))


@pytest.mark.parametrize(
    ("counts", "marks"),
    [
        (counted(90), Marks(1)),
        (counted(85), Marks(1)),
        (TelemetryCounts(load_failures=1), Marks(1, 1, loading=1)),
        (counted(10), Marks(1, 1, destroyed=1)),
        (counted(4, 32), Marks(1, 1, destroyed=1)),
        (counted(90, failures=80), Marks(1, 1, destroyed=1)),
        (TelemetryCounts(failures=40), Marks(1, 1, destroyed=1)),
        (counted(90, labelled=0, hits=0, agreements=10), Marks(1, 1, destroyed=1)),
        (counted(90, latency=latency(35)), Marks(1, 1, slow=1)),
        (counted(90, memory_bytes=200 << 20), Marks(1, 1, large=1)),
        (counted(0, 8), Marks()),
        (TelemetryCounts(), Marks()),
    ],
)
def test_what_is_gross_is_marked(counts: TelemetryCounts, marks: Marks) -> None:
    assert marks_of(counts, USUAL) == marks


def test_few_inputs_need_a_greater_drop() -> None:
    assert marks_of(counted(60, 100), USUAL).marked == 0
    assert marks_of(counted(600, 1000), USUAL).marked == 1


def test_marks_add_up() -> None:
    assert Marks(1, 1, 1) + Marks(1, 1, 0, 1) + Marks() == Marks(2, 2, 1, 1)
    assert DEFAULT_RULES.least_samples <= DEFAULT_RULES.unit_samples
