"""A layer's weights rounded on many grids at once: the candidates that an allocation chooses from.

The grids are stacked as rows of one matrix, so that a layer's columns are walked once for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.code_choice import greatest_code
from quantization.errors import ConfigurationError
from quantization.packing import needed_bit_width
from quantization.rounding import (
    RealArray,
    compensating_codes,
    damped,
    descend,
    refit,
    row_losses,
    shared_scales,
)
from quantization.scale_search import Grid, PackedGrid, RatedGrid, packed_scales, rated_scales
from quantization.second_moments import SecondMoments
from quantization.stored_size import estimated_size_bytes

PRICE_PER_BIT = 0.1
"""Price of one stored bit, in losses of one step of error in a typical column; 0.05 to 0.2 measure alike."""

_UNSEEN_CODES = 0.02  # occurrences that a code which does not occur is priced as
_MAX_ELEMENTS = 1 << 23  # of the matrices that grids are stacked to: 64 MiB each, of which about eight exist
_ROUNDS = 2  # of scales and codes in turn


@dataclass(frozen=True, slots=True, eq=False)
class RoundedLayer:
    """One candidate for a layer.

    Attributes:
        grid: What it was rounded on.
        codes: (O, K), int8, one row per output channel.
        scale: (O,), float32.
        loss: Mean square error of the layer's output, summed over its channels and what a bias cannot absorb.
        bias_shift: (O,): what the layer's bias must gain to keep its outputs' means.
        size_bytes: Codes as stored, and 4 bytes a scale; estimated for wide layers (`stored_size`).
    """

    grid: Grid
    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    loss: float
    bias_shift: RealArray
    size_bytes: int

    @property
    def bit_width(self) -> int:
        """Bits of the grid, or the fewest that hold every code."""
        return self.grid.bit_width if isinstance(self.grid, PackedGrid) else needed_bit_width(self.codes)

    @property
    def stored_bits(self) -> float:
        """Bits per weight as stored, scales included."""
        return self.size_bytes * 8 / self.codes.size

    @property
    def values(self) -> RealArray:
        """The weights that the codes stand for, (O, K)."""
        return self.codes * self.scale.astype(np.float64)[:, None]


def round_layer(
    weights: RealArray,
    moments: SecondMoments,
    grids: Sequence[Grid],
    *,
    is_centred: bool = True,
    damping: float = 0.01,
) -> list[RoundedLayer]:
    """Return the weights rounded on each grid.

    Where `moments` hold cross moments, the weights are first refitted to restore the reference's outputs, and the
    bias shift does so for their means.

    Args:
        weights: (O, K): a Conv's (O, I / groups, ...) flattened, a Gemm's (O, I), a MatMul's (I, O) transposed.
        moments: Of the layer's input; its groups divide O.
        grids: What to round on.
        is_centred: The layer has a bias, which absorbs mean errors.
        damping: Share of the mean of H's diagonal that is added to it.

    Raises:
        ConfigurationError: If weights and moments are of different layers.
    """
    if weights.ndim != 2 or weights.shape[1] != moments.columns or len(weights) % moments.groups:
        raise ConfigurationError(
            f"weights {weights.shape} with moments of {moments.groups} groups of {moments.columns} columns"
        )
    problem = _problem(weights, moments, is_centred, damping)
    held = damped(problem.hessian, damping)
    found = _rounded_all(problem.target, held, grids, moments.gram.shape[1])
    return [_candidate(grid, *found[grid], weights, problem) for grid in grids]


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """What a layer's rows are rounded to: `target` (M, R, B), by the loss under `hessian` (M, B, B)."""

    target: RealArray
    hessian: RealArray
    moments: SecondMoments
    is_centred: bool


def _problem(weights: RealArray, moments: SecondMoments, is_centred: bool, damping: float) -> _Problem:
    hessian = _flat(moments.covariance() if is_centred else moments.mean_square())
    target = _split(weights, moments)
    if moments.cross is not None:
        cross = _flat(moments.cross_covariance() if is_centred else moments.cross_mean_square())
        target = refit(target, hessian, cross, damping)
    return _Problem(target, hessian, moments, is_centred)


