import time
from collections.abc import Callable

import numpy as np
import pytest

from client.runtime import Runtime
from quantization.artifact import Artifact
from quantization.device_class import X86_VNNI
from quantization.errors import ConfigurationError, UpdateRejectedError
from quantization.layer_weights import NOTHING_ROUNDED
from quantization.policy import Policy
from server.blob_store import BlobStore
from server.candidate import PlannedModel
from server.registry import Registry
from simulation.bad_generations import BAD_KINDS, bad_artifact
from simulation.lab import prepare_task
from simulation.tasks import TaskData

MakeBad = Callable[[str], Artifact]


@pytest.fixture(scope="module")
def make_bad(digits: TaskData, tmp_path_factory: pytest.TempPathFactory) -> MakeBad:
    folder = tmp_path_factory.mktemp("bad")
    blobs = BlobStore(folder / "blobs")
    with Registry.open(f"sqlite:///{folder / 'registry.db'}") as registry:
        prepared = prepare_task(digits, (X86_VNNI,), "mse", registry, blobs)
    policy = Policy.from_json_bytes(prepared.generations[X86_VNNI.name].policy.encode())
    references = prepared.statistics[X86_VNNI.name].references
    model = PlannedModel.load(prepared.model.digest, blobs)
    return lambda kind: (
        prepared.artifacts[X86_VNNI.name]
        if kind == "good"
        else bad_artifact(kind, model, policy, references, NOTHING_ROUNDED)
    )


def _runtime(artifact: Artifact) -> Runtime:
    """Return the artifact as a device runs it: after its self-test."""
    return Runtime(artifact.manifest, artifact.blobs.__getitem__, 1)


def _accuracy(artifact: Artifact, task: TaskData) -> float:
    said = _runtime(artifact).infer(task.to_input(task.test_x)).argmax(axis=1)
    return float((said == task.test_y).mean())


@pytest.mark.parametrize("kind", ["destroyed-ranges", "two-bits"])
def test_a_bad_generation_passes_its_self_test_and_is_far_worse(
    make_bad: MakeBad, digits: TaskData, kind: str
) -> None:
    assert _accuracy(make_bad("good"), digits) > 0.9
    assert _accuracy(make_bad(kind), digits) < 0.8


def test_a_slow_generation_says_the_same_ten_times_later(make_bad: MakeBad, digits: TaskData) -> None:
    good, slow, rows = (
        _runtime(make_bad("good")),
        _runtime(make_bad("slow")),
        digits.to_input(digits.test_x[:8]),
    )
    assert np.array_equal(good.infer(rows), slow.infer(rows))
    assert _least_seconds(slow, rows) > 10 * _least_seconds(good, rows)


def test_a_generation_without_a_graph_does_not_load(make_bad: MakeBad) -> None:
    with pytest.raises(UpdateRejectedError):
        _runtime(make_bad("does-not-load"))


def test_bad_generations_follow_the_one_they_are_made_from(make_bad: MakeBad) -> None:
    assert {make_bad(kind).manifest.generation for kind in BAD_KINDS} == {1}
    assert len({make_bad(kind).manifest.digest() for kind in BAD_KINDS}) == len(BAD_KINDS)


def test_an_unknown_kind_is_refused(make_bad: MakeBad) -> None:
    with pytest.raises(ConfigurationError, match="known are destroyed-ranges"):
        make_bad("haunted")


def _least_seconds(runtime: Runtime, rows: np.ndarray) -> float:
    """Return the time of the fastest of some runs; the two differ by a factor of a hundred, whatever else runs."""
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        runtime.infer(rows)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
