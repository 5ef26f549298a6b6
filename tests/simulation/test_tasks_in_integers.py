"""Every built-in task's own model: all layers fused, simulated bit for bit, and hardly less accurate in int8."""

import os
from collections.abc import Mapping
from pathlib import Path

import models
import numpy as np
import pytest

from quantization.artifact import decode_blob, decode_files
from quantization.compile import CompiledGraph, compile_inference
from quantization.device_class import X86, X86_VNNI, DeviceClass
from quantization.policy import Policy
from quantization.simulate import compare_layers, expose_layers
from server.blob_store import BlobStore
from server.candidate import PlannedModel
from server.registry import Registry
from simulation.evaluation import accuracy, artifact_model, float_model
from simulation.lab import prepare_task
from simulation.tasks import TASKS, load_task
from simulation.tasks.task import TaskData

pytestmark = [pytest.mark.slow]

FUSED = {"Conv": "QLinearConv", "Gemm": "QGemm", "MatMul": "MatMulIntegerToFloat"}
TEST_ROWS = 2000
TOLERATED_LOSS = {X86_VNNI: 0.005, X86: 0.01}
"""Accuracy that int8 may cost: half a point with 8-bit weights, a point with 7."""


def task_named(name: str) -> TaskData:
    """Load it, or skip, saying what is missing."""
    (source,) = (source for source in TASKS if source.name == name)
    if source.data_files and not os.environ.get("QUANTFLEET_DATA"):
        pytest.skip(f"{name} needs {', '.join(source.data_files)}; QUANTFLEET_DATA is not set")
    return load_task(name)


def compiled_by_class(task: TaskData, folder: Path) -> Mapping[DeviceClass, tuple[CompiledGraph, float]]:
    """Compile generation 0 for CPUs with and without VNNI; give its accuracy without drift, too."""
    blobs = BlobStore(folder / "blobs")
    found = {}
    with Registry.open(f"sqlite:///{folder}/registry.db") as registry:
        prepared = prepare_task(task, (X86_VNNI, X86), "mse", registry, blobs)
        planned = PlannedModel.load(prepared.model.digest, blobs)
        for device_class in (X86_VNNI, X86):
            policy = Policy.from_json_bytes(prepared.generations[device_class.name].policy.encode())
            manifest = prepared.artifacts[device_class.name].manifest
            stage = manifest.stages[0]
            graph = compile_inference(planned.content, planned.plan, policy)
            assert decode_blob(stage.skeleton, blobs.get(stage.skeleton.digest)) == graph.skeleton
            assert decode_files(stage.files, blobs.get).keys() >= graph.files.keys()
            rows = task.to_input(task.test_x[:TEST_ROWS])
            right = accuracy(artifact_model(manifest, blobs), rows, task.test_y[:TEST_ROWS])
            found[device_class] = graph, right or 0.0
    return found


@pytest.mark.parametrize("name", [source.name for source in TASKS])
def test_model_of_the_task_is_integer_exact_and_accurate(name: str, tmp_path: Path) -> None:
    task = task_named(name)
    inputs = task.to_input(task.test_x[:8])
    rows = task.to_input(task.test_x[:TEST_ROWS])
    exact = accuracy(float_model(task.model), rows, task.test_y[:TEST_ROWS]) or 0.0
    for device_class, (graph, right) in compiled_by_class(task, tmp_path).items():
        layers = [node.op_type for node in _layer_nodes(graph)]
        fused = models.fused_ops(graph, tmp_path)
        for op in set(layers):
            assert fused[FUSED[op]] == layers.count(op), (
                f"{device_class.name}: some {op} is not fused: {fused}"
            )
        observed = models.run(expose_layers(graph), inputs.astype(np.float32), graph.files)
        different = compare_layers(graph, observed)
        assert len(different) == len(layers)
        assert not any(different.values()), f"{device_class.name}: {different}"
        assert right >= exact - TOLERATED_LOSS[device_class], (
            f"{device_class.name}: int8 {right:.4f}, fp32 {exact:.4f}"
        )


def _layer_nodes(graph: CompiledGraph) -> list[models.onnx.NodeProto]:
    nodes = models.onnx.load_model_from_string(graph.skeleton).graph.node
    return [n for n in nodes if n.op_type in FUSED and n.input[1].endswith(":float")]
