"""Range methods, on distributions whose answer is known."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quantization.calibration import (
    KLEntropy,
    MeanSquaredError,
    MinMax,
    MovingAverage,
    Percentile,
    Range,
    RangeMethod,
    choose_range,
    method_from_name,
)
from quantization.errors import ConfigurationError, IncompatibleStatsError
from quantization.histogram import DyadicHistogram, merge_all

METHODS: list[RangeMethod] = [MinMax(), Percentile(0.999), MeanSquaredError(), KLEntropy()]
SHARES = (np.arange(400_000) + 0.5) / 400_000
GAUSS: np.ndarray = stats.norm.ppf(SHARES).astype(np.float32)
LAPLACE: np.ndarray = stats.laplace.ppf(SHARES).astype(np.float32)

# Optimal thresholds in units of sigma and b: table in Banner et al. 2018 (arXiv:1810.05723) and its code; a
# rectified distribution is that of one bit more.
ACIQ_GAUSS = {3: 2.15, 4: 2.55, 5: 2.93, 6: 3.28, 7: 3.61, 8: 3.92, 9: 4.20}
ACIQ_LAPLACE = {3: 3.89, 4: 5.03, 5: 6.20, 6: 7.41, 7: 8.64, 8: 9.89, 9: 11.16}


def of(values: object) -> DyadicHistogram:
    return DyadicHistogram.from_values(np.asarray(values, np.float32))


@pytest.mark.parametrize("bit_width", range(3, 9))
@pytest.mark.parametrize(("values", "thresholds"), [(GAUSS, ACIQ_GAUSS), (LAPLACE, ACIQ_LAPLACE)])
def test_least_squared_error_clips_where_the_analysis_says(
    values: np.ndarray, thresholds: dict[int, float], bit_width: int
) -> None:
    found = choose_range(of(values), MeanSquaredError(), bit_width)
    assert (found.hi - found.lo) / 2 == pytest.approx(thresholds[bit_width], rel=0.06)


@pytest.mark.parametrize("bit_width", range(3, 9))
@pytest.mark.parametrize(("values", "thresholds"), [(GAUSS, ACIQ_GAUSS), (LAPLACE, ACIQ_LAPLACE)])
def test_least_squared_error_behind_a_relu_is_that_of_one_bit_more(
    values: np.ndarray, thresholds: dict[int, float], bit_width: int
) -> None:
    found = choose_range(of(np.maximum(values, 0)), MeanSquaredError(), bit_width)
    assert found.lo == 0.0
    assert found.hi == pytest.approx(thresholds[bit_width + 1], rel=0.06)


def test_percentiles_are_those_of_the_values() -> None:
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, size=100_000).astype(np.float32) - 1
    found = choose_range(of(values), Percentile(0.99))
    lo, hi = np.quantile(values, [0.01, 0.99])
    assert found.lo == pytest.approx(lo, abs=0.01)
    assert found.hi == pytest.approx(hi, abs=0.01)
    assert choose_range(of(values), Percentile(1.0)) == choose_range(of(values), MinMax())


def test_min_max_is_exact_and_holds_zero() -> None:
    assert choose_range(of([0.1, 2.3]), MinMax()) == Range(0.0, float(np.float32(2.3)))
    assert choose_range(of([-0.1, -2.3]), MinMax()) == Range(float(np.float32(-2.3)), 0.0)


def test_entropy_keeps_a_uniform_distribution_whole() -> None:
    found = choose_range(of(np.linspace(-1, 1, 100_001)), KLEntropy())
    assert found.lo < -0.99
    assert found.hi > 0.99


@pytest.mark.parametrize("values", [GAUSS, LAPLACE, np.maximum(LAPLACE, 0)])
def test_entropy_clips_what_is_rare(values: np.ndarray) -> None:
    found = choose_range(of(values), KLEntropy(), 4)
    kept = np.mean((values >= found.lo) & (values <= found.hi))
    assert 0.97 < kept < 1.0


@pytest.mark.parametrize("method", [MeanSquaredError(), KLEntropy(), Percentile(0.999)])
def test_one_outlier_does_not_set_the_range(method: RangeMethod) -> None:
    values = np.append(np.maximum(GAUSS, 0), np.float32(30.0))
    found = choose_range(of(values), method, 4)
    assert found.lo == 0.0
    assert 2.0 < found.hi < 10.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [5.0, -5.0, 1e-42, -1e-42, 3e38])
def test_constant_values_are_kept(method: RangeMethod, value: float) -> None:
    value = float(np.float32(value))
    assert choose_range(of([value] * 9), method) == Range(min(value, 0.0), max(value, 0.0))


@pytest.mark.parametrize("method", METHODS)
def test_zeros_have_the_range_of_nothing(method: RangeMethod) -> None:
    assert choose_range(of([0.0, -0.0]), method) == Range(0.0, 0.0)


@pytest.mark.parametrize("method", [*METHODS, MovingAverage(MinMax())])
def test_no_values_are_refused_with_a_remedy(method: RangeMethod) -> None:
    with pytest.raises(IncompatibleStatsError, match=r"2 were NaN or infinite.*ask more devices"):
        choose_range(of([np.nan, np.inf]), method)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = st.one_of(
    st.lists(FINITE, min_size=1, max_size=30), st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=60)
)


@given(VALUES, st.sampled_from(METHODS), st.integers(2, 8))
def test_ranges_lie_within_the_bounds_of_the_values_and_hold_zero(
    values: list[float], method: RangeMethod, bit_width: int
) -> None:
    found = choose_range(of(values), method, bit_width)
    assert min(*values, 0.0) <= found.lo <= 0.0 <= found.hi <= max(*values, 0.0)


@pytest.mark.parametrize("method", [*METHODS, MovingAverage(MeanSquaredError(), 0.5)])
@pytest.mark.parametrize("devices", [7, 50])
def test_ranges_of_merged_devices_equal_pooled_ones_bit_for_bit(method: RangeMethod, devices: int) -> None:
    rng = np.random.default_rng(devices)
    values = np.concatenate([GAUSS[::20], rng.standard_cauchy(3000).astype(np.float32)])
    parts = [of(part) for part in np.array_split(rng.permutation(values), devices)]
    rng.shuffle(parts)  # type: ignore[arg-type]
    previous = Range(-1.0, 2.0)
    assert choose_range(merge_all(parts), method, 8, previous) == choose_range(
        of(values), method, 8, previous
    )


def test_moving_average_goes_part_of_the_way() -> None:
    method = MovingAverage(MinMax(), momentum=0.75)
    histogram = of([-4.0, 8.0])
    assert choose_range(histogram, method) == Range(-4.0, 8.0)
    assert choose_range(histogram, method, previous=Range(0.0, 4.0)) == Range(-1.0, 5.0)


def test_other_methods_forget_the_last_range() -> None:
    for method in METHODS:
        assert choose_range(of(GAUSS[::50]), method, previous=Range(-99.0, 99.0)).hi < 10


@pytest.mark.parametrize("name", ["minmax", "mse", "kl", "percentile:0.999", "moving_average:mse:0.9"])
def test_names_and_methods_are_a_pair(name: str) -> None:
    assert str(method_from_name(name)) == name


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("percentile", Percentile()),
        ("moving_average:kl", MovingAverage(KLEntropy())),
        ("moving_average:percentile:0.99", MovingAverage(Percentile(0.99))),
        ("moving_average:percentile:0.99:0.5", MovingAverage(Percentile(0.99), 0.5)),
    ],
)
def test_short_names_take_defaults(name: str, method: RangeMethod) -> None:
    assert method_from_name(name) == method
    assert method_from_name(str(method)) == method


@pytest.mark.parametrize(
    "name",
    [
        *("", "max", "mse:1", "kl:", "percentile:x", "percentile:2", "percentile:nan", "Percentile"),
        *(
            "moving_average",
            "moving_average:mse:1",
            "moving_average:0.9",
            "moving_average:moving_average:mse:0.9:0.9",
        ),
    ],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        method_from_name(name)


BAD: list[Callable[[], object]] = [
    lambda: Range(1.0, 2.0),
    lambda: Range(-1.0, -0.5),
    lambda: Range(-np.inf, 0.0),
    lambda: Range(0.0, np.nan),
    lambda: Percentile(0.4),
    lambda: MovingAverage(MinMax(), 1.0),
]


@pytest.mark.parametrize("make", BAD)
def test_impossible_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        make()
