"""How much evidence moves a rollout."""

from dataclasses import dataclass

from quantization.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RolloutRules:
    """How much evidence moves a rollout.

    Attributes:
        false_alarm_rate: Greatest part of rollouts of an equal version that are taken back.
        miss_rate: Greatest part of rollouts of a version worse by the margin that become complete.
        rate_margin: Loss of accuracy or agreement to be found, as a part of the inputs.
        failure_margin: Likewise, of failures.
        latency_margin: Likewise, of the 95th percentile's log2.
        memory_margin: Likewise, of the memory's log2.
        unit_samples: Inputs with a label, or judged by the float model, that make a device's unit.
        block_size: Most devices with the base version that one canary is compared with.
        enough_labelled: Blocks with labels from which labels decide.
        least_units: Units of canaries without which no step passes; one of them is the step's own.
        step_seconds: How long a step waits to be shown not worse before it passes without.
        needs_proof: Whether the last step passes only when the version is shown not to be worse. Without, `miss_rate`
            is no promise: for fleets of a few dozen devices, which cannot show it.
        stall_seconds: How long a step may last.
        least_samples: Inputs that marks need.
        destroyed_drop: Drop of accuracy or agreement, and rise of failures, that is marked.
        slow_octaves: Rise of the 95th percentile's log2 that is marked.
        large_octaves: Rise of the memory's log2 that is marked.
        tolerated_marks: Part of devices that is marked under an equal version too.
    """

    false_alarm_rate: float = 0.02
    miss_rate: float = 0.02
    rate_margin: float = 0.02
    failure_margin: float = 0.01
    latency_margin: float = 0.25
    memory_margin: float = 0.15
    unit_samples: int = 100
    block_size: int = 8
    enough_labelled: int = 20
    least_units: int = 4
    step_seconds: float = 6 * 3600.0
    needs_proof: bool = True
    stall_seconds: float = 48 * 3600.0
    least_samples: int = 16
    destroyed_drop: float = 0.2
    slow_octaves: float = 2.0
    large_octaves: float = 1.0
    tolerated_marks: float = 0.02

    def __post_init__(self) -> None:
        """Refuse rates that are none."""
        for name in ("false_alarm_rate", "miss_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if not 0 < self.tolerated_marks < 0.2:
            raise ConfigurationError(f"tolerated_marks must lie in (0, 0.2), not {self.tolerated_marks}")
        if min(self.unit_samples, self.block_size, self.least_samples) < 1:
            raise ConfigurationError("unit_samples, block_size and least_samples are 1 or more")


DEFAULT_RULES = RolloutRules()
