"""One experiment from start to end: lab, fleet, generations, and what they brought on rows that no device holds."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from quantization.errors import ConfigurationError, RoundFailedError
from server.generation import Generation, Step
from server.tuner import run_generation
from server.tuning import RoundMoved, StepDone
from simulation.bench import Bench, drift_of
from simulation.evaluation import accuracy, float_model
from simulation.fleet import Fleet, FleetSettings
from simulation.measured_grid import Traffic
from simulation.result import Accuracy, ExperimentResult, GenerationResult
from simulation.scenario import Scenario
from simulation.tasks import load_byo, load_task
from simulation.tasks.task import TaskData

_LOADED, _PREPARED, _TUNED, _DONE = 0.15, 0.25, 0.9, 1.0
"""Shares of the whole at which the task is loaded, the lab and the generations are done."""

ProgressFunction = Callable[[float, str], None]
"""Told which share of the work is done, 0 to 1, and what is being done."""


def no_progress(_share: float, _text: str) -> None:
    """Tell nobody."""


def run_experiment(scenario: Scenario, on_progress: ProgressFunction = no_progress) -> ExperimentResult:
    """Return what the scenario's fleet gained from tuning.

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
        return _Experiment(bench, on_progress).run(started)


def run_on(bench: Bench) -> ExperimentResult:
    """Return what the fleet of a bench gained from tuning; the bench stays as it is then."""
    return _Experiment(bench, no_progress).run(time.perf_counter())


def load(scenario: Scenario, on_progress: ProgressFunction = no_progress) -> TaskData:
    """Return the scenario's model and data: a built-in task, or files of one's own."""
    if scenario.task is not None:
        return load_task(scenario.task, scenario.seed, scenario.cache_dir, on_progress)
    if scenario.model is None or scenario.data is None:
        raise ConfigurationError("--model and --data go together; give both, or --task")
    return load_byo(scenario.model, scenario.data, scenario.seed)


