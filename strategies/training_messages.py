"""What a training round asks devices, as values; `strategies.training_records` writes them into Flower's records."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantization.affine import AffineParams
from quantization.errors import ConfigurationError
from quantization.training_settings import TrainingSettings
from quantization.training_state import TrainedState
from quantization.training_update import TrainingLayout

MAX_WEIGHT = 1 << 16
"""Greatest weight of one device in an average."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Asks devices to train a model for a few epochs on their own inputs.

    Attributes:
        model: Canonical ONNX bytes of the float model, channel corrections folded in: the reference that unlabelled
            inputs are trained towards.
        layers: What is trained, in the order that updates keep.
        state: Where this round starts.
        activations: 8-bit parameters by site.
        settings: How.
        round: Counts from 0; with the seed and the device's name it decides the order of inputs.
        max_weight: Rows that a device counts as, at most.
    """

    model: bytes
    layers: TrainingLayout
    state: TrainedState
    activations: Mapping[str, AffineParams]
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    round: int = 0
    max_weight: int = 4096

    def __post_init__(self) -> None:
        """Refuse what no device could train."""
        if {layer.name for layer in self.layers.layers} != set(self.state):
            raise ConfigurationError("the state of a training round must hold the layers that it trains")
        if not (0 <= self.round < 1 << 31 and 1 <= self.max_weight <= MAX_WEIGHT):
            raise ConfigurationError(f"training round {self.round} with weights up to {self.max_weight}")
