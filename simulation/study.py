"""A study of precision: what each layer costs, and what models of several sizes are worth on rows that no device holds.

The fleet is asked once: moments, second moments, probes, and the ranges of the model with 8-bit weights, which all
models of the study share. Everything else is computed and measured here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from quantization.bit_allocation import (
    Allocation,
    Budget,
    Candidates,
    allocate_by_growing,
    allocate_uniform,
    pareto_front,
)
from quantization.calibration import method_from_name
from quantization.errors import ConfigurationError
from quantization.layer_codes import to_bytes
from quantization.policy import Policy
from server.candidate import compile_artifact, load_manifest, store_artifact
from server.class_tuner import advance_until
from server.drift_steps import fold_ranges
from server.folded import write
from server.generation import Generation, Step
from server.precision import (
    Options,
    as_candidates,
    chosen,
    codes_of,
    exact_bytes,
    fp32_weight_bytes,
    grids_for,
    round_options,
)
from server.precision_settings import PrecisionSettings
from server.ranges import choose_ranges
from server.tuner import meet
from server.tuning import Base, RoundMoved, StepDone, Tuning
from server.weight_search import WeightSearch
from simulation.bench import Bench
from simulation.evaluation import accuracy, artifact_model, float_model
from simulation.experiment import ProgressFunction, load, no_progress
from simulation.fleet import Fleet, FleetSettings
from simulation.scenario import Scenario
from simulation.study_result import (
    ALLOCATED,
    DEFAULT_POINTS,
    FEDMPQ,
    UNIFORM,
    FrontMeasurement,
    LayerSensitivity,
    StudyResult,
)

_LOADED, _PREPARED, _ASKED, _ROUNDED, _DONE = 0.1, 0.2, 0.5, 0.6, 1.0
"""Shares of the whole at which the task is loaded, and the lab, the rounds and the server's work are done."""

_LARGEST_RATIO = 24.0  # a front reaches to where weights take an eighth of four bits


def run_study(
    scenario: Scenario, on_progress: ProgressFunction = no_progress, *, points: int = DEFAULT_POINTS
) -> StudyResult:
    """Return what a fleet's layers cost, and what models of several sizes are worth.

    Args:
        scenario: Task and fleet; of several device classes the first is studied.
        on_progress: Told which share of the work is done, and what is being done.
        points: Models of the Pareto front; 0 for the layers alone.

    Raises:
        QuantFleetError: Whatever a step refuses or fails at; nothing is left behind.
    """
    started = time.perf_counter()
    on_progress(0.0, "loading the task")
    task = load(scenario, lambda share, text: on_progress(_LOADED * share, text))
    fleet = Fleet(task, FleetSettings.of(scenario))

    def measured(done: int, of: int) -> None:
        on_progress(_LOADED + (_PREPARED - _LOADED) * done / of, "calibrating in the lab")

    with Bench.opened(scenario, fleet, measured) as bench:
        study = _Study.ask(bench, on_progress)
        on_progress(_ASKED, "rounding layers")
        layers = study.layers()
        front = study.front(points, on_progress) if points else ()
        on_progress(_DONE, "done")
        labels = fleet.task.test_y
        return StudyResult(
            task=task.name,
            seed=scenario.seed,
            devices=scenario.devices,
            layers=layers,
            front=front,
            fp32_accuracy=accuracy(float_model(task.model), bench.field_inputs, labels),
            int8_accuracy=study.reference_accuracy(),
            fp32_weight_bytes=study.fp32_bytes,
            tune_seconds=study.tune_seconds,
            wall_seconds=time.perf_counter() - started,
        )


