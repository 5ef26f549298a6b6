"""Task `digits`: scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no data folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from quantization.arrays import FloatArray, IntArray
from simulation.data import array_digest
from simulation.tasks.model_cache import ModelKey, cached_model
from simulation.tasks.splits import stratified_split
from simulation.tasks.task import ProgressFunction, TaskData

RECIPE = 2
LAB_ROWS, FIELD_ROWS, TEST_ROWS = 797, 500, 500
_GREY_LEVELS = 16


TrainFunction = Callable[[FloatArray, IntArray], bytes]
"""Inputs and classes of the lab in, a float32 ONNX model out."""


def load(seed: int, _variant: str, cache_dir: Path | None, on_progress: ProgressFunction) -> TaskData:
    """Return the task; trains a CNN of four convolutions in about 3 seconds the first time."""
    return digits_task("digits", RECIPE, seed, cache_dir, lambda x, y: _train(x, y, seed, on_progress))


def digits_task(name: str, recipe: int, seed: int, cache_dir: Path | None, train: TrainFunction) -> TaskData:
    """Return the rows with the model that `train` makes of the lab's, or the one that was kept.

    Args:
        name: Of the task.
        recipe: Version of how the model is built and trained.
        seed: Of the splits and of training.
        cache_dir: Folder for trained models; None for the user's.
        train: Called at most once.
    """
    source = load_digits()
    x = (source.images[:, None] / _GREY_LEVELS).astype(np.float32)
    y = source.target.astype(np.int64)
    sizes = (LAB_ROWS, FIELD_ROWS, TEST_ROWS)
    lab, field, test = stratified_split(y, sizes, np.random.default_rng(seed))
    key = ModelKey(name, recipe, seed, array_digest(x, y))
    model = cached_model(cache_dir, key, lambda: train(x[lab], y[lab]))
    return TaskData(
        name=name,
        domain="image",
        model=model,
        lab_x=x[lab],
        lab_y=y[lab],
        field_x=x[field],
        field_y=y[field],
        field_owner=None,
        test_x=x[test],
        test_y=y[test],
        classes=tuple(str(digit) for digit in range(10)),
    )


def _train(x: FloatArray, y: IntArray, seed: int, on_progress: ProgressFunction) -> bytes:
    import torch  # noqa: PLC0415 - a cached model needs no torch

    from server.export import export_torch  # noqa: PLC0415
    from simulation.tasks.networks import DigitsNet  # noqa: PLC0415
    from simulation.tasks.training import Recipe, train  # noqa: PLC0415

    recipe = Recipe(epochs=25, batch_size=32, learning_rate=0.01, weight_decay=0.05)
    network = train(DigitsNet, x, y, recipe, seed, on_progress=on_progress)
    return export_torch(network, torch.from_numpy(x[:2]))
