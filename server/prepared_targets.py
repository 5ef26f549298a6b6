"""Lets devices know of a new version when the differences to it are made.

A bundle takes up to 3 s for each MiB that differs; a device waits for 20 s and then fetches everything. The first
devices of a rollout are told of it at once, so they would never get what was made for them.

The rules:

1. A version that a rollout brings is offered when the way to it from the version before is made, or after so many
   seconds, or when making it has failed: differences save bytes, and decide nothing.
2. Nothing else waits: not a first version, nor one for all devices at once, nor the way back.
3. What is told from then on is made too, one after another: from the version before that, and the way back.
4. Devices that know of the version already, from another process, may fetch it meanwhile.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Protocol, Self

import structlog

from server.target_versions import ServedTarget
from server.targets import Assignment, Targets

_log = structlog.get_logger()
_PATIENCE_SECONDS = 1.0  # what takes no longer is waited for, so that small models are offered at once

_Pair = tuple[str, str]
"""Two manifests: from which one, and to which."""


class Maker(Protocol):
    """Makes what leads from one manifest to another: `server.difference_maker.DifferenceMaker`."""

    def is_made(self, base: str, target: str) -> bool:
        """Return whether that is done."""
        ...

    def make(self, base: str, target: str) -> None:
        """Do it; may take minutes."""
        ...


@dataclass(frozen=True, slots=True)
class HeldTargets:
    """What a class should run while the differences to its newest version are being made: what it ran before.

    Attributes:
        served: With a rollout that is open.
    """

    served: ServedTarget

    def target_for(self, device: str) -> Assignment:  # noqa: ARG002 - all devices have the same
        """Return the version that the rollout starts from."""
        return self.served.base

    @property
    def manifest_digests(self) -> tuple[str, ...]:
        """Manifests of all versions, newest first."""
        return self.served.manifest_digests


class PreparedTargets:
    """A `server.targets.TargetSource`, and a thread that makes differences; a context manager around its life."""

    def __init__(
        self,
        source: Callable[[str, str], ServedTarget],
        maker: Maker,
        *,
        most_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make nothing yet.

        Args:
            source: What the registry says; may block.
            maker: Makes differences; its methods block.
            most_seconds: Longest time that a version is held back, from when it was published.
            clock: Seconds since 1970 (UTC).
        """
        self._source = source
        self._maker = maker
        self._most_seconds = most_seconds
        self._clock = clock
        self._lock = threading.Lock()
        # By model and class: the way to what is newest.
        self._first: dict[tuple[str, str], tuple[_Pair, Future[None]]] = {}
        self._wanted: queue.SimpleQueue[tuple[_Pair, Future[None]] | None] = queue.SimpleQueue()
        # A daemon: what takes minutes must not hold up a process that is told to stop.
        self._thread = threading.Thread(target=self._run, name="quantfleet-differences", daemon=True)
        self._is_open = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        self._wanted.put(None)

    def __call__(self, model_digest: str, device_class: str) -> Targets:
        """Return what the class should run now.

        Raises:
            NotFoundError: The model was never published for the class.
        """
        served = self._source(model_digest, device_class)
        manifests = served.manifest_digests
        if len(manifests) < 2:
            return served
        way, is_new = self._way_to_newest((model_digest, device_class), manifests)
        if not self._may_wait(served):
            return served
        if is_new:
            wait_for([way], _PATIENCE_SECONDS)
        return served if way.done() else HeldTargets(served)

    def _may_wait(self, served: ServedTarget) -> bool:
        newest, rollout = served.versions[0], served.rollout
        is_opening = rollout is not None and rollout.is_open and rollout.version == newest.version
        return is_opening and self._clock() - newest.at_seconds < self._most_seconds

    def _way_to_newest(self, key: tuple[str, str], manifests: tuple[str, ...]) -> tuple[Future[None], bool]:
        """Return when the way from the version before is made, and whether it was asked for now, with what follows."""
        pair = (manifests[1], manifests[0])
        with self._lock:
            known = self._first.get(key)
            if known is not None and known[0] == pair:
                return known[1], False
            way: Future[None] = Future()
            self._first[key] = pair, way
        self._wanted.put((pair, way))
        older = [(base, manifests[0]) for base in manifests[2:3]]
        for later in (*older, (manifests[0], manifests[1])):
            self._wanted.put((later, Future()))
        return way, True

    def _run(self) -> None:
        while (wanted := self._wanted.get()) is not None and self._is_open:
            (base, target), made = wanted
            try:
                self._make(base, target)
            except Exception as error:  # noqa: BLE001 - whatever it is, devices are served all the same
                reason = str(error).partition("\n")[0][:200]
                _log.warning("differences_not_made", base=base[:12], target=target[:12], error=reason)
            made.set_result(None)

    def _make(self, base: str, target: str) -> None:
        if self._maker.is_made(base, target):
            return
        began = time.monotonic()
        self._maker.make(base, target)
        seconds = round(time.monotonic() - began, 3)
        _log.info("differences_made", base=base[:12], target=target[:12], seconds=seconds)
