from collections import Counter

import numpy as np
import pytest

from quantization.bit_allocation import Allocation, Budget, Candidate, allocate_bits
from quantization.errors import ConfigurationError
from quantization.measured_allocation import allocate_measured


def _candidates(layers: int = 12) -> dict[str, list[Candidate]]:
    rng = np.random.default_rng(0)
    return {
        f"layer{i}": [
            Candidate(bits, int(count * bits / 8), float(gain * 4.0**-bits)) for bits in (2, 3, 4, 5, 6, 8)
        ]
        for i, (count, gain) in enumerate(
            zip(rng.integers(1000, 9000, layers), rng.exponential(1, layers), strict=True)
        )
    }


@pytest.mark.parametrize("error", [0.95, 1.0, 1.05])
def test_allocation_fits_by_the_sizes_that_count(error: float) -> None:
    candidates = _candidates()
    exact = {name: [round(c.size_bytes * error) for c in of_layer] for name, of_layer in candidates.items()}
    budget = Budget(size_bytes=18_000)
    found, known = allocate_measured(candidates, budget, lambda name, index: exact[name][index])
    total = sum(exact[name][index] for name, index in found.choice.items())
    assert found.size_bytes == total <= 18_000
    assert found == Allocation.of(known, found.choice)
    best = allocate_bits(
        {
            name: [
                Candidate(c.bit_width, size, c.loss) for c, size in zip(of_layer, exact[name], strict=True)
            ]
            for name, of_layer in candidates.items()
        },
        budget,
    )
    assert found.loss <= best.loss * 1.3


def test_each_candidate_is_measured_at_most_once() -> None:
    counts: Counter[tuple[str, int]] = Counter()

    def measure(name: str, index: int) -> int:
        counts[name, index] += 1
        return round(_candidates()[name][index].size_bytes * 1.04)

    allocate_measured(_candidates(), Budget(size_bytes=18_000), measure)
    assert max(counts.values()) == 1
    assert len(counts) < 12 * 6 / 2  # far from all of them


def test_exact_sizes_need_one_turn() -> None:
    turns = 0

    def allocate(candidates: dict[str, list[Candidate]], budget: Budget) -> Allocation:
        nonlocal turns
        turns += 1
        return allocate_bits(candidates, budget)

    candidates = _candidates()
    allocate_measured(candidates, Budget(18_000), lambda n, i: candidates[n][i].size_bytes, allocate)
    assert turns == 1


def test_budget_that_only_estimates_meet_is_refused() -> None:
    candidates = _candidates()
    smallest = sum(of_layer[0].size_bytes for of_layer in candidates.values())
    with pytest.raises(ConfigurationError, match="smallest feasible budget"):
        allocate_measured(candidates, Budget(smallest), lambda n, i: candidates[n][i].size_bytes + 10)
