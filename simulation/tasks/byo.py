"""A model and data of one's own: an ONNX file, and an npz file of rows as the model takes them.

Arrays of the npz file:

* `x`: rows (N, ...), numbers, as the model takes them.
* `y`, optional: class of each row, whole numbers from 0, (N,).
* `device`, optional: owner of each row, whole numbers or text, (N,).
* `split`, optional: 0 lab, 1 field, 2 field rows kept for the test, (N,). Without it, 10 % of the rows are the
  lab's, 60 % the field's and 30 % for the test, by seed.
"""

from pathlib import Path

import numpy as np
import onnx

from quantization.arrays import AnyArray, FloatArray, IntArray
from quantization.draft import Draft
from quantization.errors import InvalidDataError, UnsupportedModelError
from quantization.graph import analyze, canonicalize
from simulation.evaluation import float_model
from simulation.npz import read_npz
from simulation.tasks.splits import stratified_split
from simulation.tasks.task import TaskData

LAB_SHARE, FIELD_SHARE = 0.1, 0.6
LEAST_ROWS = 10
"""Rows a file without `split` must have, so that each side gets one."""

_TRIAL_ROWS = 2
_SIDES = {0: "lab", 1: "field", 2: "test"}


def load_byo(model_path: Path, data_path: Path, seed: int = 0) -> TaskData:
    """Return a task of an ONNX file and an npz file; its domain is "generic".

    Args:
        model_path: Float32 ONNX with one input and logits (N, classes) as its first output.
        data_path: As above.
        seed: Of the split, where the file has none.

    Raises:
        UnsupportedModelError: If the model cannot be read or quantized.
        InvalidDataError: Names the file and array, what was expected and what is there, and the remedy.
    """
    model, shape = _read_model(model_path)
    arrays = read_npz(data_path, ("x",), ("y", "device", "split"))
    reader = _ColumnReader(data_path, len(arrays["x"]) if arrays["x"].ndim else 0)
    x = reader.inputs(arrays["x"], shape, model_path)
    classes = _count_classes(model, x[:_TRIAL_ROWS], model_path)
    y = reader.labels(arrays["y"], classes) if "y" in arrays else None
    owner = reader.owners(arrays["device"]) if "device" in arrays else None
    lab, field, test = reader.sides(arrays["split"]) if "split" in arrays else reader.drawn_sides(y, seed)
    return TaskData(
        name=model_path.stem or "model",
        domain="generic",
        model=model,
        lab_x=x[lab],
        lab_y=None if y is None else y[lab],
        field_x=x[field],
        field_y=None if y is None else y[field],
        field_owner=None if owner is None else owner[field],
        test_x=x[test],
        test_y=None if y is None else y[test],
        origin=f"{model_path} with {data_path}",
    )


