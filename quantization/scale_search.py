"""Steps between weight codes, one per output channel: where rounding starts from.

Two kinds of grid, because there are two ways to store codes:

* `PackedGrid(bit_width)`: codes take `bit_width` bits each. Steps are searched so that the loss under H is least when
  the codes saturate.
* `RatedGrid(step)`: codes are stored by an entropy coder, so their number is free and the *rate* is what costs. At
  equal rate a uniform grid that does not saturate beats a saturating one by up to 4 dB (entropy-coded scalar
  quantization: Gish and Pierce, 1968), and equal steps in all rows would be best were all rows coded with tables of
  their own; with one table, steps between equal and proportional to the row's size measure best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantization.code_choice import greatest_code
from quantization.errors import ConfigurationError
from quantization.rounding import RealArray, as_float32, round_to_nearest, row_losses

CLIP_RATIOS = tuple(float(r) for r in np.linspace(0.3, 1.0, 15))
"""Ends of the grid that are tried, as parts of a row's largest magnitude."""

_ROW_SIZE_POWER = 0.5  # of the row's size in its step: 0 equal steps, 1 proportional
_FARTHEST = 0.945  # part of the greatest code that weights may reach: leaves room for what compensation adds
_SMALLEST_ROW = 1e-3  # of the largest row's size: a row of zeros gets a step as well


@dataclass(frozen=True, slots=True)
class PackedGrid:
    """Codes of a fixed bit-width, stored packed.

    Attributes:
        bit_width: Bits per code, 2 to 8.
    """

    bit_width: int

    def __post_init__(self) -> None:
        greatest_code(self.bit_width)


@dataclass(frozen=True, slots=True)
class RatedGrid:
    """Codes of up to 8 bits behind an entropy coder.

    Attributes:
        step: Step of a row of typical size, as a part of the row's root mean square: 0.2 takes about 4.3 bits per
            weight, 0.5 about 3.0, 1.0 about 2.1, 2.0 about 1.3.
        bit_width: Most bits that a code may take, 2 to 8: 7 for processors whose int8 kernels saturate at 8.
    """

    step: float
    bit_width: int = 8

    def __post_init__(self) -> None:
        greatest_code(self.bit_width)
        if not 0 < self.step < np.inf:
            raise ConfigurationError(f"the step of a grid must be positive, got {self.step}")


Grid = PackedGrid | RatedGrid

PACKED_GRIDS = tuple(PackedGrid(b) for b in (2, 3, 4, 5, 6, 8))
RATED_GRIDS = tuple(
    RatedGrid(s) for s in (0.1, 0.2, 0.27, 0.35, 0.45, 0.55, 0.65, 0.78, 0.92, 1.1, 1.3, 1.6, 2.0)
)

WIDE_LAYER = 1 << 17
"""More weights than this make a layer wide."""


def affordable_grids(elements: int, grids: Sequence[Grid] = RATED_GRIDS) -> list[Grid]:
    """Return the grids to round a layer of so many weights on: all, or every second one for a wide layer.

    A model has few wide layers or many: with few, a coarse choice there is made good by the others; with many, the
    choices among them fill the gaps. Either way the time is nearly halved.
    """
    return list(grids) if elements <= WIDE_LAYER else list(grids[1::2])


def limited_grids(grids: Sequence[Grid], bit_width: int) -> list[Grid]:
    """Return the grids with codes of at most `bit_width` bits, none twice: what a class of devices can run."""
    limited = (replace(grid, bit_width=min(grid.bit_width, bit_width)) for grid in grids)
    return list(dict.fromkeys(limited))


def packed_scales(weights: RealArray, moments: RealArray, bit_width: int, *, blocks: int = 1) -> RealArray:
    """Return the steps, among `CLIP_RATIOS`, with the least d H d^T when rounded to nearest, (M, R).

    Args:
        weights: W, (M, R, K).
        moments: H, (M, K, K).
        bit_width: 2 to 8.
        blocks: Consecutive matrices that hold the columns of the same rows, and share their steps.
    """
    largest = _per_row(np.abs(weights).max(2), blocks).max(1)
    largest = np.where(largest > 0, largest, max(float(largest.max()), 1.0) * _SMALLEST_ROW)
    full = largest / greatest_code(bit_width)
    best, best_loss = full, np.full_like(full, np.inf)
    for ratio in CLIP_RATIOS:
        scale = np.repeat(as_float32(full * ratio), blocks, axis=0)
        error = weights - scale[..., None] * round_to_nearest(weights, scale, bit_width)
        loss = _per_row(row_losses(error, moments), blocks).sum(1)
        best, best_loss = np.where(loss < best_loss, full * ratio, best), np.minimum(loss, best_loss)
    return np.repeat(as_float32(best), blocks, axis=0)


def rated_scales(weights: RealArray, step: float, bit_width: int = 8, *, blocks: int = 1) -> RealArray:
    """Return the steps of a `RatedGrid`, (M, R): step * rms_r^0.5 * rms^0.5, rms the layer's geometric mean.

    A row whose greatest weight would not fit has a greater step.

    Args:
        weights: W, (M, R, K).
        step: See `RatedGrid`.
        bit_width: Most bits that a code may take.
        blocks: As in `packed_scales`.
    """
    size = np.sqrt(_per_row(np.square(weights).mean(2), blocks).mean(1))
    largest = float(size.max())
    size = np.maximum(size, _SMALLEST_ROW * largest) if largest > 0 else np.ones_like(size)
    typical = float(np.exp(np.log(size).mean()))
    scale = step * size**_ROW_SIZE_POWER * typical ** (1 - _ROW_SIZE_POWER)
    farthest = _per_row(np.abs(weights).max(2), blocks).max(1)
    return np.repeat(
        as_float32(np.maximum(scale, farthest / (_FARTHEST * greatest_code(bit_width)))), blocks, axis=0
    )


def _per_row(values: RealArray, blocks: int) -> RealArray:
    """Return (M, R) values of matrices as (M / blocks, blocks, R)."""
    return values.reshape(-1, blocks, values.shape[1])
