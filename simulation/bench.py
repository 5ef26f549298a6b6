"""What an experiment runs on, and what is measured there: lab, fleet, registry, and the rows that no device holds."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from client.app import app as client_app
from client.observer import Observer
from client.tap_observer import TapObserver
from quantization.arrays import FloatArray
from quantization.augmentation import require_augmentations
from quantization.calibration import Range
from quantization.layer_codes import from_bytes
from quantization.policy import Policy
from quantization.renormalization import LayerDrift, layer_drift
from server.blob_store import BlobStore
from server.candidate import PlannedModel, candidate_overrides, load_manifest
from server.folded import FieldRanges, read
from server.generation import Generation
from server.lab import PreparedModel
from server.precision_record import PrecisionRecord
from server.registry import Registry
from server.settings import CohortSettings, ServerSettings
from server.tuner import meet
from server.tuning import Base
from server.weight_search import WeightSearch
from simulation.device import FLEET, DeviceStates, forget_fleet, register_fleet
from simulation.evaluation import accuracy, artifact_model, predictions
from simulation.faults import random_faults
from simulation.fleet import Fleet
from simulation.grid import FIRST_NODE_ID
from simulation.lab import prepare_task
from simulation.liars import LyingApp
from simulation.measured_grid import MeasuredGrid
from simulation.pooled import pooled_ranges
from simulation.pooled_weights import compare_weights, pooled_weights
from simulation.scenario import Scenario
from strategies.records import PHASE_INPUTS, PHASE_RANGES
from strategies.rounds import RoundSettings

AGREEMENT_ROWS = 1000
"""Test rows on which int8 and float answers are compared."""

LEAST_EQUAL_SHARE = 0.9999
"""Part of all weights whose codes must be the same as from pooled data."""

POLL_SECONDS = 60.0
"""Simulated time between two looks for stragglers; no real time passes."""

MeasuredFunction = Callable[[int, int], None]
"""Told how many of how many lab rows were measured."""


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

    @classmethod
    def set_up(
        cls,
        scenario: Scenario,
        fleet: Fleet,
        registry: Registry,
        folder: Path,
        on_measured: MeasuredFunction | None = None,
    ) -> "Bench":
        """Calibrate in the lab, and give every device generation 0.

        Args:
            scenario: What is simulated.
            fleet: Its devices.
            registry: An empty one.
            folder: For content; the caller removes it.
            on_measured: Told how the lab's calibration goes on.
        """
        inputs = fleet.test_inputs(is_drifted=True)  # refuses a drift that is not for these rows
        require_augmentations(scenario.calibration.parsed, inputs.shape[1:])
        blobs = BlobStore(folder / "server")
        states = DeviceStates(folder / "devices")
        classes = tuple({c.name: c for c in fleet.settings.device_classes}.values())
        prepared = prepare_task(
            fleet.task,
            classes,
            scenario.range_method,
            registry,
            blobs,
            on_progress=on_measured,
        )
        for artifact in prepared.artifacts.values():
            for digest, stored in artifact.blobs.items():
                states.blobs.put(digest, stored)
        for position in range(scenario.devices):
            states.install(position, prepared.artifacts[fleet.device_class(position).name].manifest)
        name = register_fleet(fleet, states)
        app = (
            LyingApp(client_app, scenario.devices, scenario.liars, scenario.seed)
            if scenario.liars
            else client_app
        )
        grid = MeasuredGrid(
            app,
            scenario.devices,
            run_config={FLEET: name, "device-source": "simulated"},
            fault=random_faults(scenario.dropout, scenario.stragglers, scenario.seed),
            workers=os.cpu_count() or 1,
        )
        settings = ServerSettings(
            model_name=fleet.task.name,
            cohort=CohortSettings(expected_nodes=scenario.devices, seed=scenario.seed),
            rounds=RoundSettings(poll_seconds=POLL_SECONDS),
            calibration=scenario.calibration,
            precision=scenario.precision,
        )
        return cls(scenario, fleet, name, registry, blobs, prepared, grid, settings, inputs)

    @classmethod
    @contextmanager
    def opened(
        cls, scenario: Scenario, fleet: Fleet, on_measured: MeasuredFunction | None = None
    ) -> Iterator["Bench"]:
        """Yield a bench in a folder of its own; nothing is left behind."""
        with (
            tempfile.TemporaryDirectory(prefix="quantfleet-") as folder,
            Registry.open(f"sqlite:///{folder}/registry.db") as registry,
        ):
            bench = cls.set_up(scenario, fleet, registry, Path(folder), on_measured)
            try:
                yield bench
            finally:
                forget_fleet(bench.fleet_name)

    def serving(self) -> dict[str, Generation]:
        """Return the published generation of each class."""
        digest = self.prepared.model.digest
        return {name: self.registry.published(digest, name) for name in self.prepared.generations}

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

    def agreement(self, manifest_digest: str) -> float:
        """Return the share of test rows on which an artifact answers as its own float model does."""
        manifest = load_manifest(self.blobs, manifest_digest)
        rows = self.field_inputs[:AGREEMENT_ROWS]
        exact = Observer(manifest, self.blobs.get, threads=2).logits(rows).argmax(axis=-1)
        return float((predictions(artifact_model(manifest, self.blobs), rows) == exact).mean())

    def precision(self, served: Generation) -> PrecisionRecord | None:
        """Return how the weights that a published generation runs were chosen; None where they never were."""
        policy = Policy.from_json_bytes(served.policy.encode())
        if not policy.weights_digest:
            return None
        for generation in reversed(self.registry.generations(served.model_digest, served.device_class)):
            if (
                generation.weights
                and json.loads(generation.weights)["weights_digest"] == policy.weights_digest
            ):
                return PrecisionRecord.from_json(generation.precision)
        return None

    def residual_drift(self, generation: Generation) -> dict[str, LayerDrift]:
        """Return how far the candidate's moments lay from the lab's, by layer."""
        if not generation.ranges_digest:
            return {}
        field = FieldRanges.from_bytes(read(self.blobs, generation.ranges_digest))
        return {layer: layer_drift(moments) for layer, moments in field.moments.items()}

    def ranges(self, generation: Generation) -> dict[str, Range]:
        """Return the ranges of a registered generation, sites in the order of the graph."""
        ranges = Policy.from_json_bytes(generation.policy.encode()).ranges
        return {site.name: ranges[site.name] for site in self.prepared.plan.sites}

    def equals_pooled(self, generation: Generation) -> bool:
        """Return whether a generation's ranges are those of all its inputs in one place, bit for bit."""
        entries = self.registry.generations(generation.model_digest, generation.device_class)
        base = entries[generation.base_number]
        served = (
            generation if generation.policy else base
        )  # nothing to change: the base is what was asked for
        policy = Policy.from_json_bytes(served.policy.encode())
        base_policy = Policy.from_json_bytes(base.policy.encode())
        base_manifest = load_manifest(self.blobs, base.manifest_digest)
        model = PlannedModel.load(generation.model_digest, self.blobs)
        members = [
            position
            for position in sorted(self.grid.traffic.observed[PHASE_RANGES])
            if self.fleet.device_class(position).name == generation.device_class
        ]
        pooled = pooled_ranges(
            self.prepared.plan,
            base_manifest,
            self.blobs,
            (self.fleet.inputs(position) for position in members),
            overrides=candidate_overrides(model, policy, base_policy, base_manifest, self.blobs),
            policy=policy,
            previous=base_policy.ranges,
            batch_size=self.settings.batch_size,
            recipe=self.settings.calibration,
            labels=(self.fleet.labels(position) for position in members),
            seed=self.settings.augmentation_seed(generation.number),
        )
        return pooled == dict(policy.ranges)

    def weights_equal_pooled(self, generation: Generation) -> bool | None:
        """Return whether a generation's weights are those of all its inputs in one place.

        The same bits in every layer, and the same codes for 99.99 % of all weights. None where devices decided by
        trying: a drop was asked for, or training, or rounding in sequence.
        """
        asked = self.settings.precision
        if asked is None or not generation.weights:
            return None
        if asked.max_drop is not None or asked.trains or asked.rounding_rounds > 1:
            return None
        met = meet(self.grid, self.registry, self.blobs, self.settings, clock=self.grid.clock)
        tuning = met.tunings[generation.device_class]
        base = Base.load(generation, self.registry, self.blobs)
        chosen = json.loads(generation.weights)
        search = replace(WeightSearch.unrounded(tuning, generation, base), factors=chosen["gain_factors"])
        request = search.reference.inputs_request()
        observer = TapObserver(base.manifest, self.blobs.get, request.graph, batch_size=request.batch_size)
        members = [
            position + FIRST_NODE_ID
            for position in sorted(self.grid.traffic.observed[PHASE_INPUTS])
            if self.fleet.device_class(position).name == generation.device_class
        ]
        pooled = pooled_weights(
            search,
            request,
            observer,
            lambda node: self.fleet.inputs(node - FIRST_NODE_ID),
            members,
            node_of=lambda name: int(name) + FIRST_NODE_ID,  # simulated devices are named by their position
        )
        federated = from_bytes(read(self.blobs, chosen["weights_digest"]))
        compared = compare_weights(federated, pooled)
        return compared.has_same_bits and compared.equal_share >= LEAST_EQUAL_SHARE


def drift_of(generation: Generation) -> dict[str, LayerDrift]:
    """Return how far the field lay from the lab before a generation, by layer."""
    layers = json.loads(generation.drift).get("layers", {})
    return {name: LayerDrift(**record) for name, record in layers.items()}
