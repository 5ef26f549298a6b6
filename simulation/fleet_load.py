"""The applications of a fleet's devices: `python -m simulation.fleet_load`.

Each device's application asks its agent about inputs, a few at a time, over the agent's socket, and tells it some of
the true classes. It knows them all, so what it counts is the truth about the fleet. The process reads one line that
says which devices there are, then commands (`lab`: inputs as the lab has them; `field`: as the field has them), and
writes what it counted twice a second.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.api import RemoteModel
from quantization.errors import NotFoundError, OverloadedError, QuantFleetError, UnreachableError

FIELD, LAB = "field", "lab"
_REPORT_SECONDS = 0.5
_READY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Application:
    """One device's application.

    Attributes:
        name: Of the device.
        socket: Of its agent.
        inputs: File with the arrays `lab`, `field` and `labels`, one row each per input.
    """

    name: str
    socket: str
    inputs: str


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What a process asks.

    Attributes:
        applications: One for each device.
        calls_per_second: Of each application.
        batch: Inputs in one call.
        labelled: Of each batch, the inputs whose classes are told.
    """

    applications: Sequence[Application]
    calls_per_second: float
    batch: int
    labelled: int

    def to_line(self) -> str:
        """Return the line that `from_line` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> "LoadOrder":
        """Return what `to_line` wrote."""
        record = json.loads(line)
        return cls(**record | {"applications": [Application(**one) for one in record["applications"]]})


@dataclass(slots=True)
class _Counts:
    """What one application has counted since it last said so.

    Attributes:
        asked: Inputs that its agent was asked about.
        unanswered: Those of them that it did not answer.
        versions: By version: inputs that it answered, and right answers.
        errors: What it said instead of answering, in words.
    """

    asked: int = 0
    unanswered: int = 0
    versions: dict[int, list[int]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


class _Load:
    """All applications of a process."""

    def __init__(self, order: LoadOrder) -> None:
        self._order = order
        self.world = LAB
        self._lock = threading.Lock()
        self._counts = {one.name: _Counts() for one in order.applications}

    def start(self) -> None:
        """Begin to ask."""
        for number, application in enumerate(self._order.applications):
            threading.Thread(target=self._ask, args=(number, application), daemon=True).start()

    def take(self) -> dict[str, Any]:
        """Return what was counted since it was last taken, by device."""
        with self._lock:
            counts = self._counts
            self._counts = {name: _Counts() for name in counts}
        return {name: asdict(one) for name, one in counts.items() if one.asked}

    def _ask(self, number: int, application: Application) -> None:
        with Path(application.inputs).open("rb") as file:
            arrays = np.load(file)
            rows, labels = {world: arrays[world] for world in (LAB, FIELD)}, arrays["labels"]
        period, place = 1 / self._order.calls_per_second, number
        due = time.monotonic() + period * number / len(self._order.applications)
        with RemoteModel(application.socket) as model:
            _wait_for(model, rows[LAB][:1])
            while True:
                chosen = [(place + step) % len(labels) for step in range(self._order.batch)]
                place = (place + self._order.batch) % len(labels)
                self._ask_once(application.name, model, rows[self.world][chosen], labels[chosen])
                due = max(due + period, time.monotonic() - period)
                time.sleep(max(0.0, due - time.monotonic()))

    def _ask_once(self, name: str, model: RemoteModel, x: Any, classes: Any) -> None:  # noqa: ANN401
        """Ask once, and tell some of the classes."""
        try:
            answer = model.infer(x)
        except QuantFleetError as error:
            with self._lock:
                counts = self._counts[name]
                counts.asked += len(x)
                counts.unanswered += len(x)
                counts.errors.append(str(error)[:200])
            return
        hits = int((answer.output.argmax(axis=1) == classes).sum())
        with self._lock:
            counts = self._counts[name]
            counts.asked += len(x)
            version = counts.versions.setdefault(answer.version, [0, 0])
            version[0] += len(x)
            version[1] += hits
        for place in range(self._order.labelled):
            try:
                model.label(answer.sample_id + place, int(classes[place]))
            except QuantFleetError:
                return  # it was answered too long ago, or the agent is busy, or has been started anew


def _wait_for(model: RemoteModel, x: Any) -> None:  # noqa: ANN401
    """Wait until an agent has its first model."""
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            model.infer(x)
        except (NotFoundError, OverloadedError, UnreachableError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def main() -> None:
    """Ask what stdin orders, until it ends."""
    load = _Load(LoadOrder.from_line(sys.stdin.readline()))
    load.start()
    threading.Thread(target=_listen, args=(load,), daemon=True).start()
    while True:
        time.sleep(_REPORT_SECONDS)
        sys.stdout.write(json.dumps({"at_seconds": time.monotonic(), "devices": load.take()}) + "\n")
        sys.stdout.flush()


def _listen(load: _Load) -> None:
    for line in sys.stdin:
        load.world = line.strip() or load.world


if __name__ == "__main__":
    main()
