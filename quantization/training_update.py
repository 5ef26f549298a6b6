"""What devices send after training: sums of movements, exact in any order of merging.

The rules:

1. A movement travels times the device's weight (how many rows it trained on), as a fixed-point integer: shadow weights
   in steps of 2^-16 of the layer's step between codes, biases in 2^-16 of the step of its 8-bit output, steps as 2^-20
   of a natural logarithm. Integer addition is associative: a round gives the same bits whatever the order and grouping,
   and the sums can be taken under encryption. The average is taken once, on the server (FedAvg, arXiv:1602.05629).
2. Steps between codes are averaged as logarithms: the geometric mean. Steps are positive and act as factors, so halving
   on one device and doubling on another must cancel; an arithmetic mean would let the one that doubles win, and
   would make grids coarser with every round.
3. Channel moments are not part of it. A trained model's moments come from the round of histograms that follows, as
   merged `ChannelMoments`; they are never averaged as weights.
4. No device moves the average far: movements are clipped to `MAX_RMS` where they are made, and refused beyond it. Its
   weight is bounded by the request.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import IntArray
from quantization.errors import ConfigurationError, IncompatibleStatsError, MalformedError
from quantization.training_state import LayerState, TrainedState, TrainingGrid, on_grid

WEIGHT_BITS, STEP_BITS, BIAS_BITS, LOSS_BITS = 16, 20, 16, 20

MAX_MOVE = 8.0
"""Farthest that one weight may move in a round, in steps between codes; biases in 64 times their unit."""

MAX_RMS = 1.0
"""Greatest root mean square of a layer's movements of weights, in steps between codes."""

MAX_LOG_STEP = 0.7
"""Greatest movement of a step's logarithm: to half or to double."""

MAX_BIAS_MOVE = 64.0
MAX_LOSS = 1e4
MAX_SUM = 1 << 62
_TOLERANCE = 1.001  # fixed-point rounding of a device that clipped to a bound


@dataclass(frozen=True, slots=True)
class TrainedLayer:
    """Shape and units of one layer in training.

    Attributes:
        name: Of the layer.
        rows: Output channels, O.
        columns: Weights of each, K.
        grid: Its codes.
        has_bias: Whether it has one.
        bias_unit: Step of its 8-bit output, > 0: what a bias moves in.
    """

    name: str
    rows: int
    columns: int
    grid: TrainingGrid
    has_bias: bool
    bias_unit: float

    def __post_init__(self) -> None:
        if not (0 < self.rows <= 1 << 20 and 0 < self.columns <= 1 << 24):
            raise ConfigurationError(f"layer {self.name!r:.80} of {self.rows} x {self.columns} weights")
        if not (np.isfinite(self.bias_unit) and self.bias_unit > 0):
            raise ConfigurationError(f"layer {self.name!r:.80} with a bias unit of {self.bias_unit}")

    @property
    def size(self) -> int:
        """Elements of the layer in an update."""
        return self.rows * (self.columns + 1 + int(self.has_bias))

    def split(self, vector: NDArray[np.int64]) -> tuple[IntArray, IntArray, IntArray]:
        """Return weights (O, K), steps (O,) and bias (O,) or (0,) of the layer's part of a vector."""
        weights = self.rows * self.columns
        return (
            vector[:weights].reshape(self.rows, self.columns),
            vector[weights : weights + self.rows],
            vector[weights + self.rows :],
        )


