"""Task `fsdd`: spoken digits; the field is one speaker whom the lab never heard."""

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import AnyArray, FloatArray, IntArray
from quantization.errors import ConfigurationError
from simulation.data import read_data_file
from simulation.tasks.log_mel import SAMPLE_RATE_HZ, log_mel
from simulation.tasks.model_cache import ModelKey, cached_model
from simulation.tasks.splits import stratified_split
from simulation.tasks.task import ProgressFunction, TaskData

RECIPE = 2
_FILE = "fsdd.npz"
_ARRAYS = ("audio", "offset", "label", "speaker", "speakers")
_FULL_SCALE = 32_768


def load(seed: int, variant: str, cache_dir: Path | None, on_progress: ProgressFunction) -> TaskData:
    """Return the task; trains a DS-CNN in about a minute the first time.

    Args:
        seed: Of split and training; also chooses the speaker in the field, in turn, unless one is named.
        variant: Name of the speaker in the field, or nothing.
        cache_dir: Folder for trained models.
        on_progress: Told how far it is.
    """
    data = read_data_file(_FILE, _ARRAYS, "fsdd")
    names = [str(name) for name in data.arrays["speakers"]]
    if variant and variant not in names:
        raise ConfigurationError(f"fsdd has no speaker {variant!r}; give one of {', '.join(names)}")
    chosen = names.index(variant) if variant else seed % len(names)
    is_field = data.arrays["speaker"] == chosen
    x = _as_waves(data.arrays["audio"], data.arrays["offset"])
    y = data.arrays["label"].astype(np.int64)
    lab, heard = np.flatnonzero(~is_field), np.flatnonzero(is_field)
    sizes = (len(heard) // 2, len(heard) - len(heard) // 2)
    field, test = (heard[rows] for rows in stratified_split(y[heard], sizes, np.random.default_rng(seed)))
    key = ModelKey("fsdd", RECIPE, seed, data.digest, names[chosen])
    model = cached_model(cache_dir, key, lambda: _train(x[lab], y[lab], seed, on_progress))
    return TaskData(
        name=f"fsdd:{variant}" if variant else "fsdd",
        domain="audio",
        model=model,
        lab_x=x[lab],
        lab_y=y[lab],
        field_x=x[field],
        field_y=y[field],
        field_owner=None,
        test_x=x[test],
        test_y=y[test],
        to_input=log_mel,
        classes=tuple(str(digit) for digit in range(10)),
    )


def _as_waves(audio: AnyArray, offset: AnyArray) -> NDArray[np.float32]:
    """Return recordings (N, 8000): one second from the start of each, padded with zeros, full scale 1."""
    waves = np.zeros((len(offset) - 1, SAMPLE_RATE_HZ), np.float32)
    for row, (start, stop) in enumerate(itertools.pairwise(offset)):
        clip = audio[start : min(stop, start + SAMPLE_RATE_HZ)]
        waves[row, : len(clip)] = clip
    waves /= np.float32(_FULL_SCALE)
    return waves


def _train(x: FloatArray, y: IntArray, seed: int, on_progress: ProgressFunction) -> bytes:
    import torch  # noqa: PLC0415 - a cached model needs no torch

    from server.export import export_torch  # noqa: PLC0415
    from simulation.tasks.networks import DepthwiseSeparableNet  # noqa: PLC0415
    from simulation.tasks.speech_augmentation import augmented_log_mel  # noqa: PLC0415
    from simulation.tasks.training import Recipe, train  # noqa: PLC0415

    recipe = Recipe(epochs=15, batch_size=64, learning_rate=0.01, weight_decay=0.05, label_smoothing=0.1)
    network = train(
        DepthwiseSeparableNet, x, y, recipe, seed, augment=augmented_log_mel, on_progress=on_progress
    )
    return export_torch(network, torch.from_numpy(log_mel(x[:2])))
