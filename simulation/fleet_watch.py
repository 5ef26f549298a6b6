"""Watches a fleet that runs: what its applications count, whether its processes live, and what happened when."""

import json
import queue
import threading
import time
from collections.abc import Callable

from quantization.errors import UnreachableError
from simulation.child_processes import Child, ChildProcesses
from simulation.fleet_timeline import Timeline

TellFunction = Callable[[float, str], None]
"""Is told what happens, and how many seconds after the start."""

_POLL_SECONDS = 0.2


class FleetWatch:
    """What is known of a fleet so far.

    Attributes:
        began: When it was started, by the monotonic clock.
        phases: What happened, and after how many seconds.
        timeline: What its applications have counted.
    """

    def __init__(self, children: ChildProcesses, tell: TellFunction, wait_seconds: float) -> None:
        """Begin to watch; nothing may take longer than `wait_seconds`."""
        self.began = time.monotonic()
        self.phases: list[tuple[float, str]] = []
        self.timeline = Timeline()
        self._children, self._tell, self._wait_seconds = children, tell, wait_seconds
        self._said: queue.Queue[str] = queue.Queue()

    @property
    def versions(self) -> dict[str, int]:
        """The version that each device answered with last."""
        moments = self.timeline.moments
        return dict(moments[-1].versions) if moments else {}

    def listen(self, load: Child) -> None:
        """Take in what a process of applications says, from now on."""

        def read() -> None:
            for line in load.lines():
                self._said.put(line)

        threading.Thread(target=read, daemon=True).start()

    def say(self, words: str) -> None:
        """Note what happens, and tell."""
        at = time.monotonic() - self.began
        self.phases.append((round(at, 1), words))
        self._tell(at, words)

    def wait(self, seconds: float) -> None:
        """Watch for some time.

        Raises:
            UnreachableError: A process has ended.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._children.check()
            self._read(min(left, 1.0))

    def until(self, what: str, is_so: Callable[[], bool], *, seconds: float = 0.0) -> None:
        """Watch until something is so.

        Args:
            what: In words, for the message.
            is_so: Asked a few times a second.
            seconds: Longest that it may take; 0 for the usual.

        Raises:
            UnreachableError: It took too long, or a process has ended.
        """
        seconds = seconds or self._wait_seconds
        deadline = time.monotonic() + seconds
        while not is_so():
            self._children.check()
            if time.monotonic() > deadline:
                raise UnreachableError(f"not within {seconds:g} s: {what}")
            self._read(_POLL_SECONDS)

    def _read(self, seconds: float) -> None:
        """Take in what applications have counted."""
        try:
            self.timeline.add(json.loads(self._said.get(timeout=seconds)))
            while True:
                self.timeline.add(json.loads(self._said.get_nowait()))
        except queue.Empty:
            return
