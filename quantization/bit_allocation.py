"""One candidate per layer, so that the model fits a budget and its predicted loss is least.

The choice is a 0/1 program: minimise sum_l sum_i loss_li z_li with one z_li per layer and limits on the sums of bytes
and of seconds. It is solved exactly (`scipy.optimize.milp`, HiGHS), in seconds for hundreds of layers. A candidate may
be a bit-width, a step of an entropy-coded grid, or a float type: the program sees its bytes, seconds and loss alone.

Baselines: one bit-width for all layers (`allocate_uniform`), and the rule of FedMPQ (`allocate_by_growing`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantization.errors import ConfigurationError
from quantization.solver_output import discarded_solver_output

_RELATIVE_GAP = 1e-6  # to the best bound, at which a solution counts as the least
_RELATIVE_GAP_OF_MANY = 1e-4  # of more layers than `_FEW_LAYERS`: a quarter of the time
_FEW_LAYERS = 64
_TIME_LIMIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store a layer.

    Attributes:
        bit_width: Bits of its codes (16 for a float type), what a report shows.
        size_bytes: Bytes as stored.
        loss: Predicted divergence of the model that it causes, in nats: gain times exact loss; >= 0.
        latency_seconds: Time the layer takes on the class of device; 0 where no table is given.
    """

    bit_width: int
    size_bytes: int
    loss: float
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.size_bytes < 0 or not (self.loss >= 0 and self.latency_seconds >= 0):
            raise ConfigurationError(f"a candidate's size, loss and latency cannot be negative: {self}")
        if not (np.isfinite(self.loss) and np.isfinite(self.latency_seconds)):
            raise ConfigurationError(f"a candidate's loss and latency must be finite: {self}")


Candidates = Mapping[str, Sequence[Candidate]]
"""By layer, the ways to store it; none empty."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a class of devices can hold and wait for.

    Attributes:
        size_bytes: Most bytes of all layers; None for no limit.
        latency_seconds: Most seconds of all layers; None for no limit.
    """

    size_bytes: int | None = None
    latency_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """One candidate per layer.

    Attributes:
        choice: Index of the chosen candidate, by layer.
        size_bytes: Bytes of all layers.
        latency_seconds: Seconds of all layers.
        loss: Predicted divergence of the model, in nats.
    """

    choice: Mapping[str, int]
    size_bytes: int
    latency_seconds: float
    loss: float

    @classmethod
    def of(cls, candidates: Candidates, choice: Mapping[str, int]) -> "Allocation":
        """Return the allocation with this choice, its sums computed."""
        chosen = [candidates[name][index] for name, index in choice.items()]
        return cls(
            dict(choice),
            sum(c.size_bytes for c in chosen),
            sum(c.latency_seconds for c in chosen),
            sum(c.loss for c in chosen),
        )

    def fits(self, budget: Budget) -> bool:
        """Return whether the sums are within the budget."""
        is_small = budget.size_bytes is None or self.size_bytes <= budget.size_bytes
        return is_small and (
            budget.latency_seconds is None or self.latency_seconds <= budget.latency_seconds * (1 + 1e-9)
        )


def allocate_bits(candidates: Candidates, budget: Budget) -> Allocation:
    """Return the allocation with the least predicted loss within the budget.

    Exact to 1e-6 of the loss; to 1e-4 for more than 64 layers.

    Args:
        candidates: By layer.
        budget: Limits on bytes and seconds.

    Raises:
        ConfigurationError: If no allocation fits; it names the smallest budget that one would.
    """
    _check(candidates)
    smallest = _extreme(candidates, lambda c: (c.size_bytes, c.loss))
    if budget.size_bytes is not None and smallest.size_bytes > budget.size_bytes:
        raise ConfigurationError(
            f"no allocation fits {budget.size_bytes} bytes; the smallest feasible budget is {smallest.size_bytes} bytes"
        )
    fastest = _extreme(candidates, lambda c: (c.latency_seconds, c.loss))
    if budget.latency_seconds is not None and not fastest.fits(Budget(None, budget.latency_seconds)):
        raise ConfigurationError(
            f"no allocation takes {budget.latency_seconds:g} s; the smallest feasible budget is"
            f" {fastest.latency_seconds:g} s"
        )
    best = _extreme(candidates, lambda c: (c.loss, c.size_bytes, c.latency_seconds))
    if best.fits(budget):
        return best
    found = _solve(candidates, budget, [c.loss for c in _flat(candidates)])
    if found is None:  # each limit can be met alone, but not both: say what the bytes would have to be
        needed = _solve(
            candidates, Budget(None, budget.latency_seconds), [float(c.size_bytes) for c in _flat(candidates)]
        )
        size_bytes = needed.size_bytes if needed is not None else smallest.size_bytes
        raise ConfigurationError(
            f"no allocation fits {budget.size_bytes} bytes within {budget.latency_seconds} s;"
            f" with that latency the smallest feasible budget is {size_bytes} bytes"
        )
    return found


def pareto_front(
    candidates: Candidates, points: int = 24, latency_seconds: float | None = None
) -> list[Allocation]:
    """Return exact allocations from the smallest size to the least loss, each smaller or better than all others.

    Args:
        candidates: By layer.
        points: Most allocations, with sizes spaced by equal ratios.
        latency_seconds: Limit on seconds that all of them keep.
    """
    _check(candidates)
    sizes = [float(c.size_bytes) for c in _flat(candidates)]
    smallest = _solve(candidates, Budget(None, latency_seconds), sizes)
    if smallest is None:
        allocate_bits(candidates, Budget(None, latency_seconds))  # raises, with the remedy
        raise AssertionError("an infeasible program was allocated")
    best = allocate_bits(candidates, Budget(None, latency_seconds))
    budgets = np.geomspace(max(smallest.size_bytes, 1), max(best.size_bytes, smallest.size_bytes, 1), points)
    front: list[Allocation] = []
    for size in budgets:
        found = allocate_bits(
            candidates, Budget(max(round(float(size)), smallest.size_bytes), latency_seconds)
        )
        if not front or found.loss < front[-1].loss:
            front.append(found)
    return front


