"""Task `digits_vit`: the rows of `digits`, and a vision transformer."""

from pathlib import Path

from quantization.arrays import FloatArray, IntArray
from simulation.tasks.digits import digits_task
from simulation.tasks.task import ProgressFunction, TaskData

RECIPE = 1


def load(seed: int, _variant: str, cache_dir: Path | None, on_progress: ProgressFunction) -> TaskData:
    """Return the task; trains a transformer of three blocks in about 30 seconds the first time."""
    return digits_task("digits_vit", RECIPE, seed, cache_dir, lambda x, y: _train(x, y, seed, on_progress))


def _train(x: FloatArray, y: IntArray, seed: int, on_progress: ProgressFunction) -> bytes:
    import torch  # noqa: PLC0415 - a cached model needs no torch

    from server.export import export_torch  # noqa: PLC0415
    from simulation.tasks.training import Recipe, train  # noqa: PLC0415
    from simulation.tasks.transformers import DigitsVit, shifted  # noqa: PLC0415

    recipe = Recipe(epochs=120, batch_size=64, learning_rate=0.003, weight_decay=0.05, label_smoothing=0.1)
    network = train(DigitsVit, x, y, recipe, seed, augment=shifted, on_progress=on_progress)
    return export_torch(network, torch.from_numpy(x[:2]))