def _rounded_all(
    weights: RealArray, moments: RealArray, grids: Sequence[Grid], blocks: int
) -> dict[Grid, tuple[RealArray, RealArray]]:
    """Return steps (M, R) and codes (M, R, B) by grid."""
    result: dict[Grid, tuple[RealArray, RealArray]] = {}
    together = max(1, _MAX_ELEMENTS // weights.size)
    packed = [grid for grid in grids if isinstance(grid, PackedGrid)]
    for start in range(0, len(packed), together):
        saturating = packed[start : start + together]
        result.update(zip(saturating, _rounded_packed(weights, moments, saturating, blocks), strict=True))
    widths = sorted({grid.bit_width for grid in grids if isinstance(grid, RatedGrid)})
    for bit_width in widths:  # one width at a time: their codes have tables of prices of one length
        rated = [grid for grid in grids if isinstance(grid, RatedGrid) and grid.bit_width == bit_width]
        for start in range(0, len(rated), together):
            priced = rated[start : start + together]
            result.update(
                zip(priced, _rounded_rated(weights, moments, priced, bit_width, blocks), strict=True)
            )
    return result


def _rounded_packed(
    weights: RealArray, moments: RealArray, grids: Sequence[PackedGrid], blocks: int
) -> list[tuple[RealArray, RealArray]]:
    """Return steps and codes of every grid, computed as if each were more rows of the same matrices."""
    bit_widths = np.repeat([grid.bit_width for grid in grids], weights.shape[1])
    scale = np.concatenate(
        [packed_scales(weights, moments, grid.bit_width, blocks=blocks) for grid in grids], axis=1
    )
    rows = np.tile(weights, (1, len(grids), 1))
    codes = compensating_codes(rows, scale, moments, bit_widths)
    codes = descend(rows, scale, codes, moments, bit_widths)
    for _ in range(_ROUNDS):
        scale = shared_scales(rows, codes, moments, scale, blocks=blocks)
        codes = descend(rows, scale, codes, moments, bit_widths)
    return _by_grid(scale, codes, len(grids))


def _rounded_rated(
    weights: RealArray, moments: RealArray, grids: Sequence[RatedGrid], bit_width: int, blocks: int
) -> list[tuple[RealArray, RealArray]]:
    """Return steps and codes of every grid, likewise."""
    scale = np.concatenate(
        [rated_scales(weights, grid.step, bit_width, blocks=blocks) for grid in grids], axis=1
    )
    rows = np.tile(weights, (1, len(grids), 1))
    codes = compensating_codes(rows, scale, moments, bit_width)
    price = _prices(scale, codes, moments, len(grids), greatest_code(bit_width))
    for _ in range(_ROUNDS):
        codes = descend(rows, scale, codes, moments, bit_width, price=price, sweeps=2)
        scale = shared_scales(rows, codes, moments, scale, blocks=blocks)
    return _by_grid(scale, codes, len(grids))


def _by_grid(scale: RealArray, codes: RealArray, grids: int) -> list[tuple[RealArray, RealArray]]:
    return list(zip(np.split(scale, grids, axis=1), np.split(codes, grids, axis=1), strict=True))


def _prices(scale: RealArray, codes: RealArray, moments: RealArray, grids: int, qmax: int) -> RealArray:
    """Return the price of each code on each grid, (grids, 2 qmax + 1): its bits by its frequency in the layer."""
    pivots = 1.0 / np.diagonal(np.linalg.inv(moments), axis1=1, axis2=2)
    typical = float(np.exp(np.log(pivots).mean()))
    prices = []
    for s, q in _by_grid(scale, codes, grids):
        counts = np.bincount(q.astype(np.int64).ravel() + qmax, minlength=2 * qmax + 1)
        bits = -np.log2(np.maximum(counts, _UNSEEN_CODES) / q.size)
        prices.append(bits * PRICE_PER_BIT * float(np.square(s).mean()) * typical)
    return np.stack(prices)


def _candidate(
    grid: Grid, scale: RealArray, codes: RealArray, weights: RealArray, problem: "_Problem"
) -> RoundedLayer:
    error = problem.target - codes * scale[..., None]
    flat = _joined(codes, problem.moments).astype(np.int8)
    row_scale = scale.reshape(problem.moments.groups, -1, scale.shape[1])[:, 0].reshape(-1)
    values = flat * row_scale[:, None]
    shift = np.zeros(len(flat))
    if problem.is_centred:
        moments = problem.moments
        before = moments.mean() if moments.cross is None else moments.reference_mean()
        shift = _means(weights, before, moments) - _means(values, moments.mean(), moments)
    loss = float(row_losses(error, problem.hessian).sum())
    return RoundedLayer(grid, flat, row_scale.astype(np.float32), loss, shift, estimated_size_bytes(flat))


def _means(weights: RealArray, mean: RealArray, moments: SecondMoments) -> RealArray:
    """Return the mean of each output, (O,), for the mean of the input (G, N, B)."""
    flat = mean.reshape(moments.groups, -1)[:, : moments.columns]
    rows = weights.reshape(moments.groups, -1, moments.columns)
    return np.asarray(np.einsum("grk,gk->gr", rows, flat).reshape(-1), np.float64)


def _split(weights: RealArray, moments: SecondMoments) -> RealArray:
    """Return (O, K) rows as (G * N, O / G, B), zero beyond the last column."""
    blocks, block = moments.gram.shape[1:3]
    padded = np.zeros((moments.groups, len(weights) // moments.groups, blocks * block))
    padded[..., : moments.columns] = weights.reshape(*padded.shape[:2], moments.columns)
    split = padded.reshape(*padded.shape[:2], blocks, block)
    return np.ascontiguousarray(np.moveaxis(split, 2, 1)).reshape(moments.groups * blocks, -1, block)


def _joined(rows: RealArray, moments: SecondMoments) -> RealArray:
    """Return what `_split` took apart."""
    blocks, block = moments.gram.shape[1:3]
    split = np.moveaxis(rows.reshape(moments.groups, blocks, -1, block), 1, 2)
    return split.reshape(moments.groups * split.shape[1], blocks * block)[:, : moments.columns]


def _flat(matrices: RealArray) -> RealArray:
    """Return (G, N, B, B) as (G * N, B, B)."""
    return matrices.reshape(-1, *matrices.shape[2:])
