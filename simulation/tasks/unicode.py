"""Task `unicode`: tell from a character's name what kind of character it is; a text task that every Python brings.

The names are those of Unicode 3.2, which Python keeps for internationalised domain names and which never change, so
the rows are the same everywhere. Ideographs and Hangul syllables are left out: their names follow from their numbers.
"""

import unicodedata
from pathlib import Path

import numpy as np

from quantization.arrays import FloatArray, IntArray
from simulation.data import array_digest
from simulation.tasks.model_cache import ModelKey, cached_model
from simulation.tasks.splits import stratified_split
from simulation.tasks.task import ProgressFunction, TaskData

RECIPE = 1
LENGTH = 40
"""Most characters of a name; longer ones, a tenth of all, are left out."""

FIELD_ROWS, TEST_ROWS, CALIBRATION_ROWS = 2_500, 2_500, 2_000
_ALPHABET = " -0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_KINDS = {
    "upper-case letter": ("Lu", "Lt"),
    "lower-case letter": ("Ll",),
    "other letter": ("Lo", "Lm"),
    "mark": ("Mn", "Mc", "Me"),
    "number": ("Nd", "Nl", "No"),
    "punctuation": ("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"),
    "mathematical symbol": ("Sm",),
    "other symbol": ("Sk", "Sc", "So"),
}
"""General categories of Unicode by class; controls and separators are left out."""

_DERIVED = ("CJK ", "HANGUL SYLLABLE ")


def load(seed: int, _variant: str, cache_dir: Path | None, on_progress: ProgressFunction) -> TaskData:
    """Return the task; trains a text encoder of two blocks in under a minute the first time."""
    x, y = load_rows()
    sizes = (FIELD_ROWS, TEST_ROWS, CALIBRATION_ROWS, len(y) - FIELD_ROWS - TEST_ROWS - CALIBRATION_ROWS)
    field, test, lab, others = stratified_split(y, sizes, np.random.default_rng(seed))
    trained = np.concatenate([lab, others])
    key = ModelKey("unicode", RECIPE, seed, array_digest(x, y))
    model = cached_model(cache_dir, key, lambda: _train(x[trained], y[trained], seed, on_progress))
    return TaskData(
        name="unicode",
        domain="generic",
        model=model,
        lab_x=x[lab],
        lab_y=y[lab],
        field_x=x[field],
        field_y=y[field],
        field_owner=None,
        test_x=x[test],
        test_y=y[test],
        classes=tuple(_KINDS),
    )


def encoded(name: str) -> FloatArray:
    """Return the numbers of the characters of a name, (LENGTH,), float32; 0 behind its end."""
    numbers = [_ALPHABET.index(character) + 1 for character in name]
    return np.array(numbers + [0] * (LENGTH - len(numbers)), np.float32)


def load_rows() -> tuple[FloatArray, IntArray]:
    """Return encoded names (N, LENGTH) and their classes (N,), in the order of the characters."""
    classes = {category: number for number, kinds in enumerate(_KINDS.values()) for category in kinds}
    database = unicodedata.ucd_3_2_0
    names, kinds = [], []
    for point in range(0x20000):
        name = database.name(chr(point), "")
        category = database.category(chr(point))
        is_read = 0 < len(name) <= LENGTH and not name.startswith(_DERIVED)
        if is_read and category in classes:
            names.append(encoded(name))
            kinds.append(classes[category])
    return np.array(names, np.float32), np.array(kinds, np.int64)


def _train(x: FloatArray, y: IntArray, seed: int, on_progress: ProgressFunction) -> bytes:
    import torch  # noqa: PLC0415 - a cached model needs no torch

    from server.export import export_torch  # noqa: PLC0415
    from simulation.tasks.training import Recipe, train  # noqa: PLC0415
    from simulation.tasks.transformers import NameEncoder  # noqa: PLC0415

    def build() -> NameEncoder:
        return NameEncoder(len(_ALPHABET) + 1, LENGTH, len(_KINDS))

    recipe = Recipe(epochs=12, batch_size=64, learning_rate=0.003, weight_decay=0.05, label_smoothing=0.1)
    network = train(build, x, y, recipe, seed, on_progress=on_progress)
    return export_torch(network, torch.from_numpy(x[:2]))
