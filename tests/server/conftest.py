"""A small real model, its inputs, an empty registry and blob store, and a fleet of devices in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from flwr.app import Context
from onnx import TensorProto, helper, numpy_helper

from client.app import app as client_app
from quantization.arrays import FloatArray, IntArray
from quantization.artifact import Manifest
from quantization.device_class import ARM, DeviceClass
from quantization.errors import NotFoundError
from server.blob_store import BlobStore
from server.registry import Registry
from simulation.grid import FaultFunction, InProcessGrid

CLASSES = 3


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}") as opened:
        yield opened


@pytest.fixture(scope="session")
def tiny_model() -> bytes:
    """Two convolutions and a classifier of 3 classes, on (N, 1, 8, 8)."""
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (4, 1, 3, 3),
        "b1": (4,),
        "w2": (6, 4, 3, 3),
        "b2": (6,),
        "w3": (CLASSES, 6),
        "b3": (CLASSES,),
    }
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["w3"] *= 20  # small features become sure decisions,
    arrays["b3"] += np.array([-0.6, -37.1, 26.8], np.float32)  # and all classes occur
    weights = {name: numpy_helper.from_array(array, name) for name, array in arrays.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        list(weights.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def images(seed: int, count: int) -> FloatArray:
    """Return smooth random images in 0 to 1, float32 (count, 1, 8, 8)."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 1, (count, 1, 4, 4))
    return np.kron(coarse, np.ones((1, 1, 2, 2))).astype(np.float32)


@pytest.fixture(scope="session")
def lab_inputs() -> FloatArray:
    return images(seed=1, count=90)


@dataclass
class MemoryDevice:
    """A device whose state is in memory."""

    device_class: DeviceClass
    x: FloatArray
    y: IntArray | None = None
    installed: Manifest | None = None
    held: dict[str, bytes] = field(default_factory=dict)

    def manifest(self) -> Manifest | None:
        return self.installed

    def install(self, manifest: Manifest) -> None:
        self.installed = manifest

    def has_blob(self, digest: str) -> bool:
        return digest in self.held

    def read_blob(self, digest: str) -> bytes:
        if digest not in self.held:
            raise NotFoundError(f"no blob {digest}")
        return self.held[digest]

    def store_blob(self, digest: str, stored: bytes) -> None:
        self.held[digest] = stored

    def inputs(self) -> FloatArray:
        return self.x

    def labels(self) -> IntArray | None:
        return self.y

    def close(self) -> None:
        pass


@dataclass
class Fleet:
    """Devices in memory that run the real ClientApp on an in-process grid."""

    devices: list[MemoryDevice]
    fault: FaultFunction | None = None

    def open(self, context: Context) -> MemoryDevice:
        return self.devices[int(context.node_config["partition-id"])]

    def grid(self) -> InProcessGrid:
        return InProcessGrid(client_app, len(self.devices), fault=self.fault)


MakeFleet = Callable[..., Fleet]


@pytest.fixture
def make_fleet(monkeypatch: pytest.MonkeyPatch) -> MakeFleet:
    """Return a function that makes the fleet of this test; the last one made answers."""

    def make(
        *,
        devices: int = 6,
        gain: float = 1.0,
        offset: float = 0.0,
        samples: int = 40,
        device_class: DeviceClass = ARM,
        fault: FaultFunction | None = None,
    ) -> Fleet:
        inputs = [images(100 + k, samples) * np.float32(gain) + np.float32(offset) for k in range(devices)]
        fleet = Fleet([MemoryDevice(device_class, x) for x in inputs], fault)
        monkeypatch.setattr("client.app.open_device", fleet.open)
        return fleet

    return make