@dataclass(slots=True)
class _Study:
    """What the fleet said, and what was made of it."""

    bench: Bench
    tuning: Tuning
    generation: Generation
    base: Base
    search: WeightSearch
    packed: Options
    policy: Policy
    tune_seconds: float

    @classmethod
    def ask(cls, bench: Bench, on_progress: ProgressFunction) -> "_Study":
        """Run the rounds."""
        settings = replace(bench.settings, precision=PrecisionSettings(size_ratio=_LARGEST_RATIO))
        texts = {Step.MOMENTS: "asking for second moments", Step.INPUTS: "probing layers"}
        shares = {Step.MOMENTS: 0.4, Step.INPUTS: 0.7}

        def tell(event: StepDone | RoundMoved) -> None:
            step = event.generation.step
            share = _PREPARED + (_ASKED - _PREPARED) * shares.get(step, 0.2)
            on_progress(share, texts.get(step, "asking for moments"))

        met = meet(bench.grid, bench.registry, bench.blobs, settings, clock=bench.grid.clock, on_event=tell)
        tuning = next(iter(met.tunings.values()))
        generation, failure = advance_until(tuning, {Step.PROBES})
        if failure is not None:
            raise failure
        base = Base.load(generation, tuning.registry, tuning.blobs)
        search = WeightSearch.of(tuning, generation, base)
        began = time.perf_counter()
        bits = tuning.registry.device_class(tuning.device_class).max_weight_bits
        packed = round_options(tuning.model, search.reference.policy, search.moments, grids_for(None, bits))
        seconds = search.tune_seconds + time.perf_counter() - began
        observed, _ = fold_ranges(tuning, generation, base)
        method = method_from_name(base.policy.range_method)
        histograms = tuning.field_ranges(observed).histograms
        ranges = choose_ranges(tuning.model.plan, histograms, method, base.policy.ranges)
        policy = replace(search.reference.policy, ranges=ranges)
        return cls(bench, tuning, generation, base, search, packed, policy, seconds)

    @property
    def fp32_bytes(self) -> int:
        """Bytes of all weights as float32."""
        return fp32_weight_bytes(self.tuning.model)

    def layers(self) -> tuple[LayerSensitivity, ...]:
        """Return what fewer bits cost in every layer."""
        values, model = self.search.values(), self.tuning.model
        found = []
        for layer in model.plan.layers:
            gain = self.search.gains.get(layer.name)
            high = None if gain is None or not isfinite(gain.high) else gain.high
            found.append(
                LayerSensitivity(
                    name=layer.name,
                    parameters=int(model.draft.tensors[layer.weight].size),
                    gain=values[layer.name],
                    gain_low=0.0 if gain is None else gain.low,
                    gain_high=high,
                    devices=0 if gain is None else gain.devices,
                    losses={
                        option.rounded.grid.bit_width: values[layer.name] * option.loss
                        for option in self.packed[layer.name]
                        if option.rounded is not None
                    },
                )
            )
        return tuple(found)

    def front(self, points: int, on_progress: ProgressFunction) -> tuple[FrontMeasurement, ...]:
        """Return models of the Pareto front, and those of the baselines, measured."""
        began = time.perf_counter()
        values = self.search.values()
        rated = as_candidates(self.search.options, values)
        packed = as_candidates(self.packed, values)
        allocations = pareto_front(rated, points)
        models = [(ALLOCATED, self.search.options, allocation) for allocation in allocations]
        models += [(UNIFORM, self.packed, allocation) for allocation in _uniform(packed)]
        models += [(FEDMPQ, self.packed, allocation) for allocation in _grown(packed, allocations)]
        self.tune_seconds += time.perf_counter() - began
        measured = []
        for index, (method, options, allocation) in enumerate(models):
            share = _ROUNDED + (_DONE - _ROUNDED) * index / len(models)
            on_progress(share, f"measuring model {index + 1} of {len(models)}")
            measured.append(self.measured(method, options, allocation))
        return tuple(measured)

    def measured(self, method: str, options: Options, allocation: Allocation) -> FrontMeasurement:
        """Return one model, compiled and run on the test rows."""
        choice = chosen(options, allocation)
        weights = codes_of(choice, self.policy)
        content = to_bytes(weights)
        policy = replace(
            self.policy,
            weights_digest=write(self.bench.blobs, content),
            bit_widths={name: codes.bit_width for name, codes in weights.items()},
        )
        artifact = compile_artifact(self.tuning.model, policy, self.base.lab.references, weights)
        size = exact_bytes(choice)
        return FrontMeasurement(
            size_bytes=size,
            size_ratio=self.fp32_bytes / size,
            predicted_loss=allocation.loss,
            bits={name: option.bit_width for name, option in choice.items()},
            stored_bits={n: 8 * choice[n].size_bytes / codes.codes.size for n, codes in weights.items()},
            accuracy=self.accuracy_of(store_artifact(self.bench.blobs, artifact)),
            method=method,
        )

    def reference_accuracy(self) -> float | None:
        """Return the accuracy with 8-bit weights, rounded to nearest."""
        artifact = compile_artifact(self.tuning.model, self.policy, self.base.lab.references)
        return self.accuracy_of(store_artifact(self.bench.blobs, artifact))

    def accuracy_of(self, manifest_digest: str) -> float | None:
        """Return the accuracy of a stored artifact on the test rows."""
        infer = artifact_model(load_manifest(self.bench.blobs, manifest_digest), self.bench.blobs)
        return accuracy(infer, self.bench.field_inputs, self.bench.fleet.task.test_y)


def _uniform(candidates: Candidates) -> list[Allocation]:
    """Return one allocation for each bit-width that all layers have."""
    found: list[Allocation] = []
    size = max(
        sum(c.size_bytes for c in (max(of, key=lambda c: c.size_bytes) for of in candidates.values())), 1
    )
    while True:
        try:
            found.append(allocate_uniform(candidates, Budget(size)))
        except ConfigurationError:
            return found
        size = found[-1].size_bytes - 1


def _grown(candidates: Candidates, like: Sequence[Allocation]) -> list[Allocation]:
    """Return what FedMPQ's rule allocates for the sizes of other allocations, where it can."""
    found: list[Allocation] = []
    for allocation in like:
        try:
            grown = allocate_by_growing(candidates, Budget(allocation.size_bytes))
        except ConfigurationError:
            continue
        if grown.size_bytes not in {known.size_bytes for known in found}:
            found.append(grown)
    return found
