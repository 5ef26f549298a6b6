import asyncio
import threading
from collections.abc import Callable

import pytest

from server.periodic import Periodic


class Work:
    """Counts how often it was done, and fails while there is an error."""

    def __init__(self) -> None:
        self.times = 0
        self.error: Exception | None = None
        self.threads: set[int] = set()

    def __call__(self) -> None:
        self.times += 1
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_work_is_done_again_whatever_it_raises_in_a_thread_of_its_own() -> None:
    async def main() -> None:
        work = Work()
        async with Periodic("work", work, every_seconds=0.01, is_due_at_once=True):
            assert work.times == 1
            for error in (ValueError("two\nlines"), KeyError(), None):
                work.error, before = error, work.times
                await until(lambda before=before: work.times > before + 1)  # type: ignore[misc]
        assert len(work.threads) == 1
        assert threading.get_ident() not in work.threads

    asyncio.run(main())


def test_what_goes_wrong_the_first_time_is_the_callers() -> None:
    async def main() -> None:
        work = Work()
        work.error = ValueError("broken")
        with pytest.raises(ValueError, match="broken"):
            async with Periodic("work", work, every_seconds=60, is_due_at_once=True):
                pass

    asyncio.run(main())


def test_the_first_time_is_waited_for_unless_it_is_due_at_once() -> None:
    async def main() -> None:
        work = Work()
        async with Periodic("work", work, every_seconds=60):
            await asyncio.sleep(0.01)
        assert work.times == 0

    asyncio.run(main())
