"""Codes of weights that cost a layer's output least, given the second moments of its input.

With W the rows of a weight, one per output channel, H = E[x x^T] of what they meet and a scale s per row, the loss of
codes Q is exact: the mean square error of an output is d H d^T with d = w - s q. (With H about the mean it is what
is left once the bias has absorbed the mean error.) The steps, each lower than the one before:

1. `round_to_nearest`.
2. `compensating_codes`: each column's error is spread over the columns not yet rounded (GPTQ, arXiv:2210.17323).
3. `descend`: coordinate descent; each code moves to the value that is best given all others, until a sweep changes
   nothing. `optimal_scales` alternates with it.

Codes may have a *price*: what an entropy coder makes of them, in units of the loss. Steps 2 and 3 then minimise
loss plus price. Everything is batched over M matrices: the groups of a convolution, the blocks of a wide layer.
"""

import numpy as np
from numpy.typing import NDArray

from quantization.code_choice import CodeChoice, greatest_code

RealArray = NDArray[np.float64]
"""Weights (M, R, K), moments (M, K, K), scales (M, R), and codes while they are worked on."""

_BLOCK = 64  # columns between updates of everything behind them
_CHUNK = 2048  # rows, over all matrices, at a time: keeps what a block touches in cache


def row_losses(error: RealArray, moments: RealArray) -> RealArray:
    """Return d H d^T of each row, (M, R): exact, in units of the output squared.

    Args:
        error: W minus the weights that stand for it, (M, R, K).
        moments: H, (M, K, K).
    """
    return np.asarray(np.maximum(np.einsum("mrk,mrk->mr", error @ moments, error), 0.0), np.float64)


def damped(moments: RealArray, damping: float = 0.01) -> RealArray:
    """Return H + l I, with l `damping` times the mean of H's diagonal, or 1 where H is all zero.

    GPTQ's remedy (arXiv:2210.17323, section 3.3) for directions that no calibration input takes.
    """
    size = moments.shape[-1]
    mean = np.trace(moments, axis1=-2, axis2=-1) / size
    added = np.where(mean > 0, damping * mean, 1.0)
    return np.asarray(moments + np.eye(size) * added[..., None, None], np.float64)


def round_to_nearest(weights: RealArray, scale: RealArray, bit_width: int) -> RealArray:
    """Return the nearest code of each weight, (M, R, K); ties round to even."""
    qmax = greatest_code(bit_width)
    return np.clip(np.rint(weights / scale[..., None]), -qmax, qmax)


def compensating_codes(
    weights: RealArray,
    scale: RealArray,
    moments: RealArray,
    bit_width: int | NDArray[np.int64],
    *,
    price: RealArray | None = None,
    is_ordered: bool = True,
) -> RealArray:
    """Return codes rounded column by column, each error spread over the columns behind it, (M, R, K).

    Algorithm 1 of GPTQ (arXiv:2210.17323), all rows at once: with U the upper Cholesky factor of H^-1, rounding
    column j costs e^2 for e = (w_j - s q_j) / U_jj, and what is left of the row moves by -e U_j.

    Args:
        weights: W, (M, R, K).
        scale: Steps, (M, R).
        moments: H, (M, K, K), positive definite: see `damped`.
        bit_width: 2 to 8; or one per row, (R,).
        price: Price of the codes -qmax to qmax in each of P equal parts of the rows, (P, 2 qmax + 1), in units of the
            loss; None for none.
        is_ordered: Round the columns with the largest H_jj first.
    """
    matrices, rows, columns = weights.shape
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    order = (
        np.argsort(-diagonal, axis=1, kind="stable")
        if is_ordered
        else np.tile(np.arange(columns), (matrices, 1))
    )
    inverse = np.linalg.inv(
        np.take_along_axis(np.take_along_axis(moments, order[:, :, None], 1), order[:, None], 2)
    )
    lower = np.linalg.cholesky(inverse)
    choice = CodeChoice.of(bit_width, rows, price)
    result = np.empty((matrices, rows, columns))
    for part in _chunks(matrices, rows):
        rest = np.take_along_axis(np.swapaxes(weights[:, part], 1, 2), order[:, :, None], 1)
        codes = _compensated(rest.astype(np.float64), scale[:, part], lower, choice.part(part))
        placed = np.empty_like(codes)
        np.put_along_axis(placed, order[:, :, None], codes, 1)
        result[:, part] = np.swapaxes(placed, 1, 2)
    return result


def _compensated(rest: RealArray, scale: RealArray, lower: RealArray, choice: CodeChoice) -> RealArray:
    """Return the codes of columns (M, K, R), which are used up; `lower` is U^T."""
    columns = rest.shape[1]
    inverse_scale, square = 1.0 / scale, np.square(scale)
    codes = np.empty_like(rest)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.empty((len(rest), end - start, rest.shape[2]))
        for j in range(start, end):
            pivot = lower[:, j, j, None]
            column = rest[:, j]
            if j > start:
                column -= (lower[:, j, None, start:j] @ errors[:, : j - start])[:, 0]
            codes[:, j] = code = choice.best(column * inverse_scale, square / np.square(pivot))
            np.divide(column - scale * code, pivot, out=errors[:, j - start])
        if end < columns:
            rest[:, end:] -= lower[:, end:, start:end] @ errors
    return codes


