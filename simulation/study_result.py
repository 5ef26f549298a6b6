"""What a study of precision measured: which layers hurt, and what size costs; and its JSON form."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from quantization.errors import ConfigurationError, MalformedError

MIN_POINTS, DEFAULT_POINTS, MAX_POINTS = 2, 8, 64
"""Models that a Pareto front may be asked for."""

ALLOCATED, UNIFORM, FEDMPQ = "allocated", "uniform", "fedmpq"
METHODS: Final = (ALLOCATED, UNIFORM, FEDMPQ)
"""How bits were chosen: for the least predicted loss, the same everywhere, or by FedMPQ's rule
(arXiv:2311.18129, algorithm 2)."""


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """What fewer bits cost in one layer.

    Attributes:
        name: Of the layer.
        parameters: Weights, biases left out.
        gain: Nats of divergence per unit of the layer's loss.
        gain_low: Lower end of the gain's 95 % interval.
        gain_high: Upper end; None where one device alone measured it.
        devices: Devices that probed it.
        losses: Divergence that the layer is predicted to cause, nats, by the bit-width of its codes.
    """

    name: str
    parameters: int
    gain: float
    gain_low: float
    gain_high: float | None
    devices: int
    losses: Mapping[int, float]

    def loss_interval(self, bit_width: int) -> tuple[float, float]:
        """Return the 95 % interval of the loss at a bit-width, nats: that of the gain, times the layer's error."""
        loss = self.losses[bit_width]
        if not self.gain > 0:
            return loss, loss
        high = math.inf if self.gain_high is None else loss * self.gain_high / self.gain
        return loss * self.gain_low / self.gain, high


@dataclass(frozen=True, slots=True)
class FrontMeasurement:
    """One model of the front, or one to compare it with.

    Attributes:
        size_bytes: Bytes of all weights as stored.
        size_ratio: fp32 bytes of the weights over `size_bytes`.
        predicted_loss: Predicted divergence of the model, nats.
        bits: Bits of the codes by layer.
        stored_bits: Bits per weight as stored, scales and compression included, by layer.
        accuracy: Share of test rows that it gets right; None without labels.
        method: One of `METHODS`.
    """

    size_bytes: int
    size_ratio: float
    predicted_loss: float
    bits: Mapping[str, int]
    stored_bits: Mapping[str, float]
    accuracy: float | None
    method: str


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What `quantfleet-sim pareto` or `sensitivity` measured.

    Attributes:
        task: Name of the task, or of the model file.
        seed: Of splits, devices, drifts and faults.
        devices: Size of the fleet.
        layers: In the order of the graph.
        front: Models that were built; empty where only layers were measured.
        fp32_accuracy: Of the float model on the same test rows; None without labels.
        int8_accuracy: Of the model with 8-bit weights.
        fp32_weight_bytes: Bytes of all weights as float32.
        tune_seconds: Time the server took to round and allocate; rounds with devices not counted.
        wall_seconds: Of the whole command.
    """

    task: str
    seed: int
    devices: int
    layers: tuple[LayerSensitivity, ...]
    front: tuple[FrontMeasurement, ...]
    fp32_accuracy: float | None
    int8_accuracy: float | None
    fp32_weight_bytes: int
    tune_seconds: float
    wall_seconds: float

    def by_method(self, method: str) -> tuple[FrontMeasurement, ...]:
        """Return the models whose bits were chosen in one way, the smallest first."""
        return tuple(sorted((m for m in self.front if m.method == method), key=lambda m: m.size_bytes))

    def by_loss(self) -> tuple[LayerSensitivity, ...]:
        """Return the layers, the one that hurts most first: by predicted loss at the fewest bits, then by gain."""
        return tuple(sorted(self.layers, key=lambda layer: (-_worst(layer), -layer.gain, layer.name)))

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints: figures first; bit-widths are keys, so they are text."""
        figures = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("layers", "front")
        }
        layers = [
            asdict(layer) | {"losses": {str(b): loss for b, loss in sorted(layer.losses.items())}}
            for layer in self.layers
        ]
        return figures | {"layers": layers, "front": [asdict(point) for point in self.front]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Return what `to_json` returned.

        Raises:
            MalformedError: It is something else.
        """
        try:
            layers = tuple(
                LayerSensitivity(**{**layer, "losses": {int(b): loss for b, loss in layer["losses"].items()}})
                for layer in found["layers"]
            )
            front = tuple(FrontMeasurement(**point) for point in found["front"])
            return cls(**{**found, "layers": layers, "front": front})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MalformedError(f"not the result of a study: {error}") from error


def require_points(study: str, points: int) -> None:
    """Refuse a number of points that no front has.

    Raises:
        ConfigurationError: For "pareto", `points` is out of range.
    """
    if study == "pareto" and not MIN_POINTS <= points <= MAX_POINTS:
        raise ConfigurationError(f"points is {points}; give a whole number from {MIN_POINTS} to {MAX_POINTS}")


def _worst(layer: LayerSensitivity) -> float:
    return layer.losses[min(layer.losses)] if layer.losses else 0.0