def allocate_uniform(candidates: Candidates, budget: Budget) -> Allocation:
    """Return the allocation with one bit-width for all layers, the greatest that fits: a baseline.

    Raises:
        ConfigurationError: If none fits.
    """
    _check(candidates)
    widths = sorted(set.intersection(*({c.bit_width for c in of_layer} for of_layer in candidates.values())))
    for width in reversed(widths):
        choice = {name: [c.bit_width for c in of_layer].index(width) for name, of_layer in candidates.items()}
        allocation = Allocation.of(candidates, choice)
        if allocation.fits(budget):
            return allocation
    raise ConfigurationError(f"no bit-width of {widths} for all layers fits the budget {budget}")


def allocate_by_growing(candidates: Candidates, budget: Budget) -> Allocation:
    """Return what pruning and growing allocates, the greedy rule of FedMPQ: a baseline.

    After FedMPQ (arXiv:2311.18129, algorithm 2), which ranks layers by their number of weights times one more than
    the bits that each gave up in local training. Layers at the end of that order (few weights, few bits given up)
    grow, each as far as the budget allows, before the next one does. Weights are not trained here: a layer starts
    from the greatest uniform bit-width that fits, and gives up what leaves its loss within the mean loss of the
    layers there, where FedMPQ looks for leading bits that are nearly all zero. Losses are never traded against bytes,
    which is what the exact program adds.

    Raises:
        ConfigurationError: If no uniform bit-width fits.
    """
    start = allocate_uniform(candidates, budget)
    order = {name: _by_size(of_layer) for name, of_layer in candidates.items()}
    place = {name: order[name].index(index) for name, index in start.choice.items()}
    tolerated = start.loss / len(candidates)
    given_up = dict.fromkeys(candidates, 0)
    for name, of_layer in candidates.items():
        while place[name] > 0 and of_layer[order[name][place[name] - 1]].loss <= tolerated:
            place[name] -= 1
            given_up[name] += 1
    weights = {
        name: max(c.size_bytes / c.bit_width for c in of_layer) for name, of_layer in candidates.items()
    }
    for name in sorted(candidates, key=lambda name: weights[name] * (given_up[name] + 1)):
        while place[name] + 1 < len(order[name]):
            grown = {**place, name: place[name] + 1}
            if not _placed(candidates, order, grown).fits(budget):
                break
            place = grown
    allocation = _placed(candidates, order, place)
    return allocation if allocation.fits(budget) else start  # a smaller candidate may be a slower one


def _check(candidates: Candidates) -> None:
    if not candidates or not all(candidates.values()):
        raise ConfigurationError("an allocation needs layers, and at least one candidate for each")


def _flat(candidates: Candidates) -> list[Candidate]:
    return [candidate for of_layer in candidates.values() for candidate in of_layer]


def _extreme(candidates: Candidates, key: Callable[[Candidate], tuple[float, ...]]) -> Allocation:
    """Return the allocation that takes the candidate with the least key in every layer."""
    choice = {name: of_layer.index(min(of_layer, key=key)) for name, of_layer in candidates.items()}
    return Allocation.of(candidates, choice)


def _by_size(of_layer: Sequence[Candidate]) -> list[int]:
    return sorted(range(len(of_layer)), key=lambda index: of_layer[index].size_bytes)


def _placed(
    candidates: Candidates, order: Mapping[str, Sequence[int]], place: Mapping[str, int]
) -> Allocation:
    return Allocation.of(candidates, {name: order[name][index] for name, index in place.items()})


def _solve(candidates: Candidates, budget: Budget, costs: Sequence[float]) -> Allocation | None:
    """Return the allocation with the least sum of `costs` (one per candidate, layer by layer), or None if none fits."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415 - a device never allocates
    from scipy.sparse import csr_array  # noqa: PLC0415

    flat = _flat(candidates)
    owners = np.repeat(np.arange(len(candidates)), [len(c) for c in candidates.values()])
    one_each = csr_array(
        (np.ones(len(flat)), (owners, np.arange(len(flat)))), shape=(len(candidates), len(flat))
    )
    constraints = [LinearConstraint(one_each, 1, 1)]
    if budget.size_bytes is not None:
        sizes = np.array([[c.size_bytes for c in flat]], np.float64)
        constraints.append(LinearConstraint(sizes, -np.inf, budget.size_bytes))
    if budget.latency_seconds is not None:  # in parts of the limit: the solver's tolerances are absolute
        latencies = np.array([[c.latency_seconds for c in flat]]) / (budget.latency_seconds or 1.0)
        constraints.append(LinearConstraint(latencies, -np.inf, 1.0 if budget.latency_seconds else 0.0))
    objective = np.array(costs) / (max(costs) or 1.0)
    gap = _RELATIVE_GAP if len(candidates) <= _FEW_LAYERS else _RELATIVE_GAP_OF_MANY
    options = {"mip_rel_gap": gap, "time_limit": _TIME_LIMIT_SECONDS}
    with discarded_solver_output():
        result = milp(
            objective,
            constraints=constraints,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            options=options,
        )
    if result.x is None:
        return None
    chosen = np.asarray(result.x)
    ends = np.cumsum([len(c) for c in candidates.values()])
    parts = np.split(chosen, ends[:-1])
    return Allocation.of(
        candidates, {n: int(part.argmax()) for n, part in zip(candidates, parts, strict=True)}
    )
