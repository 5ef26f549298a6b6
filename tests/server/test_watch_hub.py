import asyncio
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from quantization.errors import NotFoundError
from server.targets import Assignment, PublishedTargets
from server.update_settings import UpdateSettings
from server.watch_hub import WatchHub

KEY = ("ab" * 32, "arm")
SETTINGS = UpdateSettings(poll_seconds=0.02)


class Registry:
    """What the class runs, and how often it was asked."""

    def __init__(self) -> None:
        self.version = 1
        self.loads = 0

    def find(self, model_digest: str, device_class: str) -> PublishedTargets:
        self.loads += 1
        if (model_digest, device_class) != KEY:
            raise NotFoundError(device_class)
        return PublishedTargets((Assignment(self.version, f"{self.version:064x}"),))


def with_hub(
    body: Callable[[WatchHub, Registry], Awaitable[None]], settings: UpdateSettings = SETTINGS
) -> None:
    async def main() -> None:
        registry = Registry()
        with ThreadPoolExecutor(2) as executor:
            rng = random.Random(0)  # noqa: S311 - it guards nothing
            hub = WatchHub(registry.find, settings, executor, rng=rng, clock=asyncio.get_running_loop().time)
            task = asyncio.create_task(hub.run())
            async with asyncio.timeout(10):
                await body(hub, registry)
            task.cancel()

    asyncio.run(main())


def test_a_watcher_that_reads_slowly_gets_the_latest_and_nothing_of_what_came_between() -> None:
    async def body(hub: WatchHub, registry: Registry) -> None:
        with (
            hub.watcher(KEY, "slow", await hub.targets(KEY, 1)) as slow,
            hub.watcher(KEY, "fast", await hub.targets(KEY, 1)) as fast,
        ):
            for version in range(1, 5):
                registry.version = version
                while (target := await fast.next()) is None or target.version != version:
                    pass
            last = await slow.next()
            assert last is not None
            assert last.version == 4
            waiting = asyncio.create_task(slow.next())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            waiting.cancel()

    with_hub(body)


def test_those_who_ask_at_once_share_one_question_to_the_registry() -> None:
    async def body(hub: WatchHub, registry: Registry) -> None:
        await asyncio.gather(*(hub.targets(KEY, 1) for _ in range(100)))
        assert registry.loads == 1
        await hub.targets(KEY, 0)
        assert registry.loads == 2

    with_hub(body, UpdateSettings(poll_seconds=60))


def test_a_class_that_is_not_there_is_not_remembered() -> None:
    async def body(hub: WatchHub, registry: Registry) -> None:
        for name in ("x", "y", "x"):
            with pytest.raises(NotFoundError):
                await hub.targets((KEY[0], name), 1)
        assert registry.loads == 3
        assert not hub._classes
        assert not hub._loading

    with_hub(body)


def test_a_poll_that_is_asked_for_comes_at_once() -> None:
    async def body(hub: WatchHub, registry: Registry) -> None:
        with hub.watcher(KEY, "a", await hub.targets(KEY, 1)) as watcher:
            await watcher.next()
            registry.version = 2
            hub.poll()
            assert await watcher.next() == Assignment(2, f"{2:064x}")

    with_hub(body, UpdateSettings(poll_seconds=3600))


def test_watchers_are_counted_and_forgotten() -> None:
    async def body(hub: WatchHub, registry: Registry) -> None:
        targets = await hub.targets(KEY, 1)
        with hub.watcher(KEY, "a", targets), hub.watcher(KEY, "b", targets):
            assert (hub.watchers, hub.watchers_of(KEY), hub.watchers_of(("x", "y"))) == (2, 2, 0)
        assert hub.watchers == 0
        asked = registry.loads
        await asyncio.sleep(0.2)
        assert registry.loads == asked  # nobody watches, so nobody asks

    with_hub(body)
