"""The built-in tasks by name. A task's own module, and torch, are imported when it is loaded."""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from quantization.errors import ConfigurationError
from simulation.tasks.task import ProgressFunction, TaskData, no_progress

LoadFunction = Callable[[int, str, Path | None, ProgressFunction], TaskData]
"""Seed, variant, folder for trained models and progress in; the task out."""


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Where a task comes from.

    Attributes:
        name: What is typed.
        summary: One line for a list.
        data_files: Files it needs in the data folder; none for data that a library brings.
        module: Has its `load`, a `LoadFunction`.
        variants: What the word after a colon in the name chooses, in words; empty if there is no choice.
    """

    name: str
    summary: str
    data_files: tuple[str, ...]
    module: str
    variants: str = ""


TASKS: tuple[TaskSource, ...] = (
    TaskSource("digits", "handwritten digits, 8x8 pixels, in scikit-learn", (), "simulation.tasks.digits"),
    TaskSource(
        "har",
        "what people do, from phones worn at the waist; devices are people",
        ("har.npz",),
        "simulation.tasks.har",
    ),
    TaskSource(
        "fsdd",
        "spoken digits of a speaker the lab never heard",
        ("fsdd.npz",),
        "simulation.tasks.fsdd",
        "the speaker in the field, such as fsdd:jackson; the seed chooses by default",
    ),
    TaskSource(
        "fashion_mnist",
        "photos of clothes, 28x28 pixels",
        ("fashion_mnist.npz",),
        "simulation.tasks.fashion_mnist",
    ),
    TaskSource(
        "cifar10",
        "photos of things, 32x32 pixels, with a trained ResNet-20",
        ("cifar10_subset.npz", "resnet20_cifar10.npz"),
        "simulation.tasks.cifar10",
    ),
    TaskSource(
        "digits_vit", "the rows of digits, with a vision transformer", (), "simulation.tasks.digits_vit"
    ),
    TaskSource(
        "unicode",
        "kinds of characters from their names, with a text encoder",
        (),
        "simulation.tasks.unicode",
    ),
)
"""All built-in tasks; the first is the default."""


def load_task(
    name: str, seed: int = 0, cache_dir: Path | None = None, on_progress: ProgressFunction = no_progress
) -> TaskData:
    """Return a built-in task; trains its model the first time, and keeps it.

    Args:
        name: As in `TASKS`, with a variant behind a colon where there is one: "digits", "fsdd:jackson".
        seed: Of splits and training, 0 or more.
        cache_dir: Folder for trained models; None for the user's.
        on_progress: Told which share is done, 0 to 1, and what is going on.

    Raises:
        ConfigurationError: If the name is unknown, or its data is not there; names the remedy.
        InvalidDataError: If a data file is damaged.
    """
    base, has_variant, variant = name.partition(":")
    sources = {source.name: source for source in TASKS}
    if base not in sources:
        near = difflib.get_close_matches(base.replace("-", "_").lower(), sources, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(f"unknown task {name!r}; {hint}known: {', '.join(sources)}")
    source = sources[base]
    if has_variant and not (source.variants and variant):
        raise ConfigurationError(
            f"task {name!r} is unknown: {base} has no variants like that; give --task {base}"
        )
    load = cast("LoadFunction", importlib.import_module(source.module).load)
    return load(seed, variant, cache_dir, on_progress)
