"""The search for the weights that meet a goal: allocate, have devices try, correct the gains, and try again.

Predictions add up what layers cost one by one. Devices then try the chosen weights as a whole. Where these cost much
more than predicted, the devices also try them with one layer at a time restored: layers that turn out to cost more in
place than their probes said get a larger gain, the rest keep theirs, and the weights are allocated again. The factors
are kept with the generation, and later ones start from them.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from quantization.bit_allocation import Allocation, Budget, pareto_front
from quantization.errors import ConfigurationError
from quantization.layer_codes import RoundedWeights
from quantization.second_moments import SecondMoments
from quantization.sensitivity import Gain, usable_gains
from server.field_probes import FieldProbes, Measured, measured
from server.folded import read, read_inputs
from server.found_weights import FoundWeights, found_weights
from server.generation import Generation
from server.precision import (
    Choice,
    Options,
    allocate,
    as_candidates,
    chosen,
    codes_of,
    fp32_weight_bytes,
    grids_for,
    predicted_loss,
    round_options,
    with_float_options,
)
from server.precision_settings import PrecisionSettings
from server.reference import Reference
from server.tuning import Base, Tuning
from server.weight_refinement import refined
from strategies.precision_messages import Probe
from strategies.probe_round import probe

FRONT_POINTS = 12
"""Allocations of the Pareto front that are reported, and tried by devices."""

SURPRISE = 10.0
"""Measured over predicted loss of whole models beyond which the gains are suspected; 3 to 6 is usual, for errors of
layers reinforce each other."""

_CHOSEN = "chosen"
_RESTORED_SHARE = 0.1  # of the model's loss, at least, that restoring one layer must win back to be its fault
_CORRECTIONS = 2  # of the gains, at most


@dataclass
class WeightSearch:
    """One search; `run` once.

    Attributes:
        tuning: Of the device class.
        generation: Its inputs and probes are folded.
        base: What devices run.
        settings: The goal.
        reference: What is compared with.
        moments: Of every layer's input.
        probes: What devices measured of layers.
        options: Ways to store each layer.
        gains: As probed.
        factors: Corrections of gains.
        tune_seconds: Time of the server's own work so far; the front, which is for the report, is not in it.
        tried_front: The Pareto front by the gains as probed, and what devices measured of it.
    """

    tuning: Tuning
    generation: Generation
    base: Base
    settings: PrecisionSettings
    reference: Reference
    moments: Mapping[str, SecondMoments]
    probes: FieldProbes
    options: Options
    gains: Mapping[str, Gain]
    factors: dict[str, float] = field(default_factory=dict)
    tune_seconds: float = 0.0
    tried_front: list[tuple[Allocation, Measured | None]] = field(default_factory=list)

    @classmethod
    def of(cls, tuning: Tuning, generation: Generation, base: Base) -> "WeightSearch":
        """Return the search for what the settings ask; all options are rounded."""
        search = cls.unrounded(tuning, generation, base)
        return search.with_statistics(search.moments, search.probes)

    @classmethod
    def unrounded(cls, tuning: Tuning, generation: Generation, base: Base) -> "WeightSearch":
        """Return the search before `with_statistics`: it has no options yet."""
        settings = tuning.settings.precision
        if settings is None:
            raise ConfigurationError("no precision is asked for")
        moments = read_inputs(tuning.blobs, generation.inputs_digest)
        probes = FieldProbes.from_bytes(read(tuning.blobs, generation.probes_digest))
        reference = Reference.of(tuning, generation, base)
        return cls(
            tuning, generation, base, settings, reference, moments, probes, {}, {}, _known_factors(tuning)
        )

    def with_statistics(self, moments: Mapping[str, SecondMoments], probes: FieldProbes) -> "WeightSearch":
        """Return the same search from other statistics; all options are rounded anew."""
        began = time.perf_counter()
        model, policy = self.tuning.model, self.reference.policy
        bits = self.tuning.registry.device_class(self.tuning.device_class).max_weight_bits
        grids = {
            layer.name: grids_for(self.settings, bits, model.draft.tensors[layer.weight].size)
            for layer in model.plan.layers
        }
        options = round_options(model, policy, moments, grids)
        options = with_float_options(options, self.settings, model, policy, moments)
        return replace(
            self,
            moments=moments,
            probes=probes,
            options=options,
            gains=probes.gains(),
            tune_seconds=time.perf_counter() - began,
        )

    def first_choice(self) -> Choice:
        """Return the choice that statistics alone decide, before any device tries it.

        Raises:
            ConfigurationError: If the goal is a drop, which devices must try.
        """
        if self.settings.max_drop is not None:
            raise ConfigurationError("what keeps to a drop is for devices to find out")
        if self.settings.weight_bits is not None:
            return {name: of_layer[0] for name, of_layer in self.options.items()}
        return self.allocate()

    def run(self) -> FoundWeights:
        """Return the weights that meet the goal with the least predicted loss."""
        choice, seen = self.meet_goal()
        weights = dict(codes_of(choice, self.reference.policy))
        better = refined(self, choice, weights)
        if better is not weights:
            seen = self.try_weights({_CHOSEN: better})[_CHOSEN]
        return found_weights(self, choice, better, seen)

    def values(self) -> dict[str, float]:
        """Return the gain of every layer, as corrected."""
        usable = usable_gains(self.gains, list(self.options))
        return {name: gain * self.factors.get(name, 1.0) for name, gain in usable.items()}

    def meet_goal(self) -> tuple[Choice, Measured | None]:
        """Return the choice that meets the goal, and what devices measured of it."""
        if self.settings.max_drop is not None:
            return self.smallest_within(self.settings.max_drop)
        choice = self.first_choice()
        if self.settings.weight_bits is not None:
            return choice, self.try_all({_CHOSEN: choice})[_CHOSEN]
        seen = self.try_front({_CHOSEN: choice})[_CHOSEN]
        for _ in range(_CORRECTIONS):
            if seen is None or seen.loss <= SURPRISE * predicted_loss(choice, self.values()):
                break
            if not self.correct_gains(choice, seen):
                break
            again = self.allocate()
            seen_again = self.try_all({_CHOSEN: again})[_CHOSEN]
            if seen_again is None or seen_again.loss >= seen.loss:
                break
            choice, seen = again, seen_again
        return choice, seen

    def allocate(self) -> Choice:
        """Return the best choice within the budget.

        Raises:
            ConfigurationError: If there is none; it names the smallest size, and how many times smaller that is.
        """
        began = time.perf_counter()
        fp32_bytes = fp32_weight_bytes(self.tuning.model)
        most = None if self.settings.size_ratio is None else int(fp32_bytes / self.settings.size_ratio)
        try:
            choice, _ = allocate(self.options, self.values(), self.budget(most), self.probes.latencies)
        except ConfigurationError as error:
            smallest = sum(min(option.size_bytes for option in of) for of in self.options.values())
            limit = f"weights get {fp32_bytes / smallest:.1f} times smaller than fp32 at most"
            raise ConfigurationError(f"{error}: {limit}") from error
        self.tune_seconds += time.perf_counter() - began
        return choice

    def budget(self, size_bytes: int | None) -> Budget:
        """Return a budget of so many bytes, and of the time that the settings allow."""
        return Budget(size_bytes, self.settings.latency_budget_seconds)

    def front(self) -> list[Allocation]:
        """Return the Pareto front, from the smallest size."""
        candidates = as_candidates(self.options, self.values(), self.probes.latencies)
        return pareto_front(candidates, FRONT_POINTS, self.settings.latency_budget_seconds)

    def try_front(self, more: Mapping[str, Choice]) -> dict[str, Measured | None]:
        """Return what devices measure of some choices, and have them try the front beside."""
        front = self.front()
        choices = {str(i): chosen(self.options, allocation) for i, allocation in enumerate(front)}
        seen = self.try_all({**choices, **more})
        self.tried_front = [(allocation, seen[str(i)]) for i, allocation in enumerate(front)]
        return {name: seen[name] for name in more}

    def smallest_within(self, max_drop: float) -> tuple[Choice, Measured | None]:
        """Return the smallest choice of the front that devices saw lose at most `max_drop` points.

        Raises:
            ConfigurationError: If even the largest loses more, or no device could try.
        """
        self.try_front({})
        tried = [(allocation, seen) for allocation, seen in self.tried_front if seen is not None]
        if not tried:
            raise ConfigurationError("no device has inputs to measure a drop with; ask for a size instead")
        best: tuple[Choice, Measured | None] | None = None
        for allocation, seen in reversed(
            tried
        ):  # from the largest: the first that loses too much ends the search
            if seen.drop > max_drop:
                break
            best = chosen(self.options, allocation), seen
        if best is None:
            raise ConfigurationError(
                f"the most precise weights lose {tried[-1][1].drop:.2f} points already, more than the {max_drop:g} "
                "allowed; allow more, or ask for a size"
            )
        return best

    def try_all(self, choices: Mapping[str, Choice]) -> dict[str, Measured | None]:
        """Return what devices measure of whole models."""
        return self.try_weights({n: codes_of(c, self.reference.policy) for n, c in choices.items()})

    def try_weights(self, models: Mapping[str, RoundedWeights]) -> dict[str, Measured | None]:
        """Return what devices measure of whole models; layers that the base runs in float stay so."""
        floats = self.reference.policy.float_layers
        probes = [
            Probe(name, self.reference.changed({n: codes for n, codes in weights.items() if n not in floats}))
            for name, weights in models.items()
        ]
        request = self.reference.probes_request(probes)
        outcome = self.tuning.ask(probe, request, self.generation, self.base)
        return {name: measured(outcome.value.replies.get(name, {})) for name in models}

    def correct_gains(self, choice: Choice, seen: Measured) -> bool:
        """Raise the gains of layers that cost more in place than their probes said; return whether there are any."""
        restored = {
            name: {**choice, name: min(self.options[name], key=lambda option: option.loss)}
            for name, option in choice.items()
            if option.rounded is not None
        }
        tried = self.try_all(restored)
        values, is_corrected = self.values(), False
        for name, other in restored.items():
            one, less = tried[name], choice[name].loss - other[name].loss
            if one is None or less <= 0 or seen.loss - one.loss < _RESTORED_SHARE * seen.loss:
                continue
            in_place = (seen.loss - one.loss) / less
            if in_place > values[name]:
                self.factors[name] = self.factors.get(name, 1.0) * in_place / values[name]
                is_corrected = True
        return is_corrected


def _known_factors(tuning: Tuning) -> dict[str, float]:
    """Return the corrections of gains that the last generation with weights of its own made."""
    for generation in reversed(tuning.registry.generations(tuning.model.digest, tuning.device_class)):
        if generation.weights:
            factors: dict[str, float] = json.loads(generation.weights)["gain_factors"]
            return dict(factors)
    return {}
