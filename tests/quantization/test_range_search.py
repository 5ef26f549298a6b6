"""The search of clip thresholds, beside brute force on the values themselves."""

import itertools

import numpy as np
import pytest

from quantization.affine import fake_quantize, params_from_range
from quantization.histogram import DyadicHistogram
from quantization.range_search import Bins, divergence, expected_squared_error, search_range

RNG = np.random.default_rng(0)
SAMPLES: dict[str, np.ndarray] = {
    "gauss": RNG.standard_normal(40_000),
    "skewed": RNG.gamma(2.0, size=40_000) - 1,
    "heavy": RNG.standard_t(3, size=40_000),
    "two peaks": np.concatenate([RNG.normal(-5, 0.1, 20_000), RNG.normal(1, 1.0, 20_000)]),
    "relu": np.maximum(RNG.standard_normal(40_000), 0),
    "outlier": np.append(RNG.standard_normal(40_000), 60.0),
}


def measured_error(values: np.ndarray, lo: float, hi: float, bit_width: int) -> float:
    back = fake_quantize(values, params_from_range(lo, hi, bit_width))
    return float(np.mean(np.square(back.astype(np.float64) - values)))


@pytest.mark.parametrize("bit_width", [3, 8])
@pytest.mark.parametrize("name", SAMPLES)
def test_expected_error_is_what_quantizing_the_values_costs(name: str, bit_width: int) -> None:
    values = SAMPLES[name].astype(np.float32)
    bins = Bins.of(DyadicHistogram.from_values(values))
    lows = min(float(values.min()), 0.0) * np.array([1.0, 0.5, 0.5, 0.3])
    highs = float(values.max()) * np.array([1.0, 0.5, 0.3, 0.9])
    expected = expected_squared_error(bins, lows, highs, bit_width)
    measured = [measured_error(values, lo, hi, bit_width) for lo, hi in zip(lows, highs, strict=True)]
    np.testing.assert_allclose(expected, measured, rtol=0.12)


@pytest.mark.parametrize("bit_width", [3, 4, 8])
@pytest.mark.parametrize("name", SAMPLES)
def test_search_is_as_good_as_brute_force_on_the_values(name: str, bit_width: int) -> None:
    values = SAMPLES[name].astype(np.float32)
    lo, hi = min(float(values.min()), 0.0), float(values.max())
    bins = Bins.of(DyadicHistogram.from_values(values))
    found = search_range(bins, lo, hi, bit_width, expected_squared_error)
    some = values[:: max(1, values.size // 20_000)]
    some = np.append(some, [values.min(), values.max()])
    lows = lo * np.linspace(1, 0.05, 16) if lo < 0 else np.zeros(1)
    candidates = itertools.product(lows, hi * np.linspace(1, 0.03, 24))
    best = min(measured_error(values, *c, bit_width) for c in candidates)
    assert measured_error(values, *found, bit_width) <= 1.03 * best


def test_divergence_of_what_the_codes_can_tell_exactly_is_about_nothing() -> None:
    values = np.arange(256, dtype=np.float32)
    bins = Bins.of(DyadicHistogram.from_values(values))
    costs = divergence(bins, np.array([0.0, 0.0]), np.array([255.0, 100.0]), 8)
    assert costs[0] < 1e-3 < costs[1]


def test_divergence_grows_as_codes_get_fewer() -> None:
    bins = Bins.of(DyadicHistogram.from_values(SAMPLES["skewed"].astype(np.float32)))
    values = SAMPLES["skewed"]
    lo, hi = values.min(keepdims=True), values.max(keepdims=True)
    costs = [float(divergence(bins, lo, hi, bit_width)[0]) for bit_width in range(2, 9)]
    assert costs == sorted(costs, reverse=True)


def test_side_without_values_stays_zero() -> None:
    for sign in (1, -1):
        values = sign * np.abs(SAMPLES["gauss"]).astype(np.float32)
        bins = Bins.of(DyadicHistogram.from_values(values))
        lo, hi = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        for cost in (expected_squared_error, divergence):
            found = search_range(bins, lo, hi, 4, cost)
            assert 0.0 in found
            assert lo <= found[0] <= 0.0 <= found[1] <= hi
            assert found[0] < found[1]
