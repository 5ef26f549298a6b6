"""One experiment from start to end: lab, fleet, generations, and what they brought on rows that no device holds."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.app import app as client_app
from client.observer import Observer
from quantization.arrays import FloatArray
from quantization.errors import ConfigurationError
from quantization.policy import Policy
from quantization.renormalization import LayerDrift, layer_drift
from server.blob_store import BlobStore
from server.candidate import load_manifest
from server.class_tuner import RoundMoved, StepDone
from server.folded import FieldRanges, read
from server.generation import Generation, Step
from server.lab import PreparedModel
from server.registry import Registry
from server.settings import CohortSettings, ServerSettings
from server.tuner import run_generation
from simulation.device import FLEET, DeviceStates, forget_fleet, register_fleet
from simulation.evaluation import accuracy, artifact_model, float_model, predictions
from simulation.faults import random_faults
from simulation.fleet import Fleet, FleetSettings
from simulation.lab import prepare_task
from simulation.measured_grid import MeasuredGrid, Traffic
from simulation.pooled import channels_of, pooled_ranges
from simulation.result import Accuracy, ExperimentResult, GenerationResult
from simulation.scenario import Scenario
from simulation.tasks import load_byo, load_task
from simulation.tasks.task import TaskData
from strategies.rounds import RoundSettings

AGREEMENT_ROWS = 1000
"""Test rows on which int8 and float answers are compared."""

_LAB, _TUNED, _DONE = 0.25, 0.9, 1.0
"""Shares of the whole at which the lab and the generations are done."""

ProgressFunction = Callable[[float, str], None]
"""Told which share of the work is done, 0 to 1, and what is being done."""


def run_experiment(
    scenario: Scenario, on_progress: ProgressFunction = lambda _share, _text: None
) -> ExperimentResult:
    """Return what the scenario's fleet gained from tuning.

    Raises:
        QuantFleetError: Whatever a step refuses or fails at; nothing is left behind.
    """
    started = time.perf_counter()
    on_progress(0.0, "loading the task")
    task = load(scenario, lambda share, text: on_progress(_LAB * 0.6 * share, text))
    fleet = Fleet(task, FleetSettings.of(scenario))
    with tempfile.TemporaryDirectory(prefix="quantfleet-") as folder:
        with Registry.open(f"sqlite:///{folder}/registry.db") as registry:
            bench = Bench.set_up(scenario, fleet, registry, Path(folder), on_progress)
            try:
                return bench.run(started)
            finally:
                forget_fleet(bench.fleet_name)


def load(scenario: Scenario, on_progress: ProgressFunction) -> TaskData:
    """Return the scenario's model and data: a built-in task, or files of one's own."""
    if scenario.task is not None:
        return load_task(scenario.task, scenario.seed, scenario.cache_dir, on_progress)
    if scenario.model is None or scenario.data is None:
        raise ConfigurationError("--model and --data go together; give both, or --task")
    return load_byo(scenario.model, scenario.data, scenario.seed)


@dataclass(slots=True)
class Bench:
    """Everything an experiment runs on."""

    scenario: Scenario
    fleet: Fleet
    fleet_name: str
    registry: Registry
    blobs: BlobStore
    prepared: PreparedModel
    grid: MeasuredGrid
    settings: ServerSettings
    field_inputs: FloatArray
    on_progress: ProgressFunction

    @classmethod
    def set_up(
        cls,
        scenario: Scenario,
        fleet: Fleet,
        registry: Registry,
        folder: Path,
        on_progress: ProgressFunction,
    ) -> "Bench":
        """Calibrate in the lab, and give every device generation 0."""
        blobs = BlobStore(folder / "server")
        states = DeviceStates(folder / "devices")
        classes = tuple({c.name: c for c in fleet.settings.device_classes}.values())
        prepared = prepare_task(
            fleet.task,
            classes,
            scenario.range_method,
            registry,
            blobs,
            on_progress=lambda done, of: on_progress(
                _LAB * (0.6 + 0.4 * done / of), "calibrating in the lab"
            ),
        )
        for position in range(scenario.devices):
            artifact = prepared.artifacts[fleet.device_class(position).name]
            for digest, stored in artifact.blobs.items() if position < len(classes) else ():
                states.blobs.put(digest, stored)
            states.install(position, artifact.manifest)
        name = register_fleet(fleet, states)
        grid = MeasuredGrid(
            client_app,
            scenario.devices,
            run_config={FLEET: name, "device-source": "simulated"},
            fault=random_faults(scenario.dropout, scenario.stragglers, scenario.seed),
            workers=os.cpu_count() or 1,
        )
        settings = ServerSettings(
            model_name=fleet.task.name,
            cohort=CohortSettings(expected_nodes=scenario.devices, seed=scenario.seed),
            rounds=RoundSettings(poll_seconds=60.0),
        )
        inputs = fleet.test_inputs(is_drifted=True)
        return cls(scenario, fleet, name, registry, blobs, prepared, grid, settings, inputs, on_progress)

    def run(self, started: float) -> ExperimentResult:
        """Return the result of all generations."""
        frozen = {name: g.manifest_digest for name, g in self.prepared.generations.items()}
        frozen_accuracy = self.mean_accuracy(frozen, self.field_inputs)
        generations: list[GenerationResult] = []
        is_pooled_equal: list[bool] = []
        for index in range(self.scenario.generations):
            result, closed = self.generation(
                index, generations[-1].accuracy if generations else frozen_accuracy
            )
            generations.append(result)
            if self.scenario.check_pooled:
                is_pooled_equal += [self.equals_pooled(g) for g in closed.values() if g.policy]
            if all(g.step is Step.UNCHANGED for g in closed.values()):
                break
        self.on_progress(_TUNED, "evaluating")
        accuracies = self.accuracies(frozen, frozen_accuracy, generations[-1].accuracy)
        self.on_progress(_DONE, "done")
        task = self.fleet.task
        published = [g.update_bytes for g in generations if g.published]
        return ExperimentResult(
            task=task.name,
            seed=self.scenario.seed,
            devices=self.scenario.devices,
            drift={drift.name: drift.severity for drift in self.fleet.settings.drifts},
            accuracy=accuracies,
            generations=tuple(generations),
            size_bytes={"fp32": self.prepared.model.size_bytes, "tuned": generations[-1].size_bytes},
            update_bytes=published[-1] if published else 0,
            federated_equals_pooled=all(is_pooled_equal) if is_pooled_equal else None,
            wall_seconds=time.perf_counter() - started,
            lab_ranges=self.policies({n: g.policy for n, g in self.prepared.generations.items()})[0].ranges,
            float_ops=tuple(f"{op.name} ({op.op}): {op.reason}" for op in self.prepared.plan.float_ops),
            layers=tuple(layer.name for layer in self.prepared.plan.layers),
        )

    def generation(
        self, index: int, accuracy_before: float | None
    ) -> tuple[GenerationResult, Mapping[str, Generation]]:
        """Run one generation of every class; return what it brought, and its entries in the registry."""
        begun = time.perf_counter()
        self.grid.traffic = Traffic()
        report = run_generation(
            self.grid,
            self.registry,
            self.blobs,
            self.settings,
            clock=self.grid.clock,
            on_event=lambda event: self.tell(index, event),
        )
        closed = report.generations
        serving = {
            name: self.registry.published(report.model_digest, name) for name in self.prepared.generations
        }
        manifests = {name: g.manifest_digest for name, g in serving.items()}
        changed = self.mean_accuracy(manifests, self.field_inputs) if report.is_published else accuracy_before
        first = next(iter(closed.values()))
        traffic = self.grid.traffic
        result = GenerationResult(
            generation=first.number,
            accuracy=changed,
            agreement=self.agreement(next(iter(manifests.values()))),
            size_bytes=max(g.size_bytes for g in serving.values()),
            update_bytes=max(
                (g.update_bytes for g in closed.values() if g.step is Step.PUBLISHED), default=0
            ),
            clients=sum(g.clients for g in closed.values()),
            dropped=traffic.dropped(),
            published=report.is_published,
            reason="; ".join(dict.fromkeys(g.reason for g in closed.values())),
            drift=_drift(first),
            residual_drift=self.residual_drift(first),
            ranges=self.policies({n: g.policy for n, g in serving.items()})[0].ranges,
            statistics_bytes=traffic.reply_bytes,
            seconds=time.perf_counter() - begun,
        )
        return result, closed

    def tell(self, index: int, event: StepDone | RoundMoved) -> None:
        """Report where a generation stands."""
        generation = event.generation
        steps = {Step.STARTED: 0.0, Step.MOMENTS: 0.4, Step.RANGES: 0.7, Step.PROPOSED: 0.75}
        share = steps.get(generation.step, 0.95)
        if isinstance(event, RoundMoved) and event.progress.asked:
            share += 0.3 * event.progress.replied / event.progress.asked
        whole = (index + min(share, 1.0)) / self.scenario.generations
        text = f"generation {generation.number} on {generation.device_class}: {_DOING[generation.step]}"
        self.on_progress(_LAB + (_TUNED - _LAB) * whole, text)

    def mean_accuracy(self, manifests: Mapping[str, str], inputs: FloatArray) -> float | None:
        """Return the accuracy of what devices run, each class weighing as its number of devices."""
        labels = self.fleet.task.test_y
        if labels is None:
            return None
        devices = [self.fleet.device_class(position).name for position in range(self.scenario.devices)]
        found = {
            name: accuracy(artifact_model(load_manifest(self.blobs, digest), self.blobs), inputs, labels)
            for name, digest in manifests.items()
        }
        weighted = [(found[name] or 0.0) * devices.count(name) for name in found]
        return sum(weighted) / len(devices)

    def accuracies(
        self, frozen: Mapping[str, str], frozen_accuracy: float | None, tuned: float | None
    ) -> Accuracy:
        """Return the figures of all models, in the field and in the lab."""
        infer, labels = float_model(self.fleet.task.model), self.fleet.task.test_y
        lab_inputs = self.fleet.test_inputs(is_drifted=False)
        return Accuracy(
            fp32=accuracy(infer, self.field_inputs, labels),
            frozen=frozen_accuracy,
            tuned=tuned,
            lab_fp32=accuracy(infer, lab_inputs, labels),
            lab_frozen=self.mean_accuracy(frozen, lab_inputs),
        )

    def agreement(self, manifest_digest: str) -> float:
        """Return the share of test rows on which an artifact answers as its own float model does."""
        manifest = load_manifest(self.blobs, manifest_digest)
        rows = self.field_inputs[:AGREEMENT_ROWS]
        exact = Observer(manifest, self.blobs.get, threads=2).logits(rows).argmax(axis=-1)
        return float((predictions(artifact_model(manifest, self.blobs), rows) == exact).mean())

    def residual_drift(self, generation: Generation) -> dict[str, LayerDrift]:
        """Return how far the candidate's moments lay from the lab's, by layer."""
        if not generation.ranges_digest:
            return {}
        field = FieldRanges.from_bytes(read(self.blobs, generation.ranges_digest))
        return {layer: layer_drift(moments) for layer, moments in field.moments.items()}

    def policies(self, texts: Mapping[str, str]) -> list[Policy]:
        """Return the policies of registered generations."""
        return [Policy.from_json_bytes(text.encode()) for text in texts.values()]

    def equals_pooled(self, generation: Generation) -> bool:
        """Return whether a generation's ranges are those of all its inputs in one place, bit for bit."""
        self.on_progress(_TUNED, "pooling all statistics inputs, to compare")
        entries = self.registry.generations(generation.model_digest, generation.device_class)
        base = entries[generation.base_number]
        policy = Policy.from_json_bytes(generation.policy.encode())
        base_manifest = load_manifest(self.blobs, base.manifest_digest)
        members = [
            position
            for position in sorted(self.grid.traffic.observed)
            if self.fleet.device_class(position).name == generation.device_class
        ]
        pooled = pooled_ranges(
            self.prepared.plan,
            base_manifest,
            channels_of(load_manifest(self.blobs, generation.manifest_digest), self.blobs),
            self.blobs,
            (self.fleet.inputs(position) for position in members),
            policy,
            Policy.from_json_bytes(base.policy.encode()).ranges,
            self.settings.batch_size,
        )
        return pooled == dict(policy.ranges)


_DOING = {
    Step.STARTED: "asking for moments",
    Step.MOMENTS: "asking for ranges",
    Step.RANGES: "compiling a candidate",
    Step.PROPOSED: "assessing the candidate",
    Step.ASSESSED: "judging",
    Step.PUBLISHED: "published",
    Step.UNCHANGED: "nothing to change",
    Step.REJECTED: "rejected",
    Step.FAILED: "failed",
}


def _drift(generation: Generation) -> dict[str, LayerDrift]:
    layers = json.loads(generation.drift).get("layers", {})
    return {name: LayerDrift(**record) for name, record in layers.items()}
