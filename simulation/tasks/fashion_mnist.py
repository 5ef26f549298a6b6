"""Task `fashion_mnist`: photos of clothes, 28x28 grey pixels."""

from pathlib import Path

import numpy as np

from quantization.arrays import AnyArray, FloatArray, IntArray
from simulation.data import DataFile, HubDataset, fetch_images, has_data_file, has_hub, read_data_file
from simulation.tasks.model_cache import ModelKey, cached_model
from simulation.tasks.splits import stratified_split
from simulation.tasks.task import ProgressFunction, TaskData

RECIPE = 2
FIELD_ROWS = 3_000
CALIBRATION_ROWS = 3_000
"""Of the rows it trains with, how many the lab calibrates with."""

_FILE = "fashion_mnist.npz"
_HUB = HubDataset("zalando-datasets/fashion_mnist", "image", "label")
_HUB_TRAIN_ROWS, _HUB_TEST_ROWS = 15_000, 5_000
_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load(seed: int, _variant: str, cache_dir: Path | None, on_progress: ProgressFunction) -> TaskData:
    """Return the task; trains a CNN of three convolutions in under a minute the first time."""
    data = _data()
    x, y = _as_images(data.arrays["x_train"]), data.arrays["y_train"].astype(np.int64)
    field_rows, calibration_rows = min(FIELD_ROWS, len(y) // 5), min(CALIBRATION_ROWS, len(y) // 5)
    sizes = (field_rows, calibration_rows, len(y) - field_rows - calibration_rows)
    field, lab, others = stratified_split(y, sizes, np.random.default_rng(seed))
    trained = np.concatenate([lab, others])
    key = ModelKey("fashion_mnist", RECIPE, seed, data.digest)
    model = cached_model(cache_dir, key, lambda: _train(x[trained], y[trained], seed, on_progress))
    return TaskData(
        name="fashion_mnist",
        domain="image",
        model=model,
        lab_x=x[lab],
        lab_y=y[lab],
        field_x=x[field],
        field_y=y[field],
        field_owner=None,
        test_x=_as_images(data.arrays["x_test"]),
        test_y=data.arrays["y_test"].astype(np.int64),
        classes=_CLASSES,
    )


def _data() -> DataFile:
    if not has_data_file(_FILE) and has_hub():
        return fetch_images(_HUB, _HUB_TRAIN_ROWS, _HUB_TEST_ROWS)
    return read_data_file(_FILE, ("x_train", "y_train", "x_test", "y_test"), "fashion_mnist")


def _as_images(pixels: AnyArray) -> FloatArray:
    """Return uint8 pixels (N, 28, 28) as (N, 1, 28, 28) in 0..1."""
    return np.asarray(pixels[:, None], np.float32) / np.float32(255)


def _train(x: FloatArray, y: IntArray, seed: int, on_progress: ProgressFunction) -> bytes:
    import torch  # noqa: PLC0415 - a cached model needs no torch

    from server.export import export_torch  # noqa: PLC0415
    from simulation.tasks.networks import FashionNet  # noqa: PLC0415
    from simulation.tasks.training import Recipe, train  # noqa: PLC0415

    recipe = Recipe(epochs=10, batch_size=64, learning_rate=0.02, weight_decay=0.05, label_smoothing=0.1)
    network = train(FashionNet, x, y, recipe, seed, on_progress=on_progress)
    return export_torch(network, torch.from_numpy(x[:2]))
