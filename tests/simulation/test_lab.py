from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantization.errors import ConfigurationError, InvalidDataError
from server.blob_store import BlobStore
from server.lab import PreparedModel
from server.registry import Registry
from simulation.fleet import class_named
from simulation.lab import prepare_task
from simulation.tasks import TaskData

CLASSES = (class_named("x86-vnni"), class_named("x86"))


def prepared(task: TaskData, folder: Path, method: str = "mse") -> PreparedModel:
    folder.mkdir()
    with Registry.open(f"sqlite:///{folder}/registry.db") as registry:
        return prepare_task(task, CLASSES, method, registry, BlobStore(folder / "blobs"))


def test_every_class_gets_generation_0(digits: TaskData, tmp_path: Path) -> None:
    folder, told = tmp_path, []
    with Registry.open(f"sqlite:///{folder}/registry.db") as registry:
        blobs = BlobStore(folder / "blobs")
        found = prepare_task(
            digits, CLASSES, "mse", registry, blobs, on_progress=lambda done, of: told.append((done, of))
        )
        assert registry.model("digits").digest == found.model.digest
        for name in ("x86-vnni", "x86"):
            published = registry.published(found.model.digest, name)
            assert published.number == 0
            assert published.manifest_digest == found.artifacts[name].manifest.digest()
            assert all(blobs.has(digest) for digest in found.artifacts[name].manifest.blobs)
    rows = len(digits.lab_x)
    assert told[-1] == (rows, rows)
    assert [done for done, _ in told[: len(told) // 2]] == sorted(done for done, _ in told[: len(told) // 2])


def test_the_same_task_gives_the_same_bytes(digits: TaskData, tmp_path: Path) -> None:
    one, other = (prepared(digits, tmp_path / name) for name in ("one", "other"))
    for name in ("x86-vnni", "x86"):
        assert one.artifacts[name].manifest.to_bytes() == other.artifacts[name].manifest.to_bytes()
        assert one.artifacts[name].blobs == other.artifacts[name].blobs


def test_range_method_reaches_the_policy(digits: TaskData, tmp_path: Path) -> None:
    one, other = prepared(digits, tmp_path / "one"), prepared(digits, tmp_path / "other", "minmax")
    assert one.artifacts["x86"].manifest.digest() != other.artifacts["x86"].manifest.digest()
    with pytest.raises(ConfigurationError, match="unknown range method 'magic'"):
        prepared(digits, tmp_path / "third", "magic")


def test_what_the_lab_refuses_names_where_it_came_from(digits: TaskData, tmp_path: Path) -> None:
    bad = replace(digits, lab_x=np.full_like(digits.lab_x, np.nan))
    with pytest.raises(InvalidDataError, match=r"^digits: lab inputs hold NaN or infinities"):
        prepared(bad, tmp_path / "one")
    with pytest.raises(InvalidDataError, match=r"^m\.onnx with d\.npz: lab inputs hold NaN"):
        prepared(replace(bad, origin="m.onnx with d.npz"), tmp_path / "other")
