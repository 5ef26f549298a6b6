"""Federated quantization-aware training of a model's rounded weights: a few rounds between allocation and ranges.

The rules:

1. The start is a candidate: a state whose loss the fleet measured as greater is left again, for a nearer one. The loss
   of every round's start is measured by that round on the same rows, and a last round only measures.
2. The stored size does not grow: after every round the codes of each layer are moved back, where it costs least,
   until they take no more bits than at the start.
3. Where rounding is learned, that comes first: straight-through training goes on from its codes, if the fleet
   measures them as better than the start's.
4. Equal replies give equal weights: sums are integers, everything else is a function of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quantization.layer_codes import LayerCodes
from quantization.policy import Policy
from quantization.training_settings import TrainingSettings
from quantization.training_state import TrainedState
from quantization.training_update import Movement, TrainingUpdate, apply_movement
from server.candidate import PlannedModel
from server.trainer import Trainer
from server.training_plan import (
    DEFAULT_PLAN,
    RoundReportFunction,
    TrainingPlan,
    TrainingRoundReport,
    no_report,
)
from strategies.messages import DeviceHello
from strategies.rounds import RoundContext
from strategies.training_round import can_train, train

BACKTRACK = 0.3
"""What is left of a movement that made the fleet's loss greater, and of all later rates."""

UNROUNDED_CELL = 0.45
"""Farthest that a weight is from its code, in steps, where the learning of its rounding starts: it may be drawn to the
other side by little, and its code is still the one that it was given."""


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
    trainer = Trainer.set_up(model, policy, start, learns_steps)
    run = _Run(context, tuple(cohort), trainer, plan, on_round)
    learned = run.learn_rounding() if plan.rounding_rounds else None
    return trainer.finish(run.train_straight_through(learned))


@dataclass
class _Run:
    """One training.

    Attributes:
        number: Of the next round.
    """

    context: RoundContext
    cohort: Sequence[DeviceHello]
    trainer: Trainer
    plan: TrainingPlan
    on_round: RoundReportFunction
    number: int = field(default=0)

    def learn_rounding(self) -> TrainedState:
        """Return a state whose weights have the codes that they were drawn to."""
        trainer, plan = self.trainer, self.plan
        state: TrainedState = trainer.start_within(UNROUNDED_CELL)
        none = Movement.none(trainer.layout)
        able = sorted((device for device in self.cohort if can_train(device)), key=lambda device: device.rank)
        for index in range(plan.rounding_rounds):
            local = replace(
                plan.rounding.eased(index / plan.rounding_rounds),
                hardening_from=index / plan.rounding_rounds,
                hardening_to=(index + 1) / plan.rounding_rounds,
            )
            update = self.ask(_in_turn(able, index, plan.rounding_devices), state, local)
            moved = apply_movement(state, none.after(update, trainer.layout, 0.0), trainer.layout)
            state = trainer.fitted(moved)  # while weights are between two codes, and the other costs little
        return trainer.settled(state)

    def train_straight_through(self, learned: TrainedState | None) -> TrainedState:
        """Return the best state of the rounds that start from what was learned before, if anything was."""
        trainer, plan = self.trainer, self.plan
        best: TrainedState = dict(trainer.start)
        state = best
        least, rate, length = math.inf, 1.0, 1.0
        movement = Movement.none(trainer.layout)
        if learned is not None:
            measure = replace(plan.local, epochs=0)
            least = self.ask(self.cohort, best, measure).mean_loss()
            state = learned
        for index in range(plan.rounds + 1):
            is_last = index == plan.rounds
            local = plan.local.slowed(index / max(1, plan.rounds)).scaled(rate)
            update = self.ask(self.cohort, state, replace(local, epochs=0) if is_last else local)
            loss = update.mean_loss()
            if loss < least:
                best, least, length = dict(state), loss, 1.0
                movement = movement.after(update, trainer.layout, plan.momentum)
            elif state is not learned:  # too far: go back, and less far along the same movement
                rate, length = rate * BACKTRACK, length * BACKTRACK
            if not is_last:
                moved = apply_movement(best, movement, trainer.layout, plan.rate * length)
                state = trainer.fitted(moved)
        return best

    def ask(
        self, devices: Sequence[DeviceHello], state: TrainedState, local: TrainingSettings
    ) -> TrainingUpdate:
        """Return the sum of what devices answer to a state."""
        request = self.trainer.request(state, local, self.number, self.plan.max_weight)
        outcome = train(self.context, devices, request)
        update = outcome.value.update
        self.on_round(
            TrainingRoundReport(
                self.number,
                update.mean_loss(),
                outcome.replied,
                outcome.seconds,
                outcome.reply_bytes,
                outcome.failed,
            )
        )
        self.number += 1
        return update


def _in_turn(devices: Sequence[DeviceHello], index: int, most: int) -> list[DeviceHello]:
    """Return at most so many devices, spread over all, others in every round until each had its turn."""
    groups = -(-len(devices) // most)
    return list(devices[index % groups :: groups]) if devices else []
