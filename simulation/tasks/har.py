"""Task `har`: what people do, from the accelerometer and gyroscope of a phone at the waist.

The lab has windows of some people, the field of others, and a device belongs to one person. Windows overlap
by half, so windows that share samples stay on one side of every split.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantization.arrays import FloatArray, IntArray
from simulation.data import read_data_file
from simulation.tasks.model_cache import ModelKey, cached_model
from simulation.tasks.task import ProgressFunction, TaskData

RECIPE = 2
WINDOW_SAMPLES = 128
_FILE = "har.npz"
_ARRAYS = ("X", "scale", "y", "subject", "experiment", "start", "is_test", "classes")


def load(seed: int, _variant: str, cache_dir: Path | None, on_progress: ProgressFunction) -> TaskData:
    """Return the task; trains a 1-D CNN in about 20 seconds the first time."""
    data = read_data_file(_FILE, _ARRAYS, "har")
    arrays = data.arrays
    x = np.ascontiguousarray((arrays["X"] * arrays["scale"]).transpose(0, 2, 1), np.float32)
    y = arrays["y"].astype(np.int64)
    is_field = arrays["is_test"].astype(bool)
    person = arrays["subject"].astype(np.int64)
    lab = np.flatnonzero(~is_field)
    windows = Windows(person, y, arrays["experiment"].astype(np.int64), arrays["start"].astype(np.int64))
    field, test = split_windows(np.flatnonzero(is_field), windows, np.random.default_rng(seed))
    key = ModelKey("har", RECIPE, seed, data.digest)
    model = cached_model(cache_dir, key, lambda: _train(x[lab], y[lab], seed, on_progress))
    return TaskData(
        name="har",
        domain="sensor",
        model=model,
        lab_x=x[lab],
        lab_y=y[lab],
        field_x=x[field],
        field_y=y[field],
        field_owner=person[field],
        test_x=x[test],
        test_y=y[test],
        classes=tuple(str(name) for name in arrays["classes"]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Where windows of `WINDOW_SAMPLES` samples come from, each column int64 (N,).

    Attributes:
        person: Who.
        label: What they did.
        recording: Number of the recording.
        start: First sample of the window in it.
    """

    person: IntArray
    label: IntArray
    recording: IntArray
    start: IntArray


def split_windows(rows: IntArray, windows: Windows, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Return two halves of windows, none of which shares a sample with one of the other half.

    A stretch of overlapping windows goes to one half as a whole. Each person's stretches of each activity are
    dealt out in random order to the half that has fewer windows of it; a person with one stretch of an
    activity has it cut in the middle, and the windows across the cut are left out.

    Args:
        rows: Numbers of the windows to split.
        windows: Where all windows come from.
        rng: Chooses.
    """
    halves: tuple[list[IntArray], list[IntArray]] = ([], [])
    stretches: dict[tuple[int, int], list[IntArray]] = {}
    for stretch in _stretches(rows, windows):
        key = int(windows.person[stretch[0]]), int(windows.label[stretch[0]])
        stretches.setdefault(key, []).append(stretch)
    for key in sorted(stretches):
        group = stretches[key]
        if len(group) == 1:
            group = _cut(group[0], windows.start)
        counts = [0, 0]
        first = int(rng.integers(2))
        for index in rng.permutation(len(group)):
            half = first if counts[first] <= counts[1 - first] else 1 - first
            halves[half].append(group[index])
            counts[half] += len(group[index])
    nothing = np.empty(0, np.int64)
    return np.sort(np.concatenate([nothing, *halves[0]])), np.sort(np.concatenate([nothing, *halves[1]]))


def _stretches(rows: IntArray, windows: Windows) -> list[IntArray]:
    """Return runs of windows in which each shares samples with the one before."""
    order = rows[np.lexsort((windows.start[rows], windows.recording[rows]))]
    is_break = (np.diff(windows.recording[order]) != 0) | (np.diff(windows.start[order]) >= WINDOW_SAMPLES)
    return np.split(order, np.flatnonzero(is_break) + 1)


def _cut(stretch: IntArray, start: IntArray) -> list[IntArray]:
    """Return a stretch in two parts that share no sample, or whole if it is too short."""
    middle = len(stretch) // 2
    later = stretch[middle:]
    apart = later[start[later] >= start[stretch[middle - 1]] + WINDOW_SAMPLES] if middle else later[:0]
    return [stretch[:middle], apart] if len(apart) else [stretch]


def _train(x: FloatArray, y: IntArray, seed: int, on_progress: ProgressFunction) -> bytes:
    import torch  # noqa: PLC0415 - a cached model needs no torch

    from server.export import export_torch  # noqa: PLC0415
    from simulation.tasks.networks import HarNet  # noqa: PLC0415
    from simulation.tasks.training import Recipe, train  # noqa: PLC0415

    recipe = Recipe(epochs=20, batch_size=128, learning_rate=5e-3, weight_decay=0.05, label_smoothing=0.1)
    network = train(HarNet, x, y, recipe, seed, on_progress=on_progress)
    return export_torch(network, torch.from_numpy(x[:2]))
