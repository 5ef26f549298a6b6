"""Codes of a layer's weights that cost its output least, given the second moments of its input.

With W (R, K) the rows of a layer's weight, one per output channel, H = E[x x^T] (K, K) of its input and scales s (R,),
the loss of codes Q is exact: the mean square error of output r is d_r H d_r^T with d_r = w_r - s_r q_r. With H about the mean
it is the error that is left once the bias has absorbed the mean one. The steps, each of which lowers it:

1. `round_to_nearest`: where everything starts.
2. `compensating_codes`: column by column, each column's error is spread over those not yet rounded (GPTQ,
   arXiv:2210.17323, with its Cholesky form, damping and order by activation).
3. `descend`: coordinate descent on the codes; each code moves to the value that is best given all others, until
   sweeps change nothing. `optimal_scales` alternates with it: s = (w H q) / (q H q).

Codes may have a *price*: bits of storage times a multiplier. Steps 2 and 3 then minimise loss + price, which an entropy
coder behind them turns into bytes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.errors import ConfigurationError

Matrix = NDArray[np.float64]
"""Real values, float64: (R, K) weights, (K, K) moments, (R,) scales."""

_BLOCK = 64  # columns between updates of everything behind them: keeps what a column touches in cache
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, eq=False)
class RoundedRows:
    """Codes of weight rows and what they cost.

    Attributes:
        codes: (R, K), int8, in [-qmax, qmax].
        scale: Step of each row, (R,), float64 that holds float32 values.
        loss: Mean square error of each output, (R,), in units of the output squared.
    """

    codes: NDArray[np.int8]
    scale: Matrix
    loss: Matrix

    @property
    def values(self) -> Matrix:
        """The weights that the codes stand for, (R, K)."""
        return self.codes * self.scale[:, None]


def greatest_code(bit_width: int) -> int:
    """Return the greatest code of `bit_width` bits, 2 to 8; the least is its negative."""
    if not 2 <= bit_width <= 8:
        raise ConfigurationError(f"bit_width must be 2 to 8, got {bit_width}")
    return (1 << (bit_width - 1)) - 1


def row_losses(error: Matrix, moments: Matrix) -> Matrix:
    """Return d H d^T of each row of `error`, (R,): exact, in units of the output squared.

    Args:
        error: W minus the weights that stand for it, (R, K).
        moments: H, (K, K).
    """
    return np.maximum(np.einsum("rk,rk->r", error @ moments, error), 0.0)


def damped(moments: Matrix, damping: float = 0.01) -> Matrix:
    """Return H + l I, with l `damping` times the mean of the diagonal, and 1 where H is all zero.

    GPTQ's remedy (section 3.3) against directions that the calibration data never took.
    """
    mean = float(np.trace(moments)) / len(moments)
    return moments + np.eye(len(moments)) * (damping * mean if mean > 0 else 1.0)


def round_to_nearest(weights: Matrix, scale: Matrix, bit_width: int) -> NDArray[np.float64]:
    """Return the nearest code of each weight, (R, K), as float64; ties round to even."""
    qmax = greatest_code(bit_width)
    return np.clip(np.rint(weights / scale[:, None]), -qmax, qmax)


def compensating_codes(
    weights: Matrix,
    scale: Matrix,
    moments: Matrix,
    bit_width: int,
    *,
    price: Matrix | None = None,
    is_ordered: bool = True,
) -> NDArray[np.float64]:
    """Return codes rounded column by column, each column's error spread over the columns behind it, (R, K).

    Algorithm 1 of GPTQ (arXiv:2210.17323) for all rows at once: with U the upper Cholesky factor of H^-1, rounding
    column j costs e^2 for e = (w_j - s q_j) / U_jj, and the rest moves by -e U_j.

    Args:
        weights: W, (R, K).
        scale: (R,).
        moments: H, (K, K), positive definite: see `damped`.
        bit_width: 2 to 8.
        price: Price of each code -qmax to qmax, (2 qmax + 1,), in units of the loss; None for none.
        is_ordered: Round the columns with the largest H_jj first.
    """
    qmax = greatest_code(bit_width)
    columns = weights.shape[1]
    order = np.argsort(-np.diagonal(moments), kind="stable") if is_ordered else np.arange(columns)
    rest = np.array(weights[:, order], np.float64)
    upper = np.linalg.cholesky(np.linalg.inv(moments[np.ix_(order, order)])).T
    codes = np.empty_like(rest)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.empty((len(rest), end - start))
        for j in range(start, end):
            codes[:, j] = _best_codes(rest[:, j] / scale, scale / upper[j, j], qmax, price)
            errors[:, j - start] = (rest[:, j] - scale * codes[:, j]) / upper[j, j]
            rest[:, j + 1 : end] -= errors[:, j - start, None] * upper[j, j + 1 : end]
        rest[:, end:] -= errors @ upper[start:end, end:]
    result = np.empty_like(codes)
    result[:, order] = codes
    return result


def descend(
    weights: Matrix,
    scale: Matrix,
    codes: NDArray[np.float64],
    moments: Matrix,
    bit_width: int,
    *,
    price: Matrix | None = None,
    sweeps: int = 4,
) -> NDArray[np.float64]:
    """Return codes after coordinate descent on d H d^T plus price, (R, K): no row's sum ever grows.

    Given all other codes, the best real value of weight j is s q_j + (d H)_j / H_jj, and the best code is the
    nearest to it (or, with prices, the cheapest of the two next to it and the one nearer to 0).

    Args:
        weights: W, (R, K).
        scale: (R,).
        codes: Where to start, (R, K).
        moments: H, (K, K), positive diagonal.
        bit_width: 2 to 8.
        price: As in `compensating_codes`.
        sweeps: Most passes over the columns; it ends early where a pass changes nothing.
    """
    qmax = greatest_code(bit_width)
    codes = codes.copy()
    error = weights - scale[:, None] * codes
    diagonal = np.diagonal(moments)
    curvature = np.sqrt(diagonal)
    for _ in range(sweeps):
        before = codes.copy()
        for start in range(0, weights.shape[1], _BLOCK):
            end = min(start + _BLOCK, weights.shape[1])
            slope = error @ moments[:, start:end]
            for j in range(start, end):
                ideal = codes[:, j] + slope[:, j - start] / (diagonal[j] * scale)
                best = _best_codes(ideal, scale * curvature[j], qmax, price, codes[:, j])
                moved = scale * (codes[:, j] - best)
                codes[:, j] = best
                error[:, j] += moved
                slope += moved[:, None] * moments[j, start:end]
        if np.array_equal(before, codes):
            break
    return codes


def optimal_scales(weights: Matrix, codes: NDArray[np.float64], moments: Matrix, scale: Matrix) -> Matrix:
    """Return the scales that minimise d H d^T for these codes, (R,): s = (w H q) / (q H q).

    A row whose codes are all zero, or whose optimum is not positive, keeps its scale.

    Args:
        weights: W, (R, K).
        codes: Q, (R, K).
        moments: H, (K, K).
        scale: What such rows keep, (R,).
    """
    weighted = codes @ moments
    above = np.einsum("rk,rk->r", weighted, weights)
    below = np.einsum("rk,rk->r", weighted, codes)
    is_defined = (below > 0) & (above > 0)
    best = np.where(is_defined, above / np.where(below > 0, below, 1.0), scale)
    return np.maximum(best, _SMALLEST_SCALE).astype(np.float32).astype(np.float64)


def refit(weights: Matrix, moments: Matrix, cross: Matrix, damping: float = 0.01) -> Matrix:
    """Return the weights that restore the reference's outputs from inputs behind rounded layers, (R, K).

    W* = W (C + l I)(H + l I)^-1: least squares of W x_reference on x, held near W by l, `damping` times the mean of
    H's diagonal.

    Args:
        weights: W, (R, K).
        moments: H = E[x x^T] of what the layer gets now, (K, K).
        cross: C = E[x_reference x^T], (K, K).
        damping: Share of the mean of H's diagonal.
    """
    held = damped(moments, damping)
    return np.asarray(np.linalg.solve(held, (weights @ (cross + (held - moments))).T).T, np.float64)


def _best_codes(
    ideal: Matrix, weight: Matrix, qmax: int, price: Matrix | None, current: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the code nearest to `ideal`, or the cheapest of those that come into question.

    Args:
        ideal: Real values in units of the scale, (R,).
        weight: Root of what a squared step of error costs, (R,).
        qmax: Greatest code.
        price: Price of each code; None for none.
        current: Codes that count among the candidates, so that no choice is worse than to stay.
    """
    nearest = np.clip(np.rint(ideal), -qmax, qmax)
    if price is None:
        return nearest
    candidates = [nearest, np.clip(np.trunc(ideal), -qmax, qmax), np.zeros_like(nearest)]
    candidates += [] if current is None else [current]
    choices = np.stack(candidates)
    costs = np.square((choices - ideal) * weight) + price[choices.astype(np.int64) + qmax]
    return np.take_along_axis(choices, costs.argmin(0)[None], 0)[0]
