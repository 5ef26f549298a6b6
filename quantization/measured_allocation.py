"""An allocation whose bytes are those of the stored layers, where sizes of candidates are estimates."""

from collections.abc import Callable
from dataclasses import replace

from quantization.bit_allocation import Allocation, Budget, Candidate, Candidates, allocate_bits

SizeFunction = Callable[[str, int], int]
"""Exact bytes of a layer's candidate, by the layer's name and the candidate's index."""

AllocateFunction = Callable[[Candidates, Budget], Allocation]

_NEAR = 0.99  # of the estimated bytes: what fits and uses nearly as much is kept, without another turn


def allocate_measured(
    candidates: Candidates,
    budget: Budget,
    measure: SizeFunction,
    allocate: AllocateFunction = allocate_bits,
) -> tuple[Allocation, dict[str, list[Candidate]]]:
    """Return the allocation that fits by measured sizes, and the candidates with the sizes that were measured.

    Allocates, measures what was chosen, and allocates again with what it learned until all that is chosen has been
    measured: three or four turns, since each measures a candidate at most once.

    Args:
        candidates: By layer; their sizes may be estimates.
        budget: Limits on bytes and seconds.
        measure: Tells exact sizes.
        allocate: How candidates are chosen.

    Raises:
        ConfigurationError: If no allocation fits.
    """
    known: dict[str, list[Candidate]] = {name: list(of_layer) for name, of_layer in candidates.items()}
    is_measured: set[tuple[str, int]] = set()
    while True:
        found = allocate(known, budget)
        new = [item for item in found.choice.items() if item not in is_measured]
        if not new:
            return found, known
        for name, index in new:
            known[name][index] = replace(known[name][index], size_bytes=measure(name, index))
        is_measured.update(new)
        exact = Allocation.of(known, found.choice)
        if exact.fits(budget) and exact.size_bytes >= _NEAR * found.size_bytes:
            return exact, known
