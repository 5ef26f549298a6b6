"""What stays the same while a fleet trains rounded weights: the model, its layers, and the sizes they keep."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantization.affine import AffineParams
from quantization.compile import site_params
from quantization.errors import ConfigurationError
from quantization.graph_plan import GraphPlan
from quantization.layer_codes import LayerCodes
from quantization.policy import Policy
from quantization.training_model import corrected_model, finish_state, start_state
from quantization.training_rate import fit_size, size_bits
from quantization.training_settings import TrainingSettings
from quantization.training_state import CELL, LayerState, TrainedState, TrainingGrid
from quantization.training_update import TrainedLayer, TrainingLayout
from server.candidate import PlannedModel
from strategies.training_messages import TrainRequest


@dataclass(frozen=True, slots=True)
class Trainer:
    """What stays the same over the rounds.

    Attributes:
        content: The float model, canonical ONNX bytes.
        plan: What `graph.analyze` says of it.
        policy: Has the ranges and corrections that are trained with.
        model: `content` with the corrections folded in.
        layout: The layers that are trained.
        start: Where straight-through training starts.
        given: The weights that all training starts from.
        activations: 8-bit parameters by site.
        budgets: Bits that each layer's codes may take.
    """

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
    ) -> "Trainer":
        """Read the model and the weights.

        Raises:
            ConfigurationError: If the weights do not fit the model.
        """
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

    def request(
        self, state: TrainedState, local: TrainingSettings, number: int, max_weight: int
    ) -> TrainRequest:
        """Return what devices are asked in a round."""
        return TrainRequest(self.model, self.layout, state, self.activations, local, number, max_weight)

    def start_within(self, cell: float) -> dict[str, LayerState]:
        """Return the start with each weight at most `cell` steps from its code."""
        return self._state_of(self.given, cell)

    def settled(self, state: TrainedState) -> dict[str, LayerState]:
        """Return where straight-through training goes on from a state: with its codes, steps and biases."""
        weights = finish_state(self.content, self.plan, self.policy, state, self.layout.grids)
        return self._state_of(weights, CELL)

    def fitted(self, state: TrainedState) -> dict[str, LayerState]:
        """Return the state with codes that take no more bits than at the start."""
        grids = self.layout.grids
        return {name: fit_size(layer, grids[name], self.budgets[name]) for name, layer in state.items()}

    def finish(self, state: TrainedState) -> dict[str, LayerCodes]:
        """Return the codes of a state; the given ones, exactly, where it is the start."""
        if all(state[name] is layer for name, layer in self.start.items()):
            return dict(self.given)
        return finish_state(self.content, self.plan, self.policy, state, self.layout.grids)

    def _state_of(self, weights: Mapping[str, LayerCodes], cell: float) -> dict[str, LayerState]:
        return start_state(self.content, self.plan, self.policy, weights, self.layout.grids, cell=cell)


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
