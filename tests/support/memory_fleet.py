"""A fleet in memory behind the real ClientApp, for tests of rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from client import app as client_app
from quantization.artifact import Artifact, Manifest
from quantization.device_class import DeviceClass
from quantization.errors import NotFoundError
from simulation.grid import FaultFunction, InProcessGrid
from strategies.messages import DeviceHello


@dataclass
class FleetDevice:
    """A device that holds one artifact and some inputs."""

    artifact: Artifact
    rows: np.ndarray
    classes: np.ndarray | None = None

    @property
    def device_class(self) -> DeviceClass:
        return DeviceClass(self.artifact.manifest.device_class)

    def manifest(self) -> Manifest:
        return self.artifact.manifest

    def install(self, manifest: Manifest) -> None:
        assert manifest == self.artifact.manifest

    def has_blob(self, digest: str) -> bool:
        return digest in self.artifact.blobs

    def read_blob(self, digest: str) -> bytes:
        if digest not in self.artifact.blobs:
            raise NotFoundError(digest)
        return self.artifact.blobs[digest]

    def store_blob(self, digest: str, stored: bytes) -> None:
        raise AssertionError(f"{digest} came to a device that holds its artifact: {len(stored)} bytes")

    def inputs(self) -> np.ndarray:
        return self.rows

    def labels(self) -> np.ndarray | None:
        return self.classes

    def close(self) -> None:
        pass


def fleet_grid(
    monkeypatch: pytest.MonkeyPatch, devices: Sequence[FleetDevice], fault: FaultFunction | None = None
) -> tuple[InProcessGrid, tuple[DeviceHello, ...]]:
    """A grid of the real ClientApp on these devices, and what they would say of themselves."""
    monkeypatch.setattr(
        client_app, "open_device", lambda context: devices[int(context.node_config["partition-id"])]
    )
    grid = InProcessGrid(client_app.app, len(devices), fault=fault)
    cohort = tuple(
        DeviceHello(
            node_id,
            device.device_class.name,
            device.artifact.manifest.generation,
            device.artifact.manifest.digest(),
            len(device.rows),
            device.classes is not None,
        )
        for node_id, device in zip(grid.get_node_ids(), devices, strict=True)
    )
    return grid, cohort
