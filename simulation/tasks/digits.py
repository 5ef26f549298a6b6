"""Task `digits`: scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no data folder."""

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


def load(seed: int, _variant: str, cache_dir: Path | None, on_progress: ProgressFunction) -> TaskData:
    """Return the task; trains a CNN of four convolutions in about 3 seconds the first time."""
    source = load_digits()
    x = (source.images[:, None] / _GREY_LEVELS).astype(np.float32)
    y = source.target.astype(np.int64)
    sizes = (LAB_ROWS, FIELD_ROWS, TEST_ROWS)
    lab, field, test = stratified_split(y, sizes, np.random.default_rng(seed))
    key = ModelKey("digits", RECIPE, seed, array_digest(x, y))
    model = cached_model(cache_dir, key, lambda: _train(x[lab], y[lab], seed, on_progress))
    return TaskData(
        name="digits",
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
