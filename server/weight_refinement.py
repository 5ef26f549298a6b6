"""Weights after the allocation: rounded in sequence behind what is rounded already, and trained by the fleet."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quantization.layer_codes import RoundedWeights
from quantization.scale_search import Grid, PackedGrid
from quantization.second_moments import SecondMoments
from server.precision import Choice, Option, codes_of, round_options
from server.training import train_weights
from server.training_plan import TrainingPlan
from server.tuning import TRAINING
from strategies.inputs_round import gather_inputs

if TYPE_CHECKING:
    from server.weight_search import WeightSearch

_COARSER = (1.0, 1.02, 1.05, 1.1, 1.2)
"""Steps to try where other moments make a layer larger than it was allocated."""


def refined(search: "WeightSearch", choice: Choice, weights: RoundedWeights) -> RoundedWeights:
    """Return the weights rounded in sequence and trained, where the settings ask for it."""
    if search.settings.rounding_rounds > 1:
        weights = rounded_in_sequence(search, choice, weights)
    if search.settings.trains:
        weights = trained(search, weights)
    return weights


def rounded_in_sequence(search: "WeightSearch", choice: Choice, weights: RoundedWeights) -> RoundedWeights:
    """Return the weights rounded group by group of layers, each to restore what the reference's layers give.

    Every round asks for the moments of one group behind the layers that are rounded already, with cross moments.
    """
    names = [name for name, option in choice.items() if option.rounded is not None]
    groups = [
        list(group) for group in np.array_split(names, min(search.settings.rounding_rounds, len(names)))
    ]
    energies = {name: seen.energy for name, seen in search.base.lab.inputs.items()}
    done = {name: weights[name] for name in groups[0]}
    for group in groups[1:]:
        request = search.reference.inputs_request(group, done)
        outcome = search.tuning.ask(gather_inputs, request, search.generation, search.base, energies=energies)
        began = time.perf_counter()
        done |= rounded_within(search, choice, group, outcome.value.moments)
        search.tune_seconds += time.perf_counter() - began
    return done


def rounded_within(
    search: "WeightSearch", choice: Choice, names: Sequence[str], moments: Mapping[str, SecondMoments]
) -> RoundedWeights:
    """Return layers rounded anew on their grids, on a coarser one where they would need more bytes than before."""
    grids = {name: _coarser(choice[name]) for name in names}
    chosen_moments = {name: moments[name] for name in names}
    found = round_options(search.tuning.model, search.reference.policy, chosen_moments, grids)
    fitting = {
        name: next((o for o in options if o.size_bytes <= choice[name].size_bytes), options[-1])
        for name, options in found.items()
    }
    return codes_of(fitting, search.reference.policy)


def trained(search: "WeightSearch", weights: RoundedWeights) -> RoundedWeights:
    """Return the weights after federated training."""
    return train_weights(
        search.tuning.context(search.generation, search.base),
        search.tuning.cohort(search.generation, TRAINING),
        search.tuning.model,
        search.reference.policy,
        weights,
        plan=TrainingPlan(
            rounds=search.settings.train_rounds, rounding_rounds=search.settings.learned_rounding
        ),
        learns_steps=search.settings.weight_bits is not None,
    )


def _coarser(option: Option) -> tuple[Grid, ...]:
    """Return the grid that an option was rounded on, and some with slightly larger steps."""
    if option.rounded is None:
        return ()
    grid = option.rounded.grid
    if isinstance(grid, PackedGrid):
        return (grid,)
    return tuple(replace(grid, step=grid.step * factor) for factor in _COARSER)
