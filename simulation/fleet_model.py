"""What the devices of a fleet on one machine run and see: a model from the lab, its bad generations, drifted inputs."""

from pathlib import Path
from typing import Any

import numpy as np

from quantization.device_class import X86_VNNI
from quantization.policy import Policy
from server.blob_store import BlobStore
from server.candidate import PlannedModel, load_weights, store_artifact
from server.generation import Generation
from server.registry import Registry
from simulation.bad_generations import bad_artifact
from simulation.drift import parse_drifts
from simulation.fleet import Fleet, FleetSettings
from simulation.fleet_load import FIELD, LAB
from simulation.lab import prepare_task
from simulation.tasks.catalogue import load_task

DEVICE_CLASS = X86_VNNI
_MODEL_NAME = "digit-reader"


class FleetModel:
    """A model in a server's registry and blob store, and the inputs of its devices.

    Attributes:
        model_digest: SHA-256 of the canonical float model, hex.
        lab_manifest_digest: Of generation 0's manifest, hex.
    """

    def __init__(
        self, home: Path, registry_url: str, *, agents: int, drift: str, seed: int, cache_dir: Path | None
    ) -> None:
        """Train the model, unless that was done before, and calibrate it in the lab."""
        task = load_task("digits", seed, cache_dir)
        settings = FleetSettings(agents, "iid", parse_drifts((drift,)), 1.0, (DEVICE_CLASS,), seed)
        self._fleet = Fleet(task, settings)
        self._blobs = BlobStore(home / "blobs")
        self._registry = Registry.open(registry_url)
        prepared = prepare_task(task, (DEVICE_CLASS,), "mse", self._registry, self._blobs, name=_MODEL_NAME)
        self.model_digest = prepared.model.digest
        self.lab_manifest_digest = prepared.generations[DEVICE_CLASS.name].manifest_digest
        self._references = prepared.statistics[DEVICE_CLASS.name].references

    def close(self) -> None:
        """Close the registry."""
        self._registry.close()

    def write_inputs(self, path: Path, place: int) -> Path:
        """Write what a device will see: the same rows as the lab has them, and as the field has them."""
        fleet = self._fleet
        rows = fleet.task.field_x[fleet.rows[place]]
        arrays = {LAB: fleet.task.to_input(rows), FIELD: fleet.inputs(place), "labels": fleet.labels(place)}
        filled: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
        with path.open("wb") as file:
            np.savez(file, **filled)
        return path

    def newest_generation(self) -> Generation:
        """Return the generation that the tuner began last."""
        return self._registry.generations(self.model_digest, DEVICE_CLASS.name)[-1]

    def store_bad(self, kind: str) -> str:
        """Store an artifact of a bad generation, made from the one that serves; return its manifest's digest."""
        served = self._registry.published(self.model_digest, DEVICE_CLASS.name)
        policy = Policy.from_json_bytes(served.policy.encode())
        model = PlannedModel.load(self.model_digest, self._blobs)
        rounded = load_weights(policy, self._blobs)
        return store_artifact(self._blobs, bad_artifact(kind, model, policy, self._references, rounded))
