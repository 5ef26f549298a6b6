from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import ModelBuilder, digits_cnn, har_cnn, mlp

from quantization.errors import InvalidDataError, UnsupportedModelError
from simulation.partition import partition
from simulation.tasks import TaskData, load_byo

ROWS = 40


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mine.onnx"
    path.write_bytes(digits_cnn())
    return path


def data(folder: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x": rng.normal(size=(ROWS, 1, 8, 8)).astype(np.float32),
        "y": np.arange(ROWS) % 10,
    }
    arrays |= changes
    path = folder / "data.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def refusal(model: Path, path: Path) -> str:
    with pytest.raises(InvalidDataError) as caught:
        load_byo(model, path)
    told = str(caught.value)
    assert "\n" not in told
    assert str(path) in told
    return told


def rows_of(task: TaskData) -> set[bytes]:
    sides = (task.lab_x, task.field_x, task.test_x)
    return {row.tobytes() for side in sides for row in side}


def test_rows_are_split_by_seed_and_no_row_is_lost(model: Path, tmp_path: Path) -> None:
    path = data(tmp_path)
    task = load_byo(model, path, 3)
    assert (len(task.lab_x), len(task.field_x), len(task.test_x)) == (4, 24, 12)
    assert len(rows_of(task)) == ROWS
    assert task.name == "mine"
    assert task.domain == "generic"
    again, other = load_byo(model, path, 3), load_byo(model, path, 4)
    np.testing.assert_array_equal(task.field_x, again.field_x)
    assert not np.array_equal(task.field_x, other.field_x)


def test_a_split_in_the_file_is_kept(model: Path, tmp_path: Path) -> None:
    split = np.arange(ROWS) % 3
    task = load_byo(model, data(tmp_path, split=split))
    assert task.test_y is not None
    np.testing.assert_array_equal(task.test_y, (np.arange(ROWS) % 10)[split == 2])


def test_labels_and_owners_may_be_missing(model: Path, tmp_path: Path) -> None:
    task = load_byo(model, data(tmp_path, y=None))
    assert task.field_y is None
    assert task.field_owner is None
    assert len(partition(task, 5)) == 5


def test_owners_may_have_names(model: Path, tmp_path: Path) -> None:
    owners = np.array(["ann", "bob"])[np.arange(ROWS) % 2]
    task = load_byo(model, data(tmp_path, device=owners, split=np.arange(ROWS) // 2 % 3))
    assert task.field_owner is not None
    assert set(task.field_owner.tolist()) == {0, 1}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64, np.bool_, ">f4"])
def test_any_numbers_become_float32(model: Path, tmp_path: Path, dtype: Any) -> None:
    x = np.random.default_rng(0).integers(0, 2, (ROWS, 1, 8, 8)).astype(dtype)
    task = load_byo(model, data(tmp_path, x=x))
    assert task.field_x.dtype == np.float32
    assert rows_of(task) == {row.tobytes() for row in x.astype(np.float32)}


def test_other_shapes_of_model_are_read(tmp_path: Path) -> None:
    for name, content, shape, y in (
        ("har", har_cnn(), (20, 6, 128), np.arange(20) % 6),
        ("mlp", mlp(), (20, 20), np.arange(20) % 4),
    ):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        task = load_byo(path, data(tmp_path, x=np.zeros(shape, np.float32), y=y))
        assert task.field_x.shape[1:] == shape[1:]


def test_a_dynamic_axis_takes_any_length(tmp_path: Path) -> None:
    b = ModelBuilder(["N", 3, "H", "W"])
    pooled = b.add("Flatten", [b.add("GlobalAveragePool", [b.add("Relu", [b.conv("x", 3, 8, 3)])])])
    path = tmp_path / "free.onnx"
    path.write_bytes(b.bytes(b.gemm(pooled, 8, 10)))
    assert load_byo(path, data(tmp_path, x=np.zeros((ROWS, 3, 5, 9)))).field_x.shape[1:] == (3, 5, 9)
    assert "shape (N, 3, any, any)" in refusal(path, data(tmp_path, x=np.zeros((ROWS, 1, 5, 9))))


X = np.zeros((ROWS, 1, 8, 8), np.float32)


def with_value(value: float, dtype: Any = np.float32) -> Any:
    x = X.astype(dtype)
    x[7, 0, 3, 3] = value
    return x


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x": None}, "has no array 'x'"),
        ({"x": X[:, :, :4]}, "must have shape (N, 1, 8, 8), as mine.onnx takes it, and has (40, 1, 4, 8)"),
        ({"x": X.reshape(ROWS, 8, 8)}, "has (40, 8, 8); transpose or resize it"),
        ({"x": np.float32(3)}, "and has ()"),
        ({"x": X[:0], "y": None}, "must have rows, and has none"),
        ({"x": X[:5], "y": None}, "must have 10 rows to draw a split from, and has 5"),
        ({"x": with_value(np.nan)}, "finite float32 values, and has 1 others (the first in row 7)"),
        ({"x": with_value(np.inf)}, "finite float32 values"),
        ({"x": with_value(1e200, np.float64)}, "finite float32 values"),
        ({"x": X.astype(np.complex64)}, "'x'"),
        ({"x": X.astype("U4")}, "must have numbers, and it is of type <U4"),
        ({"x": X.astype(object)}, "holds pickled Python objects"),
        ({"y": np.zeros(3, np.int64)}, "one class for each row of x, and has (3,); make them match"),
        ({"y": np.eye(10)[np.arange(ROWS) % 10]}, "and has (40, 10)"),
        ({"y": np.full(ROWS, 0.5)}, "must have whole numbers"),
        ({"y": np.full(ROWS, np.nan)}, "must have whole numbers"),
        ({"y": np.full(ROWS, -1)}, "classes from 0 to 9, and has -1 to -1; renumber them"),
        ({"y": np.full(ROWS, 10)}, "classes from 0 to 9, and has 10 to 10"),
        ({"y": np.full(ROWS, "cat")}, "must have whole numbers, and it is of type <U3"),
        ({"device": np.zeros(3)}, "one owner for each row of x"),
        ({"device": np.full(ROWS, 0.5)}, "must have whole numbers"),
        ({"split": np.full(ROWS, 3)}, "must have 0, 1 or 2, and has 3; use 0 lab, 1 field, 2 test"),
        ({"split": np.arange(ROWS) % 2}, "rows of each side, and has none of 2 (test)"),
        ({"labels": np.zeros(ROWS)}, "unknown array 'labels'; known: 'x', 'y', 'device', 'split'"),
    ],
)
def test_data_that_cannot_be_used_is_refused_in_one_line(
    model: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    assert told in refusal(model, data(tmp_path, **changes))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot read model .*none\.onnx: No such file"):
        load_byo(tmp_path / "none.onnx", data(tmp_path))


def test_a_truncated_model_is_named(model: Path, tmp_path: Path) -> None:
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(UnsupportedModelError, match=r"mine\.onnx: "):
        load_byo(model, data(tmp_path))
