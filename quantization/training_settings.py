"""How a model is trained on one device, and how devices' updates are put together: settings without torch."""

import math
from dataclasses import dataclass, fields, replace

from quantization.augmentation import parse_augmentations
from quantization.errors import ConfigurationError

SLOWEST = 0.1
"""Part of a rate that is left at the end of training."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """One device's share of a training round.

    Rates are in natural units, so that one value fits every layer: weights in steps between codes, steps as parts of
    themselves, biases in steps of the layer's 8-bit output.

    Attributes:
        epochs: Passes over the device's inputs; 0 only measures the loss.
        batch_size: Inputs a step.
        weight_rate: Adam's step for shadow weights (arXiv:1412.6980), in steps between codes.
        step_rate: For steps, as a part of each; less where the loss is below 1 nat (`quantization.qat.pace`).
        bias_rate: For biases, in steps of the layer's output; likewise less.
        temperature: That soften both models' answers before they are compared (distillation, arXiv:1503.02531).
        label_weight: Of the cross entropy with labels beside the distillation; 0 ignores labels.
        distillation_weight: Of the distillation where a row has a label; rows without weigh 1.
        measured_rows: Inputs, at most, that the loss is measured on before training.
        augmentations: Of inputs, as typed; see `quantization.training_views`. Those that do not fit are left out.
        mixing: Most that one input takes of another, 0 to 1; 0 mixes none.
        hardening_from: Progress of learned rounding (`quantization.block_reconstruction`) at the first step, 0 to 1;
            at 1 rounding is not learned, but straight-through.
        hardening_to: Progress at the last step.
        seed: Of the order of inputs, and of what is made of them.
    """

    epochs: int = 1
    batch_size: int = 10
    weight_rate: float = 0.01
    step_rate: float = 0.01
    bias_rate: float = 0.3
    temperature: float = 2.0
    label_weight: float = 0.5
    distillation_weight: float = 1.0
    measured_rows: int = 32
    augmentations: tuple[str, ...] = ()
    mixing: float = 0.0
    hardening_from: float = 1.0
    hardening_to: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no training can use."""
        if not (0 <= self.epochs <= 1000 and 1 <= self.batch_size <= 1 << 16 and 0 <= self.seed < 1 << 63):
            raise ConfigurationError(
                f"{self.epochs} epochs of batches of {self.batch_size} with seed {self.seed}"
            )
        if not 0 <= self.measured_rows <= 1 << 16:
            raise ConfigurationError(f"the loss cannot be measured on {self.measured_rows} rows")
        if not 0 <= self.mixing <= 1:
            raise ConfigurationError(f"inputs cannot be mixed by {self.mixing}; give 0 to 1")
        if not 0 <= self.hardening_from <= self.hardening_to <= 1:
            raise ConfigurationError(
                f"hardening from {self.hardening_from} to {self.hardening_to}; give 0 to 1"
            )
        parse_augmentations(self.augmentations)
        for name in (f.name for f in fields(self) if f.type in (float, "float")):
            value = float(getattr(self, name))
            if not (math.isfinite(value) and 0 <= value <= 1e6) or (name == "temperature" and value < 1e-3):
                raise ConfigurationError(f"{name} {value} cannot be trained with")

    @property
    def learns_rounding(self) -> bool:
        """Whether weights are learned on their way to their codes, block by block."""
        return self.hardening_from < 1

    def slowed(self, share_done: float) -> "TrainingSettings":
        """Return the settings with the rates of a later round: half a cosine, down to a tenth (arXiv:1608.03983).

        Averages of noisy movements settle only as these become small.

        Args:
            share_done: Part of the training that is over, 0 to 1.
        """
        return self.scaled(SLOWEST + (1 - SLOWEST) * 0.5 * (1 + math.cos(math.pi * share_done)))

    def eased(self, share_done: float) -> "TrainingSettings":
        """Return the settings with the rates of a later round of learned rounding: whole until the last fifth.

        Args:
            share_done: Part of the training that is over, 0 to 1.
        """
        return self.scaled(min(1.0, max(SLOWEST, (1 - share_done) / 0.2)))

    def scaled(self, factor: float) -> "TrainingSettings":
        """Return the settings with all rates times `factor`."""
        return replace(
            self,
            weight_rate=factor * self.weight_rate,
            step_rate=factor * self.step_rate,
            bias_rate=factor * self.bias_rate,
        )


DEFAULT_TRAINING = TrainingSettings()

LEARNED_ROUNDING = TrainingSettings(
    epochs=4, batch_size=8, weight_rate=0.015, step_rate=0.0005, bias_rate=0.02, hardening_from=0.0
)
"""Of rounds in which rounding is learned: slow steps, and many, for what each moves adds up to noise in the others."""
