"""Search of the clip thresholds that cost a histogram least.

Two costs: expected squared error (the trade of rounding against clipping of Banner et al. 2018,
arXiv:1810.05723, on the measured distribution instead of an assumed one) and Kullback-Leibler divergence (as
TensorRT's calibrator, Migacz, GTC 2017, on the asymmetric grid that the codes really have). Both are
evaluated for many candidate ranges at once, on the very grid that `affine.params_from_range` would give, from
sums over the bins: a candidate costs 2^bit_width look-ups, however many bins there are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.affine import range_grids
from quantization.histogram import DyadicHistogram

Floats = NDArray[np.float64]
Cost = Callable[["Bins", Floats, Floats, int], Floats]
"""Costs of the candidate ranges lo (N,), hi (N,) for codes of a bit-width: (N,)."""

_SMALLEST_SHARE = 1 / 400  # of the values' own bounds: narrower is a few bins
_LOOK_UPS = 2**17  # of the first pass over both sides; sets how many candidates there are
_MOST_CANDIDATES = 64  # per side
_REFINEMENTS = 4
_NEIGHBOURS = 7  # per side and refinement
_SMOOTHING = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """A histogram as the costs read it: bins of width 1, in units of 2^exponent.

    Exact zeros, of which a ReLU makes many, cost nothing in any range. They can't be told from other small
    values, but a peak in their bin can: it is levelled to the larger of its neighbours.

    Attributes:
        unit: 2^exponent.
        first_bin: Index k of the first bin.
        weights: Share of all values in each bin, (n,); they sum to 1, or less by the peak at zero.
    """

    unit: float
    first_bin: int
    weights: Floats

    @classmethod
    def of(cls, histogram: DyadicHistogram) -> "Bins":
        """Return the bins of a histogram that is not empty."""
        weights = histogram.counts / float(histogram.counts.sum())
        zero_bin = -histogram.first_bin
        if 0 <= zero_bin < weights.size:
            padded = np.pad(weights, 1)
            weights[zero_bin] = min(weights[zero_bin], max(padded[zero_bin], padded[zero_bin + 2]))
        return cls(float(np.ldexp(1.0, histogram.exponent)), histogram.first_bin, weights)


def search_range(bins: Bins, lo: float, hi: float, bit_width: int, cost: Cost) -> tuple[float, float]:
    """Return the (lo, hi) of least cost within [lo, hi], to about 1 %; of equals the widest.

    A grid of shares of both bounds, then finer ones around the best so far: about 700 candidates, 3 ms, at
    8 bits. A side that is 0 stays 0.

    Args:
        bins: The values' distribution.
        lo: Least value, <= 0.
        hi: Greatest value, >= 0.
        bit_width: Bits per code.
        cost: What to minimise.
    """
    sides = (lo < 0.0) + (hi > 0.0)
    size = (
        min(_MOST_CANDIDATES, int((_LOOK_UPS / 2**bit_width) ** (1 / 2))) if sides == 2 else _MOST_CANDIDATES
    )
    shares = np.geomspace(1.0, _SMALLEST_SHARE, size)
    best = (lo, hi)
    step = float(shares[0] / shares[1])
    for _ in range(_REFINEMENTS + 1):
        lows = np.maximum(best[0] * shares, lo) if lo < 0.0 else np.zeros(1)
        highs = np.minimum(best[1] * shares, hi) if hi > 0.0 else np.zeros(1)
        pairs = np.repeat(lows, highs.size), np.tile(highs, lows.size)
        winner = int(np.argmin(cost(bins, *pairs, bit_width)))
        best = float(pairs[0][winner]), float(pairs[1][winner])
        shares = np.geomspace(step, 1 / step, _NEIGHBOURS)
        step = step ** (2 / (_NEIGHBOURS - 1))
    return best


def expected_squared_error(bins: Bins, lo: Floats, hi: Floats, bit_width: int) -> Floats:
    """Return the mean squared error of each candidate range, for values spread evenly within bins.

    With levels q_0 < ... < q_m, steps s and b_j the middle between q_j and q_j+1, summation by parts gives
    E[(x - q(x))^2] = E[(x - q_m)^2] - 2 s sum_j E[max(b_j - x, 0)], clipping included.
    """
    scale, zero_point = range_grids(lo, hi, bit_width)
    scale /= bins.unit
    middles = (np.arange(2**bit_width - 1) + 0.5 - zero_point[:, None]) * scale[:, None]
    top = (2**bit_width - 1 - zero_point) * scale
    centres = bins.first_bin + np.arange(bins.weights.size) + 0.5
    mean = float(np.sum(bins.weights * centres))
    square = float(np.sum(bins.weights * (centres**2 + 1 / 12)))
    from_top = square - 2 * top * mean + top**2 * float(bins.weights.sum())
    return np.asarray(
        (from_top - 2 * scale * _expected_distance_below(bins, middles).sum(axis=1)) * bins.unit**2
    )


def _expected_distance_below(bins: Bins, points: Floats) -> Floats:
    """Return E[max(b - x, 0)] at each point b, in bins: the twice integrated density, a parabola in each bin."""
    slope = np.concatenate([[0.0], np.cumsum(bins.weights)])
    value = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2)])
    half_density = np.append(bins.weights / 2, 0.0)
    position = np.maximum(points - bins.first_bin, 0.0)
    index = np.minimum(position, bins.weights.size).astype(np.intp)
    position -= index
    result = half_density[index]
    result *= position
    result += slope[index]
    result *= position
    result += value[index]
    return result


def divergence(bins: Bins, lo: Floats, hi: Floats, bit_width: int) -> Floats:
    """Return the divergence of the coded distribution from the measured one, in nats, of each range.

    The measured one has what is clipped in its outer bins; the coded one spreads the weight of each code
    evenly over its bins that hold values, and lacks what is clipped.
    """
    total = float(bins.weights.sum())
    if total == 0.0:
        return np.zeros(lo.size)
    weights = bins.weights / total
    cuts = _code_cuts(bins, lo, hi, bit_width)
    first, last = cuts[:, 0], cuts[:, -1] - 1
    cumulative = np.concatenate([[0.0], np.cumsum(weights)])
    sums = np.diff(cumulative[cuts], axis=1)
    holding = np.diff(np.concatenate([[0], np.cumsum(weights > 0)])[cuts], axis=1)
    least = _SMOOTHING / (last + 1.0 - first)
    kept = np.maximum(cumulative[last + 1] - cumulative[first], np.finfo(np.float64).tiny)
    coded = (1 - _SMOOTHING) * sums / np.maximum(holding, 1) / kept[:, None] + least[:, None]
    logs = np.log(coded)
    cost = -(sums * logs).sum(axis=1)
    below, above = cumulative[first], np.maximum(cumulative[-1] - cumulative[last + 1], 0.0)
    for edge, clipped in ((first, below), (last, above)):
        code = np.argmax(cuts[:, 1:] > edge[:, None], axis=1)
        holds = weights[edge] > 0
        cost -= clipped * np.where(holds, logs[np.arange(lo.size), code], np.log(least))
    return np.asarray(cost + _negative_entropy(weights, first, last, below, above))


def _code_cuts(bins: Bins, lo: Floats, hi: Floats, bit_width: int) -> NDArray[np.intp]:
    """Return where the bins of each code start, and where the last code's stop: (N, 2^bit_width + 1) indices.

    A bin belongs to the code that its middle rounds to; bins that [lo, hi] does not touch belong to none.
    """
    scale, zero_point = range_grids(lo, hi, bit_width)
    scale /= bins.unit
    middles = (np.arange(2**bit_width - 1) + 0.5 - zero_point[:, None]) * scale[:, None] - bins.first_bin
    start = np.clip(np.floor(lo / bins.unit) - bins.first_bin, 0, bins.weights.size - 1)[:, None]
    stop = np.clip(np.floor(hi / bins.unit) - bins.first_bin, start[:, 0], bins.weights.size - 1)[:, None] + 1
    inner = np.clip(np.ceil(middles - 0.5), start, stop)
    return np.concatenate([start, inner, stop], axis=1).astype(np.intp)


def _negative_entropy(
    weights: Floats, first: NDArray[np.intp], last: NDArray[np.intp], below: Floats, above: Floats
) -> Floats:
    """Return the sum of p log p over bins first to last, where the outer two got `below` and `above` on top."""
    inside = np.concatenate([[0.0], np.cumsum(_p_log_p(weights))])
    is_single = first == last
    low = weights[first] + below + np.where(is_single, above, 0.0)
    high = np.where(is_single, 0.0, weights[last] + above)
    between = np.where(is_single, 0.0, inside[last] - inside[np.minimum(first + 1, last)])
    return np.asarray(between + _p_log_p(low) + _p_log_p(high))


def _p_log_p(p: Floats) -> Floats:
    return p * np.log(np.where(p > 0, p, 1.0))