def _read_model(path: Path) -> tuple[bytes, tuple[int | None, ...]]:
    """Return the model, its batch axis freed if it was fixed, and the shape of its input, None where dynamic."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise UnsupportedModelError(f"cannot read model {path}: {error.strerror}; check --model") from error
    try:
        canonical = canonicalize(model)
        plan = analyze(canonical)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error
    batch = Draft.from_model(onnx.load_model_from_string(model)).input.type.tensor_type.shape.dim[0]
    return canonical if batch.HasField("dim_value") else model, plan.input_shape


def _count_classes(model: bytes, rows: FloatArray, path: Path) -> int:
    """Return how many logits the model gives, which it must do for these rows."""
    try:
        logits = float_model(model)(rows)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path}: {error}; check the model with onnxruntime alone") from error
    if logits.ndim != 2 or len(logits) != len(rows) or logits.dtype != np.float32:
        raise UnsupportedModelError(
            f"{path}: its first output must be float32 logits (N, classes), and is {logits.dtype} {logits.shape} for "
            f"{len(rows)} rows; export a classifier without what follows its logits"
        )
    return int(logits.shape[1])


class _ColumnReader:
    """Checks the arrays of one file."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.rows = rows

    def inputs(self, x: AnyArray, shape: tuple[int | None, ...], model_path: Path) -> FloatArray:
        """Return rows as finite float32 of the model's shape."""
        if x.dtype.kind not in "biuf":
            raise self.refusal("x", f"numbers, and it is of type {x.dtype}", "save it as float32")
        wanted = (None, *shape[1:])
        fits = x.ndim == len(wanted) and all(
            length in (None, there) for length, there in zip(wanted, x.shape, strict=True)
        )
        if not fits:
            raise self.refusal(
                "x",
                f"shape {_in_words(wanted)}, as {model_path.name} takes it, and has {x.shape}",
                "transpose or resize it",
            )
        if self.rows == 0:
            raise self.refusal("x", "rows, and has none", "give at least one")
        try:
            with np.errstate(over="ignore"):
                rows = np.ascontiguousarray(x, np.float32)
            is_finite = np.isfinite(rows)
        except MemoryError as error:
            raise InvalidDataError(
                f"{self.path} does not fit into memory as float32; give fewer rows"
            ) from error
        if not is_finite.all():
            row = int(np.argwhere(~is_finite)[0, 0])
            raise self.refusal(
                "x",
                f"finite float32 values, and has {int(np.count_nonzero(~is_finite))} others (the first in row {row})",
                "drop those rows or repair them",
            )
        return rows

    def labels(self, y: AnyArray, classes: int) -> IntArray:
        """Return classes as int64, each one the model can answer."""
        whole = self.whole_numbers("y", y, "class")
        if whole.min() < 0 or whole.max() >= classes:
            raise self.refusal(
                "y",
                f"classes from 0 to {classes - 1}, and has {whole.min()} to {whole.max()}",
                "renumber them",
            )
        return whole

    def owners(self, device: AnyArray) -> IntArray:
        """Return owners numbered from 0, in sorted order of what the file calls them."""
        if device.dtype.kind in "US":
            self.require_column("device", device, "owner")
        else:
            device = self.whole_numbers("device", device, "owner")
        return np.unique(device, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def sides(self, split: AnyArray) -> list[IntArray]:
        """Return the rows of lab, field and test as the file says."""
        whole = self.whole_numbers("split", split, "side (0 lab, 1 field, 2 test)")
        strange = sorted(set(np.unique(whole).tolist()) - set(_SIDES))
        if strange:
            raise self.refusal("split", f"0, 1 or 2, and has {strange[0]}", "use 0 lab, 1 field, 2 test")
        sides = [np.flatnonzero(whole == side) for side in _SIDES]
        for side, rows in zip(_SIDES, sides, strict=True):
            if len(rows) == 0:
                raise self.refusal(
                    "split",
                    f"rows of each side, and has none of {side} ({_SIDES[side]})",
                    "add some, or leave it out",
                )
        return sides

    def drawn_sides(self, y: IntArray | None, seed: int) -> list[IntArray]:
        """Return 10 %, 60 % and 30 % of the rows, with the same mix of classes where they are known."""
        if self.rows < LEAST_ROWS:
            raise self.refusal(
                "x",
                f"{LEAST_ROWS} rows to draw a split from, and has {self.rows}",
                "give more, or an array split",
            )
        lab, field = round(LAB_SHARE * self.rows), round(FIELD_SHARE * self.rows)
        labels = np.zeros(self.rows, np.int64) if y is None else y
        return stratified_split(labels, (lab, field, self.rows - lab - field), np.random.default_rng(seed))

    def whole_numbers(self, name: str, column: AnyArray, what: str) -> IntArray:
        """Return a column of whole numbers as int64."""
        self.require_column(name, column, what)
        if column.dtype.kind not in "biuf":
            raise self.refusal(name, f"whole numbers, and it is of type {column.dtype}", "number them from 0")
        with np.errstate(invalid="ignore"):
            whole = column.astype(np.int64)
        if not np.array_equal(whole, column):
            raise self.refusal(
                name, "whole numbers, and has fractions or values beyond int64", "number them from 0"
            )
        return whole

    def require_column(self, name: str, column: AnyArray, what: str) -> None:
        """Refuse anything but one value a row."""
        if column.shape != (self.rows,):
            raise self.refusal(
                name,
                f"shape ({self.rows},), one {what} for each row of x, and has {column.shape}",
                "make them match",
            )

    def refusal(self, name: str, expected_and_actual: str, remedy: str) -> InvalidDataError:
        """Return the error for an array, in one line."""
        return InvalidDataError(f"{self.path}: array {name!r} must have {expected_and_actual}; {remedy}")


def _in_words(shape: tuple[int | None, ...]) -> str:
    lengths = ("any" if length is None else str(length) for length in shape[1:])
    return f"({', '.join(('N', *lengths))})"
