"""Has the float model judge some of a device's answers, in the background, where nobody tells true classes.

1. Inference never waits: what does not fit into the queue is not judged.
2. Judging takes at most a share of one processor's time, after lower-priority work has let everything else go first.
3. What goes wrong is counted and logged, and changes nothing else.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from client.background import lower_priority
from client.events import event_log
from client.sessions import Float32Array
from client.shadow import can_judge, judge_answers
from client.telemetry import Counted, Telemetry
from quantization.arrays import AnyArray
from quantization.artifact import BlobReader
from quantization.errors import ConfigurationError, NotFoundError, QuantFleetError

_events = event_log("judge")


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How many answers the float model judges too.

    Attributes:
        every: One sample in so many; 0 for none.
        share: Most of one processor's time that it may take, above 0 to 1.
        batch: Samples at a time; a batch builds a session, which is dropped behind it.
        wait_seconds: Longest that a sample waits for others.
    """

    every: int = 50
    share: float = 0.02
    batch: int = 16
    wait_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what cannot be followed."""
        if self.every < 0 or not 0 < self.share <= 1 or not 1 <= self.batch <= 1024 or self.wait_seconds < 0:
            raise ConfigurationError(
                f"judge settings {self}: every is 0 or more, share above 0 to 1, batch 1 to 1024, wait_seconds 0+"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Answered:
    """One sample that is to be judged."""

    row: Float32Array
    class_index: int
    counted: Counted


class Judge:
    """Judges samples that it is offered, in a thread of its own."""

    def __init__(
        self,
        telemetry: Telemetry,
        read_blob: BlobReader,
        settings: JudgeSettings,
        *,
        is_quiet: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a judge, which begins with `start`.

        Args:
            telemetry: Counts what it says.
            read_blob: Gives blobs of artifacts.
            settings: How many answers it judges.
            is_quiet: Whether its thread gives way to others.
            clock: In seconds, which never goes back.
        """
        self.failures = 0
        self._telemetry, self._read_blob, self._settings = telemetry, read_blob, settings
        self._is_quiet, self._clock = is_quiet, clock
        self._changed = threading.Condition()
        self._queue: list[_Answered] = []
        self._countdown = settings.every
        self._oldest_at = 0.0
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name="quantfleet-judge", daemon=True)

    def start(self) -> None:
        """Begin, unless nothing is to be judged."""
        if self._settings.every:
            self._thread.start()

    def offer(self, batch: AnyArray, classes: Sequence[int], counted: Counted) -> None:
        """Take every n-th sample of what was answered, if there is room.

        Args:
            batch: Inputs, shape (n, ...).
            classes: What was answered, for each.
            counted: Who answered.
        """
        every = self._settings.every
        if not every:
            return
        with self._changed:
            first = self._countdown - 1
            self._countdown = (first - len(classes)) % every + 1
            for place in range(first, len(classes), every):
                if len(self._queue) >= self._settings.batch or not can_judge(counted.manifest):
                    return
                self._oldest_at = self._oldest_at if self._queue else self._clock()
                self._queue.append(_Answered(np.array(batch[place], np.float32), classes[place], counted))
                if len(self._queue) in (1, self._settings.batch):
                    self._changed.notify()

    def close(self) -> None:
        """Stop; what waits is not judged."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        if self._is_quiet:
            lower_priority()
        while waiting := self._next():
            began = self._clock()
            for counted in dict.fromkeys(one.counted for one in waiting):
                self._judge([one for one in waiting if one.counted is counted], counted)
            del waiting
            took = self._clock() - began
            with self._changed:
                self._changed.wait_for(lambda: not self._is_open, took / self._settings.share - took)

    def _next(self) -> list[_Answered]:
        """Return what to judge, once there is enough of it or it has waited long enough; nothing at the end."""
        with self._changed:
            while self._is_open:
                left = self._oldest_at + self._settings.wait_seconds - self._clock() if self._queue else None
                if len(self._queue) >= self._settings.batch or (left is not None and left <= 0):
                    waiting, self._queue = self._queue, []
                    return waiting
                self._changed.wait(left)
        return []

    def _judge(self, answered: Sequence[_Answered], counted: Counted) -> None:
        try:
            rows = np.stack([one.row for one in answered])
            said = judge_answers(
                counted.manifest, self._read_blob, rows, [one.class_index for one in answered]
            )
        except NotFoundError:  # it was left since, and collected
            _events.debug("answers_not_judged", version=counted.target.version, samples=len(answered))
            return
        except QuantFleetError as error:
            self.failures += 1
            _events.warning("answers_not_judged", error=str(error), samples=len(answered))
            return
        except Exception:  # noqa: BLE001  # whatever ails a graph, the model serves
            self.failures += 1
            _events.exception("judge_failed")
            return
        self._telemetry.judge(counted, said.judged, said.agreements)
        self._telemetry.clip(counted, said.observed_values, said.clipped_values)
