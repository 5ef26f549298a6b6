from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.bit_allocation import (
    Allocation,
    Budget,
    Candidate,
    Candidates,
    allocate_bits,
    allocate_by_growing,
    allocate_uniform,
    pareto_front,
)
from quantization.errors import ConfigurationError

WIDTHS = (2, 3, 4, 8)


def _problem(seed: int, layers: int = 4) -> dict[str, list[Candidate]]:
    rng = np.random.default_rng(seed)
    problem = {}
    for i in range(layers):
        weights, gain = int(rng.integers(100, 5000)), float(rng.exponential())
        problem[f"layer{i}"] = [
            Candidate(b, weights * b // 8, gain * 4.0**-b, weights * (1 + b / 8) * 1e-9) for b in WIDTHS
        ]
    return problem


def _every(candidates: Candidates) -> list[Allocation]:
    ranges = [range(len(c)) for c in candidates.values()]
    return [
        Allocation.of(candidates, dict(zip(candidates, choice, strict=True))) for choice in product(*ranges)
    ]


@settings(max_examples=40, deadline=None)  # the solver is imported at the first
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_exact_allocation_is_the_best_of_all(seed: int, size_part: float, latency_part: float) -> None:
    candidates = _problem(seed)
    every = _every(candidates)
    sizes, latencies = [a.size_bytes for a in every], [a.latency_seconds for a in every]
    budget = Budget(
        int(min(sizes) + size_part * (max(sizes) - min(sizes))),
        min(latencies) + latency_part * (max(latencies) - min(latencies)),
    )
    feasible = [a for a in every if a.fits(budget)]
    found = allocate_bits(candidates, budget)
    assert found.fits(budget)
    assert found.loss == pytest.approx(min(a.loss for a in feasible), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_exact_allocation_beats_the_baselines(seed: int) -> None:
    candidates = _problem(seed, layers=12)
    budget = Budget(allocate_uniform(candidates, Budget()).size_bytes * 45 // 100)
    exact = allocate_bits(candidates, budget)
    for baseline in (allocate_uniform(candidates, budget), allocate_by_growing(candidates, budget)):
        assert baseline.fits(budget)
        assert exact.loss <= baseline.loss * (1 + 1e-6)


def _layer(weights: int, gain: float) -> list[Candidate]:
    return [Candidate(b, weights * b // 8, gain * 4.0**-b) for b in WIDTHS]


def test_growing_gives_the_bits_of_a_large_insensitive_layer_to_small_sensitive_ones() -> None:
    candidates = {"large": _layer(8000, 0.01), "small": _layer(800, 1.0), "other": _layer(1600, 1.0)}
    uniform = allocate_uniform(candidates, Budget(10400 * 4 // 8))
    grown = allocate_by_growing(candidates, Budget(10400 * 4 // 8))
    widths = {name: candidates[name][index].bit_width for name, index in grown.choice.items()}
    assert {candidates[name][index].bit_width for name, index in uniform.choice.items()} == {4}
    assert widths == {"large": 2, "small": 8, "other": 8}
    assert grown.loss < uniform.loss


def test_growing_serves_layers_with_few_weights_first() -> None:
    candidates = {"more": _layer(1001, 1.0), "fewer": _layer(1000, 1.0)}
    grown = allocate_by_growing(candidates, Budget((1001 * 4 + 1000 * 8) // 8))
    widths = {name: candidates[name][index].bit_width for name, index in grown.choice.items()}
    assert widths == {"more": 4, "fewer": 8}


@pytest.mark.parametrize("seed", range(10))
def test_growing_leaves_no_bytes_that_a_layer_could_use(seed: int) -> None:
    candidates = _problem(seed, layers=9)
    budget = Budget(allocate_uniform(candidates, Budget()).size_bytes * 55 // 100)
    grown = allocate_by_growing(candidates, budget)
    assert grown.fits(budget)
    for name, index in grown.choice.items():
        if index + 1 < len(WIDTHS):
            assert not Allocation.of(candidates, {**grown.choice, name: index + 1}).fits(budget)


def test_no_budget_takes_the_least_loss() -> None:
    candidates = _problem(0)
    assert set(allocate_bits(candidates, Budget()).choice.values()) == {len(WIDTHS) - 1}


def test_infeasible_size_names_the_smallest_feasible_one() -> None:
    candidates = _problem(0)
    smallest = min(a.size_bytes for a in _every(candidates))
    with pytest.raises(ConfigurationError, match=f"smallest feasible budget is {smallest} bytes"):
        allocate_bits(candidates, Budget(smallest - 1))
    assert allocate_bits(candidates, Budget(smallest)).size_bytes == smallest


def test_infeasible_latency_names_the_smallest_feasible_one() -> None:
    candidates = _problem(0)
    fastest = min(a.latency_seconds for a in _every(candidates))
    with pytest.raises(ConfigurationError, match=f"smallest feasible budget is {fastest:g} s"):
        allocate_bits(candidates, Budget(None, fastest * 0.99))


def test_budgets_that_exclude_each_other_name_the_bytes_that_the_latency_needs() -> None:
    candidates = {"a": [Candidate(2, 10, 1.0, 5.0), Candidate(8, 40, 0.1, 1.0)]}
    with pytest.raises(ConfigurationError, match="smallest feasible budget is 40 bytes"):
        allocate_bits(candidates, Budget(20, 2.0))


def test_pareto_front_falls_from_the_smallest_to_the_best() -> None:
    candidates = _problem(3)
    front = pareto_front(candidates)
    assert front[0].size_bytes == min(a.size_bytes for a in _every(candidates))
    assert front[-1].loss == pytest.approx(min(a.loss for a in _every(candidates)))
    for a, b in pairwise(front):
        assert a.size_bytes < b.size_bytes
        assert a.loss > b.loss
    for point in front:
        assert not any(
            a.size_bytes <= point.size_bytes and a.loss < point.loss * (1 - 1e-5) for a in _every(candidates)
        )


def test_uniform_takes_the_greatest_bit_width_that_fits() -> None:
    candidates = {
        "a": [Candidate(b, 10 * b, 1.0 / b) for b in WIDTHS],
        "b": [Candidate(b, b, 1.0 / b) for b in WIDTHS],
    }
    found = allocate_uniform(candidates, Budget(50))
    assert found.size_bytes == 44
    with pytest.raises(ConfigurationError, match="no bit-width"):
        allocate_uniform(candidates, Budget(5))


def test_hundreds_of_layers_are_allocated_within_their_budget() -> None:
    rng = np.random.default_rng(0)
    candidates = {
        f"layer{i}": [Candidate(b, int(n) * b // 8, float(g) * 4.0**-b) for b in (2, 3, 4, 5, 6, 8)]
        for i, (n, g) in enumerate(
            zip(rng.integers(1000, 2_000_000, 200), rng.exponential(size=200), strict=True)
        )
    }
    budget = Budget(sum(c[2].size_bytes for c in candidates.values()))
    found = allocate_bits(candidates, budget)
    assert found.fits(budget)
    assert found.loss < sum(c[2].loss for c in candidates.values())


@pytest.mark.parametrize(
    "bad", [{"size_bytes": -1}, {"loss": -1.0}, {"loss": np.nan}, {"latency_seconds": np.inf}]
)
def test_candidate_with_impossible_costs_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Candidate(**{"bit_width": 4, "size_bytes": 1, "loss": 1.0, **bad})


def test_layer_without_candidates_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one candidate"):
        allocate_bits({"a": []}, Budget())
