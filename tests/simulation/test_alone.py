from collections.abc import Iterator

import pytest
from benches import open_bench

from quantization.artifact import Artifact
from simulation.alone import tuned_alone
from simulation.bench import Bench
from simulation.evaluation import accuracy, artifact_model
from simulation.tasks import TaskData

CLASS = "x86-vnni"


@pytest.fixture(scope="module")
def bench(digits: TaskData) -> Iterator[Bench]:
    with open_bench(digits, devices=2, partition="iid", drifts=("brightness=0.35",)) as bench:
        yield bench


def field_accuracy(bench: Bench, artifact: Artifact) -> float:
    for digest, stored in artifact.blobs.items():
        bench.blobs.put(digest, stored)
    infer = artifact_model(artifact.manifest, bench.blobs)
    return accuracy(infer, bench.field_inputs, bench.fleet.task.test_y) or 0.0


def test_a_device_that_sees_all_classes_wins_accuracy_back_alone(bench: Bench) -> None:
    frozen = field_accuracy(bench, bench.prepared.artifacts[CLASS])
    alone = field_accuracy(bench, tuned_alone(bench.prepared, bench.blobs, CLASS, bench.fleet.inputs(0)))
    assert frozen < 0.8
    assert alone > frozen + 0.1


def test_weight_codes_stay_as_the_lab_made_them(bench: Bench) -> None:
    frozen = {ref.location: ref.digest for ref in bench.prepared.artifacts[CLASS].manifest.stages[0].files}
    artifact = tuned_alone(bench.prepared, bench.blobs, CLASS, bench.fleet.inputs(1))
    changed = {
        ref.location for ref in artifact.manifest.stages[0].files if ref.digest != frozen[ref.location]
    }
    assert changed == {"ranges", "channels"}


def test_the_same_inputs_give_the_same_artifact(bench: Bench) -> None:
    first, second = (
        tuned_alone(bench.prepared, bench.blobs, CLASS, bench.fleet.inputs(0)[:40]) for _ in range(2)
    )
    assert first.manifest.to_bytes() == second.manifest.to_bytes()


def test_a_device_that_saw_too_little_keeps_what_it_has(bench: Bench) -> None:
    artifact = tuned_alone(bench.prepared, bench.blobs, CLASS, bench.fleet.inputs(0)[:0])
    frozen = bench.prepared.artifacts[CLASS].manifest.stages[0].files
    assert {ref.digest for ref in artifact.manifest.stages[0].files} == {ref.digest for ref in frozen}