def descend(
    weights: RealArray,
    scale: RealArray,
    codes: RealArray,
    moments: RealArray,
    bit_width: int | NDArray[np.int64],
    *,
    price: RealArray | None = None,
    sweeps: int = 4,
) -> RealArray:
    """Return codes after coordinate descent on d H d^T plus price, (M, R, K): no row's sum grows.

    Given all other codes of a row, the best real value of code j is q_j + (d H)_j / (s H_jj), and the best code is
    the nearest to it (or the cheapest of those in question, where codes have prices).

    Args:
        weights: W, (M, R, K).
        scale: Steps, (M, R).
        codes: Where to start, (M, R, K).
        moments: H, (M, K, K), with a positive diagonal.
        bit_width: 2 to 8; or one per row, (R,).
        price: As in `compensating_codes`.
        sweeps: Most passes over the columns; it ends where one changes nothing.
    """
    choice = CodeChoice.of(bit_width, weights.shape[1], price)
    result = np.empty_like(codes)
    for part in _chunks(*weights.shape[:2]):
        moved = np.ascontiguousarray(np.swapaxes(codes[:, part], 1, 2))
        error = np.swapaxes(weights[:, part], 1, 2) - scale[:, None, part] * moved
        for _ in range(sweeps):
            if not _sweep(moved, error, scale[:, part], moments, choice.part(part)):
                break
        result[:, part] = np.swapaxes(moved, 1, 2)
    return result


def _sweep(
    codes: RealArray, error: RealArray, scale: RealArray, moments: RealArray, choice: CodeChoice
) -> bool:
    """Move every code (M, K, R) once, in place, and the errors (M, K, R) with them; return whether one moved."""
    columns = codes.shape[1]
    square, inverse_scale = np.square(scale), 1.0 / scale
    is_changed = False
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        slope = moments[:, start:end] @ error
        moved = np.zeros_like(slope)
        first = end  # first column of the block that moved
        for j in range(start, end):
            diagonal = moments[:, j, j, None]
            column = slope[:, j - start]
            if first < j:
                behind = moments[:, j, None, first:j] @ moved[:, first - start : j - start]
                column += behind[:, 0]
            column *= inverse_scale
            column /= diagonal
            current = codes[:, j]
            column += current
            curvature = square * diagonal
            best = choice.no_worse(column, curvature, choice.best(column, curvature), current)
            if best is None:
                continue
            is_changed, first = True, min(first, j)
            np.multiply(current - best, scale, out=moved[:, j - start])
            error[:, j] += moved[:, j - start]
            codes[:, j] = best
    return is_changed


def _chunks(matrices: int, rows: int) -> list[slice]:
    """Return parts of the rows such that a column of a part has about `_CHUNK` elements."""
    parts = max(1, round(matrices * rows / _CHUNK))
    size = -(-rows // parts)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def optimal_scales(weights: RealArray, codes: RealArray, moments: RealArray, scale: RealArray) -> RealArray:
    """Return the steps that minimise d H d^T for these codes, (M, R): s = (w H q) / (q H q), rounded to float32.

    Where a row spans several matrices (blocks of a wide layer), see `shared_scales`.

    Args:
        weights: W, (M, R, K).
        codes: Q, (M, R, K).
        moments: H, (M, K, K).
        scale: Kept by rows without codes or without a positive optimum, (M, R).
    """
    return shared_scales(weights, codes, moments, scale, blocks=1)


def shared_scales(
    weights: RealArray, codes: RealArray, moments: RealArray, scale: RealArray, *, blocks: int
) -> RealArray:
    """Return `optimal_scales` where each row lies in `blocks` consecutive matrices, with one step for all of them."""
    weighted = codes @ moments
    above, below = (
        np.einsum("mrk,mrk->mr", weighted, other).reshape(-1, blocks, scale.shape[1]).sum(1)
        for other in (weights, codes)
    )
    kept = scale.reshape(-1, blocks, scale.shape[1])[:, 0]
    is_defined = (below > 0) & (above > 0)
    best = np.where(is_defined, above / np.where(below > 0, below, 1.0), kept)
    return np.repeat(as_float32(best), blocks, axis=0)


def as_float32(scale: RealArray) -> RealArray:
    """Return steps as float64 that hold what float32 can, so that codes are chosen for the steps that are stored."""
    return np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32).astype(np.float64)


def refit(weights: RealArray, moments: RealArray, cross: RealArray, damping: float = 0.01) -> RealArray:
    """Return the weights that restore the reference's outputs from inputs behind rounded layers, (M, R, K).

    W* = W (C + l I)(H + l I)^-1: least squares of W x_reference on x, held near W by l.

    Args:
        weights: W, (M, R, K).
        moments: H = E[x x^T] of what the layer gets now, (M, K, K).
        cross: C = E[x_reference x^T], (M, K, K).
        damping: l as a share of the mean of H's diagonal.
    """
    held = damped(moments, damping)
    wanted = weights @ (cross + (held - moments))
    return np.asarray(np.swapaxes(np.linalg.solve(held, np.swapaxes(wanted, 1, 2)), 1, 2), np.float64)
