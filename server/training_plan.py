"""How long a fleet trains, and how; what is told of each round."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quantization.errors import ConfigurationError
from quantization.training_settings import DEFAULT_TRAINING, LEARNED_ROUNDING, TrainingSettings


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How long the fleet trains, and how its movements are followed.

    Attributes:
        rounds: Rounds of straight-through training; one more measures.
        local: What each device does in the first of them; rates become slower until the last.
        rounding_rounds: Rounds before these, in which rounding is learned (`quantization.block_reconstruction`).
        rounding: What each device does in those.
        rounding_devices: How many take part in each of those, at most, in turn.
        momentum: Of the server (FedAvgM, arXiv:1909.06335).
        rate: What an average movement is multiplied with.
        max_weight: Rows that a device counts as, at most.
    """

    rounds: int = 5
    local: TrainingSettings = DEFAULT_TRAINING
    rounding_rounds: int = 0
    rounding: TrainingSettings = LEARNED_ROUNDING
    rounding_devices: int = 10
    momentum: float = 0.5
    rate: float = 1.0
    max_weight: int = 4096

    def __post_init__(self) -> None:
        if not (
            0 <= self.rounds <= 10_000 and 0 <= self.rounding_rounds <= 10_000 and self.rounding_devices > 0
        ):
            raise ConfigurationError(
                f"{self.rounds} rounds of training after {self.rounding_rounds} with {self.rounding_devices} devices"
            )
        if not 0 <= self.momentum < 1 or not 0 < self.rate <= 100:
            raise ConfigurationError(f"training with momentum {self.momentum} and rate {self.rate}")


DEFAULT_PLAN = TrainingPlan()


@dataclass(frozen=True, slots=True)
class TrainingRoundReport:
    """One round, for whoever watches.

    Attributes:
        number: Counts from 0; the last one only measured.
        loss: Mean loss per row of the state that the round started from; NaN where no row was measured.
        devices: That trained.
        seconds: How long the round took.
        reply_bytes: What they sent.
        failed: Devices whose reply was not folded, by reason.
    """

    number: int
    loss: float
    devices: int
    seconds: float
    reply_bytes: int
    failed: Mapping[str, int]


RoundReportFunction = Callable[[TrainingRoundReport], None]


def no_report(_report: TrainingRoundReport) -> None:
    """Tell nobody."""