@dataclass(frozen=True, slots=True)
class TrainingLayout:
    """Layers in the order that updates keep."""

    layers: tuple[TrainedLayer, ...]

    def __post_init__(self) -> None:
        if len({layer.name for layer in self.layers}) != len(self.layers) or not self.layers:
            raise ConfigurationError("training needs layers of different names")

    @property
    def size(self) -> int:
        """Elements of an update."""
        return sum(layer.size for layer in self.layers)

    @property
    def grids(self) -> dict[str, TrainingGrid]:
        """Grids by layer."""
        return {layer.name: layer.grid for layer in self.layers}

    def parts(self, vector: IntArray) -> list[tuple[TrainedLayer, IntArray]]:
        """Return each layer with its part of a vector."""
        ends = np.cumsum([layer.size for layer in self.layers])
        return list(zip(self.layers, np.split(vector, ends[:-1]), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class TrainingUpdate:
    """Sums over devices of weight times movement.

    Attributes:
        weight: Sum of the devices' weights.
        sums: int64, (layout.size,).
        measured: Rows that losses were measured on.
        loss: Sum of those rows' losses of the state that the round started from, in 2^-20.
    """

    weight: int
    sums: IntArray
    measured: int
    loss: int

    @classmethod
    def empty(cls, layout: TrainingLayout) -> "TrainingUpdate":
        """Return the identity of `merge`."""
        return cls(0, np.zeros(layout.size, np.int64), 0, 0)

    def merge(self, other: "TrainingUpdate") -> "TrainingUpdate":
        """Return the sums over both sides' devices.

        Raises:
            IncompatibleStatsError: If they are of different layers, or the sums would leave 62 bits.
        """
        if self.sums.shape != other.sums.shape:
            raise IncompatibleStatsError(f"updates of {self.sums.size} and {other.sums.size} elements")
        sums = self.sums + other.sums
        if sums.size and max(int(sums.max()), -int(sums.min())) > MAX_SUM:
            raise IncompatibleStatsError("updates that add up to more than 62 bits; train with fewer devices")
        return TrainingUpdate(
            self.weight + other.weight, sums, self.measured + other.measured, self.loss + other.loss
        )

    def mean_loss(self) -> float:
        """Return the mean loss per row; NaN where none was measured."""
        return self.loss / 2**LOSS_BITS / self.measured if self.measured else float("nan")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainingUpdate) and (
            (self.weight, self.measured, self.loss) == (other.weight, other.measured, other.loss)
            and np.array_equal(self.sums, other.sums)
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays


def measure_update(
    layout: TrainingLayout,
    start: TrainedState,
    trained: TrainedState,
    weight: int,
    *,
    loss: float = 0.0,
    measured: int = 0,
) -> TrainingUpdate:
    """Return one device's update.

    Args:
        layout: Of the round.
        start: The state that the round started from.
        trained: What the device made of it.
        weight: Rows it trained on.
        loss: Mean loss of the measured rows before training.
        measured: How many rows those were.
    """
    parts = []
    for layer in layout.layers:
        before, after = start[layer.name], trained[layer.name]
        moved = _clipped(_finite(after.weight - before.weight) / before.step[:, None])
        ratio = np.log(np.maximum(after.step.astype(np.float64), 1e-38) / before.step)
        parts.append(np.rint(moved * (weight << WEIGHT_BITS)).ravel())
        parts.append(np.rint(np.clip(_finite(ratio), -MAX_LOG_STEP, MAX_LOG_STEP) * (weight << STEP_BITS)))
        if layer.has_bias:
            bias = _finite(after.bias - before.bias) / layer.bias_unit
            parts.append(np.rint(np.clip(bias, -MAX_BIAS_MOVE, MAX_BIAS_MOVE) * (weight << BIAS_BITS)))
    total = min(loss, MAX_LOSS) if np.isfinite(loss) else MAX_LOSS
    sums = np.concatenate(parts).astype(np.int64)
    return TrainingUpdate(weight, sums, measured, round(total * measured * 2**LOSS_BITS))


def check_update(update: TrainingUpdate, layout: TrainingLayout, max_weight: int) -> None:
    """Refuse what no honest device sends.

    Raises:
        MalformedError: If the weight is not 1 to `max_weight`, or movements, steps or losses are beyond their bounds.
    """
    if not 0 <= update.weight <= max_weight or not 0 <= update.measured <= max_weight:
        raise MalformedError(
            f"an update of weight {update.weight} with {update.measured} rows measured; at most {max_weight}"
        )
    if update.sums.size != layout.size or not 0 <= update.loss <= MAX_LOSS * update.measured * 2**LOSS_BITS:
        raise MalformedError(
            f"an update of {update.sums.size} elements, {layout.size} expected, or of absurd loss"
        )
    if update.weight == 0:
        if update.sums.any():
            raise MalformedError("an update of no rows that moves something")
        return
    for layer, part in layout.parts(update.sums):
        weights, steps, bias = layer.split(part)
        moved = weights / float(update.weight << WEIGHT_BITS)
        found = np.abs(moved).max(), float(np.sqrt(np.square(moved).mean()))
        step = np.abs(steps).max() / float(update.weight << STEP_BITS)
        shift = np.abs(bias).max(initial=0) / float(update.weight << BIAS_BITS)
        bounds = MAX_MOVE, MAX_RMS, MAX_LOG_STEP, MAX_BIAS_MOVE
        if any(
            value > bound * _TOLERANCE for value, bound in zip((*found, step, shift), bounds, strict=True)
        ):
            raise MalformedError(
                f"layer {layer.name}: weights move by {found[0]:.3g} steps ({found[1]:.3g} root mean square), steps by "
                f"{step:.3g} and biases by {shift:.3g}; at most {bounds} pass"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Movement:
    """An average movement of all layers, with its momentum; in the units of updates, float64.

    Attributes:
        values: (layout.size,): steps between codes, logarithms, bias units.
    """

    values: NDArray[np.float64]

    @classmethod
    def none(cls, layout: TrainingLayout) -> "Movement":
        """Return the movement that moves nothing."""
        return cls(np.zeros(layout.size))

    def after(self, update: TrainingUpdate, layout: TrainingLayout, momentum: float) -> "Movement":
        """Return momentum x this + the average of an update: FedAvgM (arXiv:1909.06335)."""
        units = np.concatenate([_units(layer) for layer in layout.layers])
        average = update.sums / (units * max(update.weight, 1))
        return Movement(momentum * self.values + average)


def apply_movement(
    state: TrainedState, movement: Movement, layout: TrainingLayout, rate: float = 1.0
) -> dict[str, LayerState]:
    """Return the state moved by `rate` times a movement, on its grids."""
    result: dict[str, LayerState] = {}
    ends = np.cumsum([layer.size for layer in layout.layers])
    for layer, part in zip(layout.layers, np.split(rate * movement.values, ends[:-1]), strict=True):
        held, size = state[layer.name], layer.rows * layer.columns
        moved = part[:size].reshape(layer.rows, layer.columns)
        log_step = np.clip(part[size : size + layer.rows], -MAX_LOG_STEP, MAX_LOG_STEP)
        step = (held.step * np.exp(log_step)).astype(np.float32)
        weight = (held.weight + moved * held.step[:, None]).astype(np.float32)
        bias = held.bias + (part[size + layer.rows :] * layer.bias_unit) if layer.has_bias else held.bias
        result[layer.name] = LayerState(on_grid(weight, step, layer.grid), step, bias.astype(np.float32))
    return result


def _units(layer: TrainedLayer) -> NDArray[np.float64]:
    """Return the fixed-point units of each element of a layer's part."""
    counts = [layer.rows * layer.columns, layer.rows, layer.rows if layer.has_bias else 0]
    return np.repeat([2.0**WEIGHT_BITS, 2.0**STEP_BITS, 2.0**BIAS_BITS], counts)


def _finite(values: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _clipped(moved: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(moved, -MAX_MOVE, MAX_MOVE)
    size = float(np.sqrt(np.square(clipped).mean()))
    return clipped * min(1.0, MAX_RMS / size) if size > 0 else clipped


def states_equal(a: Mapping[str, LayerState], b: Mapping[str, LayerState]) -> bool:
    """Return whether two states are the same, bit for bit."""
    return a.keys() == b.keys() and all(
        np.array_equal(getattr(a[n], part), getattr(b[n], part))
        for n in a
        for part in ("weight", "step", "bias")
    )
