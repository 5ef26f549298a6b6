"""What training learns of a model: shadow weights, steps and biases, as arrays that travel.

Rules:

1. A layer's stored codes follow from its shadow weights: code = clamp(rint(weight / step)). A state that was made of
   codes gives the same codes back, exactly, until training moves it.
2. Shadow weights stay on their grid, |weight| <= greatest code x step, where the straight-through gradient is not zero.
3. Weights, steps and biases are those of the *corrected* model: a layer's channel correction is folded into all three,
   and taken out again where codes are made of a state.

NumPy alone: a device that cannot train still knows the types.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.errors import ConfigurationError
from quantization.layer_codes import LayerCodes
from quantization.renormalization import ChannelCorrection

CELL = 0.3
"""How far from its code a weight starts at most, in steps.

Half a step would keep the most of the float weight, but rounding by second moments leaves many weights at an edge of
their cell or beyond it: the first noisy steps would turn all of those over at once, and undo the rounding."""


@dataclass(frozen=True, slots=True)
class TrainingGrid:
    """What a layer's codes may be.

    Attributes:
        greatest_code: Codes lie in [-greatest_code, greatest_code]: 1 for 2 bits, 127 for 8.
        learns_step: Its steps are trained. Off where the codes are entropy coded and the step decides their size.
    """

    greatest_code: int
    learns_step: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.greatest_code <= 127:
            raise ConfigurationError(f"greatest weight code {self.greatest_code} is not 1 to 127")


@dataclass(frozen=True, slots=True, eq=False)
class LayerState:
    """One layer in training.

    Attributes:
        weight: Shadow weights, float32 (O, K).
        step: Between codes, float32 (O,), > 0.
        bias: float32 (O,); empty where the layer has none.
    """

    weight: NDArray[np.float32]
    step: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        rows = len(self.step)
        if self.weight.ndim != 2 or len(self.weight) != rows or self.bias.shape not in ((rows,), (0,)):
            raise ConfigurationError(
                f"shadow weights {self.weight.shape} with steps {self.step.shape} and bias {self.bias.shape}"
            )
        is_finite = np.isfinite(self.weight).all() and np.isfinite(self.bias).all()
        if not (is_finite and np.isfinite(self.step).all() and (self.step > 0).all()):
            raise ConfigurationError("a layer in training must be finite, with positive steps")


TrainedState = Mapping[str, LayerState]
"""By layer."""


def start_layer(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    codes: LayerCodes,
    correction: ChannelCorrection,
    grid: TrainingGrid,
    *,
    cell: float = CELL,
) -> LayerState:
    """Return where a layer's training starts: its float weights, each moved into the cell of its code.

    Args:
        weight: Float weights, (O, K), before any correction.
        bias: Float bias, (O,), before any correction; None where the layer has none.
        codes: What rounding made of it.
        correction: Of the layer's channels.
        grid: Its codes.
        cell: See `CELL`.

    Raises:
        ConfigurationError: If shapes differ, or a code lies beyond the grid.
    """
    if codes.codes.shape != weight.shape or np.abs(codes.codes).max(initial=0) > grid.greatest_code:
        raise ConfigurationError(
            f"codes {codes.codes.shape} within {grid.greatest_code} for weights {weight.shape}"
        )
    gain = correction.gain
    step = (codes.scale * gain).astype(np.float32)
    ratio = weight * gain[:, None] / step[:, None]
    start = np.clip(ratio, codes.codes - cell, codes.codes + cell)
    shadow = on_grid((start * step[:, None]).astype(np.float32), step, grid)
    if bias is None:
        return LayerState(shadow, step, np.zeros(0, np.float32))
    moved = (bias + codes.bias_shift) * gain + correction.offset
    return LayerState(shadow, step, moved.astype(np.float32))


def on_grid(
    weight: NDArray[np.float32], step: NDArray[np.float32], grid: TrainingGrid
) -> NDArray[np.float32]:
    """Return the weights clamped to the ends of their grid."""
    end = step[:, None] * np.float32(grid.greatest_code)
    return np.clip(weight, -end, end)


def codes_of(state: LayerState, grid: TrainingGrid) -> NDArray[np.int8]:
    """Return the codes that a layer's shadow weights stand for, (O, K)."""
    codes = np.rint(state.weight / state.step[:, None])
    return np.asarray(np.clip(codes, -grid.greatest_code, grid.greatest_code), np.int8)


def finish_layer(
    state: LayerState, grid: TrainingGrid, bias: NDArray[np.float32] | None, correction: ChannelCorrection
) -> LayerCodes:
    """Return the codes, scales and bias shifts of a trained layer, with its correction taken out.

    Args:
        state: The layer.
        grid: Its codes.
        bias: Float bias of the model before any correction; None where the layer has none.
        correction: The one that the state was started with.
    """
    shift = np.zeros(len(state.step))
    if bias is not None:
        shift = (state.bias.astype(np.float64) - correction.offset) / correction.gain - bias
    scale = (state.step / correction.gain).astype(np.float32)
    return LayerCodes(codes_of(state, grid), scale, shift)