@dataclass(slots=True)
class _Experiment:
    """Generations on a bench, and what was seen of them so far."""

    bench: Bench
    on_progress: ProgressFunction
    generations: list[GenerationResult] = field(default_factory=list)
    equal_to_pooled: list[bool] = field(default_factory=list)

    def run(self, started: float) -> ExperimentResult:
        """Return the result of all generations."""
        bench, scenario = self.bench, self.bench.scenario
        frozen = {name: g.manifest_digest for name, g in bench.prepared.generations.items()}
        frozen_accuracy = bench.mean_accuracy(frozen, bench.field_inputs)
        for index in range(scenario.generations):
            try:
                closed = self.generation(index, frozen_accuracy)
            except RoundFailedError as error:
                if not self.generations:
                    raise
                self.generations.append(_failed_after(self.generations[-1], str(error)))
                break
            if all(generation.step is Step.UNCHANGED for generation in closed.values()):
                break
        self.on_progress(_TUNED, "evaluating")
        accuracies = self.accuracies(frozen, frozen_accuracy)
        self.on_progress(_DONE, "done")
        published = [g.update_bytes for g in self.generations if g.published]
        plan = bench.prepared.plan
        return ExperimentResult(
            task=bench.fleet.task.name,
            seed=scenario.seed,
            devices=scenario.devices,
            drift={drift.name: drift.severity for drift in bench.fleet.settings.drifts},
            accuracy=accuracies,
            generations=tuple(self.generations),
            size_bytes={"fp32": bench.prepared.model.size_bytes, "tuned": self.generations[-1].size_bytes},
            update_bytes=published[-1] if published else 0,
            federated_equals_pooled=all(self.equal_to_pooled) if self.equal_to_pooled else None,
            wall_seconds=time.perf_counter() - started,
            lab_ranges=bench.ranges(next(iter(bench.prepared.generations.values()))),
            float_ops=tuple(f"{op.name} ({op.op}): {op.reason}" for op in plan.float_ops),
            layers=tuple(layer.name for layer in plan.layers),
            precision=bench.precision(next(iter(bench.serving().values()))),
        )

    def generation(self, index: int, frozen_accuracy: float | None) -> Mapping[str, Generation]:
        """Run one generation of every class, keep what it brought, and return its entries in the registry."""
        bench, begun = self.bench, time.perf_counter()
        bench.grid.traffic = traffic = Traffic()
        report = run_generation(
            bench.grid,
            bench.registry,
            bench.blobs,
            bench.settings,
            clock=bench.grid.clock,
            on_event=lambda event: self.tell(index, event),
        )
        closed, serving = report.generations, bench.serving()
        manifests = {name: generation.manifest_digest for name, generation in serving.items()}
        served = next(iter(serving.values()))
        first = next(iter(closed.values()))
        before = self.generations[-1].accuracy if self.generations else frozen_accuracy
        published = [g.update_bytes for g in closed.values() if g.step is Step.PUBLISHED]
        self.generations.append(
            GenerationResult(
                generation=first.number,
                accuracy=bench.mean_accuracy(manifests, bench.field_inputs) if published else before,
                agreement=bench.agreement(served.manifest_digest),
                size_bytes=max(generation.size_bytes for generation in serving.values()),
                update_bytes=max(published, default=0),
                clients=sum(generation.clients for generation in closed.values()),
                dropped=traffic.dropped(),
                published=bool(published),
                reason="; ".join(dict.fromkeys(generation.reason for generation in closed.values())),
                drift=drift_of(first),
                residual_drift=bench.residual_drift(first),
                ranges=bench.ranges(served),
                statistics_bytes=traffic.reply_bytes,
                seconds=time.perf_counter() - begun,
            )
        )
        if bench.scenario.check_pooled:
            self.on_progress(self.share(index, 1.0), "pooling all statistics inputs, to compare")
            self.equal_to_pooled += [bench.equals_pooled(g) for g in closed.values() if g.ranges_digest]
            weights = [bench.weights_equal_pooled(g) for g in closed.values()]
            self.equal_to_pooled += [is_equal for is_equal in weights if is_equal is not None]
        return closed

    def tell(self, index: int, event: StepDone | RoundMoved) -> None:
        """Report where a generation stands."""
        generation = event.generation
        begun, length, text = _PROGRESS[generation.step]
        replied = 0.0
        if isinstance(event, RoundMoved) and event.progress.asked:
            replied = event.progress.replied / event.progress.asked
        self.on_progress(
            self.share(index, begun + length * replied),
            f"generation {generation.number} on {generation.device_class}: {text}",
        )

    def share(self, index: int, part: float) -> float:
        """Return the share of all work that is done when `part` of a generation is."""
        return _PREPARED + (_TUNED - _PREPARED) * (index + part) / self.bench.scenario.generations

    def accuracies(self, frozen: Mapping[str, str], frozen_accuracy: float | None) -> Accuracy:
        """Return the figures of all models, in the field and in the lab."""
        bench = self.bench
        infer, labels = float_model(bench.fleet.task.model), bench.fleet.task.test_y
        lab_inputs = bench.fleet.test_inputs(is_drifted=False)
        return Accuracy(
            fp32=accuracy(infer, bench.field_inputs, labels),
            frozen=frozen_accuracy,
            tuned=self.generations[-1].accuracy,
            lab_fp32=accuracy(infer, lab_inputs, labels),
            lab_frozen=bench.mean_accuracy(frozen, lab_inputs),
        )


def _failed_after(last: GenerationResult, reason: str) -> GenerationResult:
    """Return a generation that came to nothing: what served before goes on serving."""
    return replace(
        last,
        generation=last.generation + 1,
        update_bytes=0,
        clients=0,
        dropped={},
        published=False,
        reason=reason,
        drift={},
        residual_drift={},
        statistics_bytes=0,
        seconds=0.0,
    )


_PROGRESS: Mapping[Step, tuple[float, float, str]] = {
    Step.STARTED: (0.0, 0.4, "asking for moments"),
    Step.MOMENTS: (0.4, 0.3, "asking for ranges"),
    Step.INPUTS: (0.4, 0.1, "probing layers"),
    Step.PROBES: (0.5, 0.1, "choosing weights"),
    Step.WEIGHTS: (0.6, 0.1, "asking for ranges"),
    Step.RANGES: (0.7, 0.0, "compiling a candidate"),
    Step.PROPOSED: (0.72, 0.23, "assessing the candidate"),
    Step.ASSESSED: (0.95, 0.0, "judging"),
    Step.PUBLISHED: (0.96, 0.0, "published"),
    Step.UNCHANGED: (0.96, 0.0, "nothing to change"),
    Step.REJECTED: (0.96, 0.0, "rejected"),
    Step.FAILED: (0.96, 0.0, "failed"),
}
"""By step: the share of a generation that is done when it begins, its own share, and what happens in it."""
