"""What a task is made of: a trained model, and real data on three sides of a wall."""

from collections.abc import Callable
from dataclasses import dataclass

from quantization.arrays import FloatArray, IntArray
from quantization.errors import InvalidDataError
from simulation.drift import Domain

InputFunction = Callable[[FloatArray], FloatArray]
"""Raw rows in, float32 model inputs out."""

ProgressFunction = Callable[[float, str], None]
"""Told which share of the work is done, 0 to 1, and what it is about."""


def no_progress(_share: float, _text: str) -> None:
    """Tell nobody."""


def as_input(raw: FloatArray) -> FloatArray:
    """Return raw rows as they are: for models that take them so."""
    return raw


@dataclass(frozen=True, slots=True, eq=False)
class TaskData:
    """A model and the rows that the lab, the fleet and the examiner have; no row is on two sides.

    Rows are raw, as the world gives them: drifts act on these, then `to_input` makes model inputs of them.

    Attributes:
        name: Of the task, or of the model file.
        domain: Which drifts there are, and the units of raw rows: "image" (N, C, H, W) in 0..1; "sensor"
            (N, 6, T), accelerometer in g, gyroscope in rad/s; "audio" (N, T), full scale is 1; "generic",
            whatever the model takes.
        model: Float32 ONNX; takes `to_input(rows)`, gives logits (N, classes); the batch axis is dynamic.
        lab_x: Rows the lab calibrates with, float32 (N, ...).
        lab_y: Their classes, int64 (N,); None without labels.
        field_x: Rows that devices hold.
        field_y: Their classes.
        field_owner: Who recorded each field row, int64 (N,); None where the data does not say.
        test_x: Rows that no device and no calibration sees.
        test_y: Their classes.
        to_input: Makes model inputs of raw rows.
        classes: Name of each class, where there are names.
        origin: Files that model and rows came from, for messages; empty for built-in tasks.
    """

    name: str
    domain: Domain
    model: bytes
    lab_x: FloatArray
    lab_y: IntArray | None
    field_x: FloatArray
    field_y: IntArray | None
    field_owner: IntArray | None
    test_x: FloatArray
    test_y: IntArray | None
    to_input: InputFunction = as_input
    classes: tuple[str, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        """Refuse labels or owners that do not fit their rows."""
        pairs = {
            "lab_y": (self.lab_x, self.lab_y),
            "field_y": (self.field_x, self.field_y),
            "field_owner": (self.field_x, self.field_owner),
            "test_y": (self.test_x, self.test_y),
        }
        for name, (rows, column) in pairs.items():
            if column is not None and column.shape != (len(rows),):
                raise InvalidDataError(f"{name} has shape {column.shape} for {len(rows)} rows; give one each")
        for name in ("lab_x", "field_x", "test_x"):
            if len(getattr(self, name)) == 0:
                raise InvalidDataError(f"task {self.name!r} has no rows in {name}; give at least one")
