"""Federated quantization-aware training of a model's rounded weights: a few rounds between allocation and ranges.

The rules:

1. The start is a candidate: a state whose loss the fleet measured as greater is left again, for a nearer one. The loss
   of every round's start is measured by that round on the same rows, and a last round only measures.
2. The stored size does not grow: after every round the codes of each layer are moved back, where it costs least,
   until they take no more bits than at the start.
3. Equal replies give equal weights: sums are integers, everything else is a function of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantization.affine import AffineParams
from quantization.compile import site_params
from quantization.errors import ConfigurationError
from quantization.graph_plan import GraphPlan
from quantization.layer_codes import LayerCodes
from quantization.policy import Policy
from quantization.training_model import corrected_model, finish_state, start_state
from quantization.training_rate import fit_size, size_bits
from quantization.training_settings import DEFAULT_TRAINING, TrainingSettings
from quantization.training_state import LayerState, TrainedState, TrainingGrid
from quantization.training_update import Movement, TrainedLayer, TrainingLayout, apply_movement
from server.candidate import PlannedModel
from strategies.messages import DeviceHello
from strategies.rounds import RoundContext
from strategies.training_messages import TrainRequest
from strategies.training_round import train


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How long the fleet trains, and how its movements are followed.

    Attributes:
        rounds: Rounds that train; one more measures.
        local: What each device does in the first round; rates become slower until the last.
        momentum: Of the server (FedAvgM, arXiv:1909.06335).
        rate: What an average movement is multiplied with.
        max_weight: Rows that a device counts as, at most.
    """

    rounds: int = 5
    local: TrainingSettings = DEFAULT_TRAINING
    momentum: float = 0.5
    rate: float = 1.0
    max_weight: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= 10_000 or not 0 <= self.momentum < 1 or not 0 < self.rate <= 100:
            raise ConfigurationError(
                f"{self.rounds} rounds of training with momentum {self.momentum} and rate {self.rate}"
            )


BACKTRACK = 0.3
"""What is left of a movement that made the fleet's loss greater, and of all later rates."""

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


def train_weights(
    context: RoundContext,
    cohort: Sequence[DeviceHello],
    model: PlannedModel,
    policy: Policy,
    start: Mapping[str, LayerCodes],
    *,
    plan: TrainingPlan = DEFAULT_PLAN,
    learns_steps: bool | Mapping[str, bool] = True,
    on_round: RoundReportFunction = no_report,
) -> dict[str, LayerCodes]:
    """Return the weights after training; those of the start where training made nothing better.

    Args:
        context: Where the rounds run.
        cohort: The devices to ask; those that cannot train are left out.
        model: The float model.
        policy: Has the ranges and corrections that are trained with; its weights are not used.
        start: Rounded weights by layer; layers that are absent stay float, and are not trained.
        plan: How long, and how.
        learns_steps: Whether steps between codes are learned, of all layers or by layer.
        on_round: Called after every round.

    Raises:
        RoundFailedError: If fewer than the quorum answered, or no device can train.
        ConfigurationError: If the weights do not fit the model.
    """
    trainer = _Trainer.set_up(model, policy, start, learns_steps)
    state, movement = dict(trainer.start), Movement.none(trainer.layout)
    best, least, rate, length = dict(state), math.inf, 1.0, 1.0
    for number in range(plan.rounds + 1):
        local = plan.local.slowed(number / plan.rounds).scaled(rate)
        local = local if number < plan.rounds else replace(local, epochs=0)
        request = TrainRequest(
            trainer.model, trainer.layout, state, trainer.activations, local, number, plan.max_weight
        )
        outcome = train(context, cohort, request)
        update = outcome.value.update
        loss = update.mean_loss()
        on_round(
            TrainingRoundReport(
                number, loss, outcome.replied, outcome.seconds, outcome.reply_bytes, outcome.failed
            )
        )
        if loss < least:
            best, least, length = dict(state), loss, 1.0
            movement = movement.after(update, trainer.layout, plan.momentum)
        else:  # too far: go back, and less far along the same movement
            rate, length = rate * BACKTRACK, length * BACKTRACK
        if number < plan.rounds:
            state = trainer.fitted(apply_movement(best, movement, trainer.layout, plan.rate * length))
    return trainer.finish(best)


@dataclass(frozen=True, slots=True)
class _Trainer:
    """What stays the same over the rounds."""

    content: bytes
    plan: GraphPlan
    policy: Policy
    model: bytes
    layout: TrainingLayout
    start: TrainedState
    given: Mapping[str, LayerCodes]
    activations: Mapping[str, AffineParams]
    budgets: Mapping[str, float]

    @classmethod
    def set_up(
        cls,
        model: PlannedModel,
        policy: Policy,
        start: Mapping[str, LayerCodes],
        learns_steps: bool | Mapping[str, bool],
    ) -> "_Trainer":
        unknown = start.keys() - {layer.name for layer in model.plan.layers}
        if unknown or not start:
            raise ConfigurationError(
                f"rounded weights of {len(start)} layers, the model lacks {sorted(unknown)[:3]}"
            )
        grids = {
            name: TrainingGrid(
                max(
                    (1 << (codes.bit_width - 1)) - 1, int(np.abs(codes.codes).max())
                ),  # -16 takes 5 bits, as 15 does
                learns_steps if isinstance(learns_steps, bool) else learns_steps.get(name, True),
            )
            for name, codes in start.items()
        }
        activations = {site.name: site_params(site, policy) for site in model.plan.sites}
        state = start_state(model.content, model.plan, policy, start, grids)
        return cls(
            model.content,
            model.plan,
            policy,
            corrected_model(model.content, model.plan, policy.corrections),
            _layout(model.plan, grids, state, activations),
            state,
            start,
            activations,
            {name: size_bits(codes.codes) for name, codes in start.items()},
        )

    def fitted(self, state: TrainedState) -> dict[str, LayerState]:
        """Return the state with codes that take no more bits than at the start."""
        grids = self.layout.grids
        return {name: fit_size(layer, grids[name], self.budgets[name]) for name, layer in state.items()}

    def finish(self, state: TrainedState) -> dict[str, LayerCodes]:
        """Return the codes of a state; the given ones, exactly, where it is the start."""
        if all(state[name] is layer for name, layer in self.start.items()):
            return dict(self.given)
        return finish_state(self.content, self.plan, self.policy, state, self.layout.grids)


def _layout(
    plan: GraphPlan,
    grids: Mapping[str, TrainingGrid],
    state: TrainedState,
    activations: Mapping[str, AffineParams],
) -> TrainingLayout:
    layers = []
    for layer in plan.layers:
        if layer.name in grids:
            rows, columns = state[layer.name].weight.shape
            unit = 1.0 if layer.output_site is None else float(activations[layer.output_site].scale)
            layers.append(
                TrainedLayer(layer.name, rows, columns, grids[layer.name], layer.bias is not None, unit)
            )
    return TrainingLayout(tuple(layers))
