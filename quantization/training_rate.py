"""Keeping what a layer's codes cost: training must not make a model larger than the allocation allowed."""

import numpy as np
from numpy.typing import NDArray

from quantization.training_state import LayerState, TrainingGrid, codes_of

_EDGE = 0.49  # steps from a code to where a weight is put that must have that code
_SEARCH_STEPS = 24
_UNSEEN = 0.02  # occurrences that a code which does not occur is priced as


def size_bits(codes: NDArray[np.int8]) -> float:
    """Return the entropy of a layer's codes, in bits for all of them: what an entropy coder needs."""
    counts = np.bincount(codes.astype(np.int64).ravel() + 128, minlength=256)
    seen = counts[counts > 0]
    return float(-(seen * np.log2(seen / codes.size)).sum())


def fit_size(state: LayerState, grid: TrainingGrid, budget_bits: float) -> LayerState:
    """Return the layer with codes of at most `budget_bits` of entropy, each moved by one code at most.

    Codes are chosen anew by distance^2 + price x bits, with the bits that each code takes now and the least price that
    suffices; a weight whose code changes is put into the cell of its new code, so that training goes on from there.

    Args:
        state: The layer.
        grid: Its codes.
        budget_bits: As `size_bits` counts.
    """
    codes = codes_of(state, grid)
    if size_bits(codes) <= budget_bits:
        return state
    ratio = state.weight / state.step[:, None]
    least, most = 0.0, 1.0
    for _ in range(_SEARCH_STEPS):
        price = (least + most) / 2
        if size_bits(_priced(ratio, codes, grid, price)) <= budget_bits:
            most = price
        else:
            least = price
    chosen = _priced(ratio, codes, grid, most)
    moved = np.clip(ratio, chosen - _EDGE, chosen + _EDGE)
    weight = np.where(chosen == codes, state.weight, moved * state.step[:, None])
    return LayerState(weight.astype(np.float32), state.step, state.bias)


def _priced(
    ratio: NDArray[np.float32], codes: NDArray[np.int8], grid: TrainingGrid, price: float
) -> NDArray[np.int8]:
    """Return, for each weight, the best of its code and the two beside it."""
    counts = np.bincount(codes.astype(np.int64).ravel() + 128, minlength=257)
    bits = -np.log2(np.maximum(counts, _UNSEEN) / codes.size)
    best = codes.astype(np.int64)
    best_cost = np.square(ratio - best) + price * bits[best + 128]
    for offset in (-1, 1):
        other = np.clip(codes.astype(np.int64) + offset, -grid.greatest_code, grid.greatest_code)
        cost = np.square(ratio - other) + price * bits[other + 128]
        best, best_cost = np.where(cost < best_cost, other, best), np.minimum(cost, best_cost)
    return best.astype(np.int8)
