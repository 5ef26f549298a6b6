"""Dyadic bins, beside exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.dyadic import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    BinCounter,
    add_coarsened,
    canonical_exponent,
    span,
)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def exact_bin(value: float, exponent: int) -> int:
    return Fraction(value) // Fraction(2) ** exponent


def exact_exponent(low: float, high: float) -> int:
    """Return the definition, tried from the smallest exponent on."""
    for exponent in range(MIN_EXPONENT, MAX_EXPONENT + 1):
        first, last = exact_bin(low, exponent), exact_bin(high, exponent)
        if last - first + 1 <= 2048 and abs(first) < 2**20 and abs(last) < 2**20:
            return exponent
    raise AssertionError


@given(FLOATS, FLOATS)
def test_exponent_is_the_smallest_that_fits(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    exponent = canonical_exponent(low, high)
    assert exponent == exact_exponent(low, high)
    first, last = exact_bin(low, exponent), exact_bin(high, exponent)
    assert span(low, high, exponent) == (first, last - first + 1)


@pytest.mark.parametrize(
    ("low", "high", "exponent"),
    [
        (0.0, 0.0, -126),
        (1.0, 1.0, -19),
        (-1.0, -1.0, -19),
        (-(2.0**-149), 2.0**-149, -126),
        (-3.4028234663852886e38, 3.4028234663852886e38, 118),
        (0.0, 2047.0, 0),
        (0.0, 2048.0, 1),
        (-1024.0, 1023.0, 0),
        (-1025.0, 1023.0, 1),
        (1048575.0, 1048575.0, 0),
        (1048576.0, 1048576.0, 1),
        (-1048576.0, -1048576.0, 1),
    ],
)
def test_exponent_at_the_edges(low: float, high: float, exponent: int) -> None:
    assert canonical_exponent(low, high) == exponent


@given(FLOATS, FLOATS, FLOATS)
def test_wider_ranges_never_have_smaller_exponents(a: float, b: float, c: float) -> None:
    low, middle, high = sorted([a, b, c])
    assert canonical_exponent(low, high) >= max(
        canonical_exponent(low, middle), canonical_exponent(middle, high)
    )


@given(st.lists(st.lists(FLOATS, min_size=1, max_size=12), min_size=1, max_size=6))
def test_counts_of_any_blocks_are_those_of_exact_arithmetic(blocks: list[list[float]]) -> None:
    counter = BinCounter(12)
    for block in blocks:
        counter.add(np.array(block, np.float32), min(block) + 0.0, max(block) + 0.0)
    values = [value for block in blocks for value in block]
    exponent, first_bin, counts = counter.result()
    assert exponent == exact_exponent(min(values), max(values))
    expected: dict[int, int] = {}
    for value in values:
        index = exact_bin(value, exponent)
        expected[index] = expected.get(index, 0) + 1
    found = {first_bin + int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    assert found == expected


@pytest.mark.parametrize("tiny", [-(2.0**-149), -(2.0**-126), 2.0**-149])
@pytest.mark.parametrize("large", [3e38, 1e10, 4096.0, 1.0])
def test_denormals_beside_large_values_land_on_their_side_of_zero(tiny: float, large: float) -> None:
    counter = BinCounter(2)
    counter.add(np.array([tiny, large], np.float32), min(tiny, large), max(tiny, large))
    _, first_bin, counts = counter.result()
    assert counts[(-1 if tiny < 0 else 0) - first_bin] == 1


@given(
    st.integers(-(2**20) + 1, 2**20 - 2048),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=40),
    st.data(),
)
def test_coarsening_shifts_every_bin(first: int, counts: list[int], data: st.DataObject) -> None:
    shift = data.draw(st.integers(0, 250))
    lead = data.draw(st.integers(0, 3))
    target = np.zeros(64, np.int64)
    start = (first >> shift) - lead
    add_coarsened(target, start, np.array(counts, np.int64), first, shift)
    expected = np.zeros(64, np.int64)
    for i, count in enumerate(counts):
        expected[((first + i) >> shift) - start] += count
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("shift", [1, 5, 10, 11, 12, 13, 21, 40])
@pytest.mark.parametrize("first", [-2048, -2047, -1024, -1, 0, 1, 2047, 1048575 - 2048])
def test_coarsening_a_full_width_keeps_every_count(first: int, shift: int) -> None:
    counts = np.arange(1, 2049, dtype=np.int64)
    target = np.zeros(1100, np.int64)
    add_coarsened(target, first >> shift, counts, first, shift)
    expected = np.zeros_like(target)
    np.add.at(expected, ((first + np.arange(2048)) >> shift) - (first >> shift), counts)
    assert np.array_equal(target, expected)
