from pathlib import Path

import numpy as np
import pytest
from models import ModelBuilder, digits_cnn, example_inputs, run

from quantization.errors import UnsupportedModelError
from server.blob_store import BlobStore
from server.registry import Registry
from simulation.evaluation import BATCH_SIZE, accuracy, artifact_model, float_model, predictions
from simulation.fleet import class_named
from simulation.lab import prepare_task
from simulation.tasks import TaskData


def test_float_model_runs_the_model_itself() -> None:
    model = digits_cnn()
    x = example_inputs(model, 5)
    (expected,) = run(model, x).values()
    np.testing.assert_array_equal(float_model(model)(x), expected)


@pytest.mark.parametrize("rows", [1, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1, 2 * BATCH_SIZE + 3])
def test_every_row_is_predicted_in_order(rows: int) -> None:
    logits = np.random.default_rng(0).normal(size=(rows, 7))
    seen: list[int] = []

    def infer(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return batch

    np.testing.assert_array_equal(predictions(infer, logits), logits.argmax(axis=1))
    assert sum(seen) == rows
    assert max(seen) <= BATCH_SIZE


def test_accuracy_is_the_share_of_right_answers() -> None:
    logits = np.eye(4)[[0, 1, 2, 3]]
    assert accuracy(lambda batch: batch, logits, np.array([0, 1, 0, 0])) == 0.5
    assert accuracy(lambda batch: batch, logits, None) is None


def test_a_model_that_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="ONNX Runtime cannot load it: "):
        float_model(b"no model")


def test_a_model_that_cannot_run_says_on_what_and_why(capfd: pytest.CaptureFixture[str]) -> None:
    b = ModelBuilder(["N", "C", 8, 8])
    infer = float_model(b.bytes(b.conv("x", 4, 6, 3)))
    with pytest.raises(
        UnsupportedModelError, match=r"cannot run it on inputs of shape \(2, 3, 8, 8\)"
    ) as caught:
        infer(np.zeros((2, 3, 8, 8), np.float32))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_an_artifact_answers_as_the_model_it_was_made_from(digits: TaskData, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    with Registry.open(f"sqlite:///{tmp_path}/registry.db") as registry:
        prepared = prepare_task(digits, (class_named("x86"),), "mse", registry, blobs)
    infer = artifact_model(prepared.artifacts["x86"].manifest, blobs)
    exact = predictions(float_model(digits.model), digits.test_x)
    assert np.mean(predictions(infer, digits.test_x) == exact) > 0.99
    assert (accuracy(infer, digits.test_x, digits.test_y) or 0) > 0.95
