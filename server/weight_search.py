"""The search for the weights that meet a goal: allocate, have devices try, correct the gains, and try again.

Predictions add up what layers cost one by one. Devices then try the chosen weights as a whole. Where these cost much
more than predicted, the devices also try them with one layer at a time restored: layers that turn out to cost more in
place than their probes said get a larger gain, the rest keep theirs, and the weights are allocated again. The factors
are kept with the generation, and later ones start from them.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from quantization.bit_allocation import Allocation, Budget, pareto_front
from quantization.errors import ConfigurationError
from quantization.layer_codes import LayerCodes, RoundedWeights, to_bytes
from quantization.scale_search import Grid, PackedGrid
from quantization.second_moments import SecondMoments
from quantization.sensitivity import Gain, usable_gains
from quantization.stored_size import stored_size_bytes
from server.field_probes import FieldProbes, Measured, measured
from server.folded import read, read_inputs
from server.generation import Generation
from server.precision import (
    Choice,
    Option,
    Options,
    allocate,
    as_candidates,
    chosen,
    codes_of,
    exact_bytes,
    floats_of,
    fp32_weight_bytes,
    grids_for,
    predicted_loss,
    round_options,
    with_float_options,
)
from server.precision_record import FrontPoint, LayerPrecision, PrecisionRecord
from server.precision_settings import PrecisionSettings
from server.reference import Reference
from server.training import TrainingPlan, train_weights
from server.tuning import TRAINING, Base, Tuning
from strategies.inputs_round import gather_inputs
from strategies.precision_messages import Probe
from strategies.probe_round import probe

FRONT_POINTS = 16
"""Allocations of the Pareto front that are reported, and tried where a drop is to be kept."""

SURPRISE = 10.0
"""Measured over predicted loss of whole models beyond which the gains are suspected; 3 to 6 is usual, for errors of
layers reinforce each other."""

_RESTORED_SHARE = 0.1  # of the model's loss, at least, that restoring one layer must win back to be its fault
_CORRECTIONS = 2  # of the gains, at most
_ESTIMATES = 4  # allocations, at most, until estimated sizes are right
_COARSER = (1.0, 1.02, 1.05, 1.1, 1.2)  # steps to try, where other moments make a layer larger


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """What a search found.

    Attributes:
        content: The rounded weights (`quantization.layer_codes`).
        bit_widths: Of the layers that have codes.
        float_layers: Float type of the others.
        gain_factors: By layer whose gain was corrected: what to multiply later estimates by.
        record: How, and why.
    """

    content: bytes
    bit_widths: Mapping[str, int]
    float_layers: Mapping[str, str]
    gain_factors: Mapping[str, float]
    record: PrecisionRecord


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
        tune_seconds: Time of the server's own work so far.
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

    @classmethod
    def of(cls, tuning: Tuning, generation: Generation, base: Base) -> "WeightSearch":
        """Return the search for what the settings ask; all options are rounded."""
        settings = tuning.settings.precision
        if settings is None:
            raise ConfigurationError("no precision is asked for")
        moments = read_inputs(tuning.blobs, generation.inputs_digest)
        probes = FieldProbes.from_bytes(read(tuning.blobs, generation.probes_digest))
        reference = Reference.of(tuning, generation, base)
        search = cls(
            tuning, generation, base, settings, reference, moments, probes, {}, {}, _known_factors(tuning)
        )
        return search.with_statistics(moments, probes)

    def with_statistics(self, moments: Mapping[str, SecondMoments], probes: FieldProbes) -> "WeightSearch":
        """Return the same search from other statistics; all options are rounded anew."""
        began = time.perf_counter()
        model, policy = self.tuning.model, self.reference.policy
        bits = self.tuning.registry.device_class(self.tuning.device_class).max_weight_bits
        options = round_options(model, policy, moments, grids_for(self.settings, bits))
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
        refined = self.refined(choice, weights)
        if refined is not weights:
            seen = self.try_weights({"refined": refined})["refined"]
        return self.found(choice, refined, seen)

    def values(self) -> dict[str, float]:
        """Return the gain of every layer, as corrected."""
        usable = usable_gains(self.gains, list(self.options))
        return {name: gain * self.factors.get(name, 1.0) for name, gain in usable.items()}

    def meet_goal(self) -> tuple[Choice, Measured | None]:
        """Return the choice that meets the goal, and what devices measured of it."""
        if self.settings.max_drop is not None:
            return self.smallest_within(self.settings.max_drop)
        choice = self.first_choice()
        seen = self.try_all({"chosen": choice})["chosen"]
        if self.settings.weight_bits is not None:
            return choice, seen
        for _ in range(_CORRECTIONS):
            if seen is None or seen.loss <= SURPRISE * predicted_loss(choice, self.values()):
                break
            if not self.correct_gains(choice, seen):
                break
            again = self.allocate()
            seen_again = self.try_all({"chosen": again})["chosen"]
            if seen_again is None or seen_again.loss >= seen.loss:
                break
            choice, seen = again, seen_again
        return choice, seen

    def allocate(self) -> Choice:
        """Return the best choice within the budget; sizes of wide layers are estimates, and checked afterwards."""
        began = time.perf_counter()
        most = None
        if self.settings.size_ratio is not None:
            most = int(fp32_weight_bytes(self.tuning.model) / self.settings.size_ratio)
        target, excess = most, 0
        for _ in range(_ESTIMATES):
            choice = self.allocate_within(target)
            excess = 0 if most is None else max(exact_bytes(choice) - most, 0)
            if most is None or target is None or not excess:
                break
            target -= excess
        self.tune_seconds += time.perf_counter() - began
        return choice

    def allocate_within(self, size_bytes: int | None) -> Choice:
        """Return the best choice of so many bytes.

        Raises:
            ConfigurationError: If there is none; it names the smallest size, and how many times smaller that is.
        """
        try:
            return allocate(self.options, self.values(), self.budget(size_bytes), self.probes.latencies)[0]
        except ConfigurationError as error:
            smallest = sum(min(option.size_bytes for option in of) for of in self.options.values())
            ratio = fp32_weight_bytes(self.tuning.model) / smallest
            raise ConfigurationError(
                f"{error}: weights get {ratio:.1f} times smaller than fp32 at most"
            ) from error

    def budget(self, size_bytes: int | None) -> Budget:
        """Return a budget of so many bytes, and of the time that the settings allow."""
        return Budget(size_bytes, self.settings.latency_budget_seconds)

    def front(self) -> list[Allocation]:
        """Return the Pareto front, from the smallest size."""
        candidates = as_candidates(self.options, self.values(), self.probes.latencies)
        return pareto_front(candidates, FRONT_POINTS, self.settings.latency_budget_seconds)

    def smallest_within(self, max_drop: float) -> tuple[Choice, Measured | None]:
        """Return the smallest choice of the front that devices saw lose at most `max_drop` points.

        Raises:
            ConfigurationError: If even the largest loses more, or no device could try.
        """
        choices = {str(i): chosen(self.options, a) for i, a in enumerate(self.front())}
        seen = self.try_all(choices)
        if all(one is None for one in seen.values()):
            raise ConfigurationError("no device has inputs to measure a drop with; ask for a size instead")
        best: tuple[Choice, Measured | None] | None = None
        for name in reversed(choices):  # from the largest: the first that loses too much ends the search
            one = seen[name]
            if one is None or one.drop > max_drop:
                break
            best = choices[name], one
        if best is None:
            largest = seen[next(reversed(choices))]
            drop = largest.drop if largest is not None else float("nan")
            raise ConfigurationError(
                f"the most precise weights lose {drop:.2f} points already, more than the {max_drop:g} allowed; "
                "allow more, or ask for a size"
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

    def refined(self, choice: Choice, weights: RoundedWeights) -> RoundedWeights:
        """Return the weights rounded in sequence and trained, where the settings ask for it."""
        if self.settings.rounding_rounds > 1:
            weights = self.rounded_in_sequence(choice, weights)
        if self.settings.train_rounds:
            weights = self.trained(weights)
        return weights

    def rounded_in_sequence(self, choice: Choice, weights: RoundedWeights) -> RoundedWeights:
        """Return the weights rounded group by group of layers, each to restore what the reference's layers give.

        Every round asks for the moments of one group behind the layers that are rounded already, with cross moments.
        """
        names = [name for name, option in choice.items() if option.rounded is not None]
        groups = [
            list(group) for group in np.array_split(names, min(self.settings.rounding_rounds, len(names)))
        ]
        energies = {name: seen.energy for name, seen in self.base.lab.inputs.items()}
        done = {name: weights[name] for name in groups[0]}
        for group in groups[1:]:
            request = self.reference.inputs_request(group, done)
            outcome = self.tuning.ask(gather_inputs, request, self.generation, self.base, energies=energies)
            began = time.perf_counter()
            done |= self.rounded_within(choice, group, outcome.value.moments)
            self.tune_seconds += time.perf_counter() - began
        return done

    def rounded_within(
        self, choice: Choice, names: Sequence[str], moments: Mapping[str, SecondMoments]
    ) -> RoundedWeights:
        """Return layers rounded anew on their grids, on a coarser one where they would need more bytes than before."""
        grids = {name: _coarser(choice[name]) for name in names}
        chosen_moments = {name: moments[name] for name in names}
        found = round_options(self.tuning.model, self.reference.policy, chosen_moments, grids)
        fitting = {
            name: next((o for o in options if o.size_bytes <= choice[name].size_bytes), options[-1])
            for name, options in found.items()
        }
        return codes_of(fitting, self.reference.policy)

    def trained(self, weights: RoundedWeights) -> RoundedWeights:
        """Return the weights after federated training."""
        return train_weights(
            self.tuning.context(self.generation, self.base),
            self.tuning.cohort(self.generation, TRAINING),
            self.tuning.model,
            self.reference.policy,
            weights,
            plan=TrainingPlan(rounds=self.settings.train_rounds),
            learns_steps=self.settings.weight_bits is not None,
        )

    def found(self, choice: Choice, weights: RoundedWeights, seen: Measured | None) -> FoundWeights:
        """Return the result of the search."""
        began = time.perf_counter()
        content = to_bytes(weights)
        front = [] if self.settings.weight_bits is not None else self.front()
        self.tune_seconds += time.perf_counter() - began
        layers = tuple(self.layer_record(name, choice[name], weights.get(name)) for name in choice)
        fp32_bytes, size = fp32_weight_bytes(self.tuning.model), sum(layer.size_bytes for layer in layers)
        record = PrecisionRecord(
            layers=layers,
            size_ratio=fp32_bytes / size,
            weight_bytes=size,
            fp32_weight_bytes=fp32_bytes,
            overhead_bytes=0,
            predicted_loss=predicted_loss(choice, self.values()),
            measured_loss=None if seen is None else seen.loss,
            tune_seconds=self.tune_seconds,
            front=tuple(FrontPoint(a.size_bytes, fp32_bytes / a.size_bytes, a.loss) for a in front),
        )
        bit_widths = {name: codes.bit_width for name, codes in weights.items()}
        return FoundWeights(content, bit_widths, floats_of(choice), self.factors, record)

    def layer_record(self, name: str, option: Option, codes: LayerCodes | None) -> LayerPrecision:
        """Return how a layer is stored."""
        gain, factor, value = self.gains.get(name), self.factors.get(name, 1.0), self.values()[name]
        layer = next(layer for layer in self.tuning.model.plan.layers if layer.name == name)
        parameters = int(self.tuning.model.draft.tensors[layer.weight].size)
        size = option.size_bytes if codes is None else stored_size_bytes(codes.codes)
        is_bounded = gain is not None and gain.high != float("inf")
        return LayerPrecision(
            name=name,
            parameters=parameters,
            storage=option.storage,
            bit_width=option.bit_width if codes is None else codes.bit_width,
            stored_bits=8 * size / parameters,
            size_bytes=size,
            gain=value,
            gain_low=gain.low * factor if gain is not None else 0.0,
            gain_high=gain.high * factor if gain is not None and is_bounded else None,
            devices=gain.devices if gain is not None else 0,
            predicted_loss=value * option.loss,
        )


def _coarser(option: Option) -> tuple[Grid, ...]:
    """Return the grid that an option was rounded on, and some with slightly larger steps."""
    if option.rounded is None or isinstance(option.rounded.grid, PackedGrid):
        return () if option.rounded is None else (option.rounded.grid,)
    grid = option.rounded.grid
    return tuple(replace(grid, step=grid.step * factor) for factor in _COARSER)


def _known_factors(tuning: Tuning) -> dict[str, float]:
    """Return the corrections of gains that the last generation with weights of its own made."""
    for generation in reversed(tuning.registry.generations(tuning.model.digest, tuning.device_class)):
        if generation.weights:
            factors: dict[str, float] = json.loads(generation.weights)["gain_factors"]
            return dict(factors)
    return {}
