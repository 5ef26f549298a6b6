"""The recorded data of the built-in tasks: files in the folder that `QUANTFLEET_DATA` names.

`docs/scenarios.md` lists the files with their sources and licences. Image sets may come through
flwr-datasets instead, where that package is installed and the machine has internet.
"""

import hashlib
import importlib.util
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantization.arrays import AnyArray
from quantization.errors import ConfigurationError
from simulation.npz import read_npz

DATA_VARIABLE = "QUANTFLEET_DATA"


@dataclass(frozen=True, slots=True, eq=False)
class DataFile:
    """Arrays of a file, and what tells it from every other.

    Attributes:
        arrays: By name.
        digest: SHA-256 of the file, or of what stands for it, as hex.
    """

    arrays: Mapping[str, AnyArray]
    digest: str


def read_data_file(name: str, arrays: Collection[str], task: str) -> DataFile:
    """Return arrays of a file in the data folder.

    Args:
        name: Of the file, such as "har.npz".
        arrays: Names of the arrays that are needed; others are not read.
        task: That needs it, for the message.

    Raises:
        ConfigurationError: If the variable is unset, or the folder lacks the file.
        InvalidDataError: If the file is not what it should be.
    """
    path = _path_of(name, task)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return DataFile(read_npz(path, arrays, is_strict=False), digest.hexdigest())


def has_data_file(name: str) -> bool:
    """Tell whether the data folder is known and has the file."""
    folder = os.environ.get(DATA_VARIABLE, "")
    return folder != "" and (Path(folder).expanduser() / name).is_file()


def _path_of(name: str, task: str) -> Path:
    folder = os.environ.get(DATA_VARIABLE)
    remedy = f"set {DATA_VARIABLE} to the folder that has it (docs/scenarios.md), or run --task digits"
    if not folder:
        raise ConfigurationError(f"task {task!r} needs {name}, and {DATA_VARIABLE} is not set; {remedy}")
    path = Path(folder).expanduser() / name
    if not path.is_file():
        raise ConfigurationError(
            f"task {task!r} needs {name}, and {folder} ({DATA_VARIABLE}) has none; {remedy}"
        )
    return path


@dataclass(frozen=True, slots=True)
class HubDataset:
    """An image set that flwr-datasets can fetch.

    Attributes:
        name: On the hub.
        image_column: Its images, uint8.
        label_column: Their classes.
    """

    name: str
    image_column: str
    label_column: str


def has_hub() -> bool:
    """Tell whether flwr-datasets is installed."""
    return importlib.util.find_spec("flwr_datasets") is not None


def fetch_images(dataset: HubDataset, train_rows: int, test_rows: int) -> DataFile:
    """Return the first images of a set's splits: x_train, y_train, x_test, y_test; downloads on first use.

    Raises:
        ConfigurationError: If the download fails.
    """
    from flwr_datasets import FederatedDataset  # noqa: PLC0415 - optional, and it imports a large library

    try:
        source = FederatedDataset(dataset=dataset.name, partitioners={"train": 1}, shuffle=False)
        arrays: dict[str, AnyArray] = {}
        for split, rows in (("train", train_rows), ("test", test_rows)):
            table = source.load_split(split).select(range(rows)).with_format("numpy")
            arrays[f"x_{split}"] = np.asarray(table[dataset.image_column], np.uint8)
            arrays[f"y_{split}"] = np.asarray(table[dataset.label_column], np.uint8)
    except Exception as error:  # whatever the network, the hub and the library raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(
            f"cannot fetch {dataset.name} through flwr-datasets: {reason}; "
            f"check the network, or set {DATA_VARIABLE} to a folder with the data"
        ) from error
    return DataFile(arrays, array_digest(*arrays.values()))


def array_digest(*arrays: AnyArray) -> str:
    """Return the SHA-256 of arrays, with their types and shapes, as hex."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
