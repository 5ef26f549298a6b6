"""Tells every watching device of its target, from one task.

The rules:

1. The hub keeps one target per watcher, the latest: a device that reads slowly skips what it missed, and costs no more
   memory than one that reads fast.
2. The registry is asked once per poll for each class that is watched, whatever the number of devices.
3. While the registry is away, watchers keep what they know, and get signs of life.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from server.targets import Assignment, Targets, TargetSource
from server.update_settings import UpdateSettings

_log = structlog.get_logger()
_KEPT_SECONDS = 600.0  # how long a class that nobody watches is remembered
_YIELD_EVERY = 500  # watchers served before other tasks have their turn

ClassKey = tuple[str, str]
"""A model's digest and the name of a device class."""


class Watcher:
    """One device's watch: what it should be told next."""

    __slots__ = ("_pending", "_waiting", "device", "due_at", "ends_at", "told")

    def __init__(self, device: str, ends_at: float) -> None:
        self.device = device
        self.ends_at = ends_at
        self.due_at = 0.0
        self.told: Assignment | None = None
        self._pending: Assignment | None = None
        self._waiting: asyncio.Future[None] | None = None

    def tell(self, target: Assignment) -> None:
        """Put the target in place of what the device has not read yet."""
        self.told = self._pending = target
        self._wake()

    def end(self) -> None:
        """Let the watch end once the device has read what is there."""
        self.ends_at = 0.0
        self._wake()

    async def next(self) -> Assignment | None:
        """Return what to tell the device, when there is something; None when the watch ends."""
        while self._pending is None and self.ends_at:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        target, self._pending = self._pending, None
        return target

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


@dataclass(slots=True)
class _Watched:
    """One class: what it should run, and who watches."""

    targets: Targets
    loaded_at: float
    watchers: set[Watcher] = field(default_factory=set)


class WatchHub:
    """All watchers of one server process. One event loop uses it; `run` is its task."""

    def __init__(
        self,
        source: TargetSource,
        settings: UpdateSettings,
        executor: Executor,
        *,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        """Ask `source` in threads of `executor`; `clock` is monotonic and counts seconds."""
        self._source = source
        self._settings = settings
        self._executor = executor
        self._rng = rng
        self._clock = clock
        self._classes: dict[ClassKey, _Watched] = {}
        self._loading: dict[ClassKey, asyncio.Task[Targets]] = {}
        self._poll_now = asyncio.Event()
        self._is_open = True

    @property
    def watchers(self) -> int:
        """Devices that watch now."""
        return sum(len(watched.watchers) for watched in self._classes.values())

    def watchers_of(self, key: ClassKey) -> int:
        """Return how many devices watch one class."""
        return len(self._classes[key].watchers) if key in self._classes else 0

    async def targets(self, key: ClassKey, max_age_seconds: float) -> Targets:
        """Return what a class should run, as the registry said at most so long ago.

        Raises:
            NotFoundError: The model was never published for the class.
        """
        watched = self._classes.get(key)
        if watched is not None and self._clock() - watched.loaded_at < max_age_seconds:
            return watched.targets
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key))
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(task)

    @contextmanager
    def watcher(self, key: ClassKey, device: str, targets: Targets) -> Iterator[Watcher]:
        """Yield a watcher of a class, which is told its target at once."""
        now = self._clock()
        watcher = Watcher(device, now + self._jitter(self._settings.max_watch_seconds))
        if not self._is_open:
            watcher.ends_at = 0.0
        watched = self._classes.setdefault(key, _Watched(targets, now))
        watched.watchers.add(watcher)
        self._tell(watcher, watched.targets.target_for(device), now)
        try:
            yield watcher
        finally:
            watched.watchers.discard(watcher)

    def poll(self) -> None:
        """Ask the registry at once, because something was published."""
        self._poll_now.set()

    async def run(self) -> None:
        """Ask, and tell, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._settings.poll_seconds):
                    await self._poll_now.wait()
            except TimeoutError:
                pass
            self._poll_now.clear()
            for key in list(self._classes):
                await self._poll_class(key)

    def close(self) -> None:
        """End every watch, now and from now on."""
        self._is_open = False
        for watched in self._classes.values():
            for watcher in watched.watchers:
                watcher.end()

    async def _poll_class(self, key: ClassKey) -> None:
        watched = self._classes[key]
        if not watched.watchers:
            if self._clock() - watched.loaded_at > _KEPT_SECONDS:
                del self._classes[key]
            return
        before = watched.targets
        try:
            await self._load(key)
        except Exception as error:  # noqa: BLE001 - whatever ails the registry, watchers keep what they know
            _log.warning("targets_not_loaded", device_class=key[1], error=str(error))
        await self._tell_all(watched, is_changed=watched.targets != before)

    async def _tell_all(self, watched: _Watched, *, is_changed: bool) -> None:
        now = self._clock()
        for number, watcher in enumerate(list(watched.watchers), 1):
            if now >= watcher.ends_at:
                watcher.end()
            elif is_changed or now >= watcher.due_at:
                target = watched.targets.target_for(watcher.device)
                if target != watcher.told or now >= watcher.due_at:
                    self._tell(watcher, target, now)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _tell(self, watcher: Watcher, target: Assignment, now: float) -> None:
        watcher.tell(target)
        watcher.due_at = now + self._jitter(self._settings.heartbeat_seconds)

    async def _load(self, key: ClassKey) -> Targets:
        targets = await asyncio.get_running_loop().run_in_executor(self._executor, self._source, *key)
        watched = self._classes.setdefault(key, _Watched(targets, 0.0))
        watched.targets, watched.loaded_at = targets, self._clock()
        return targets

    def _jitter(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.5, 1.0)
