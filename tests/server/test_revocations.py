import asyncio
from collections.abc import Callable

from sqlalchemy.exc import OperationalError

from server.identity_records import Revoked
from server.revocations import Revocations


class Source:
    """What is revoked, and what goes wrong."""

    def __init__(self) -> None:
        self.revoked = Revoked()
        self.error: Exception | None = None
        self.calls = 0

    def __call__(self) -> Revoked:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.revoked


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_what_is_revoked_is_known_at_once_and_news_soon() -> None:
    async def main() -> None:
        source = Source()
        source.revoked = Revoked(frozenset({"1"}))
        async with Revocations(source, poll_seconds=0.01) as revocations:
            assert revocations.is_revoked("1", "quantfleet://device/a")
            assert not revocations.is_revoked("2", "quantfleet://device/b")
            source.revoked = Revoked(frozenset({"1"}), frozenset({"quantfleet://device/b"}))
            await until(lambda: revocations.is_revoked("2", "quantfleet://device/b"))

    asyncio.run(main())


def test_what_was_known_holds_while_the_registry_is_away() -> None:
    async def main() -> None:
        source = Source()
        source.revoked = Revoked(frozenset({"1"}))
        async with Revocations(source, poll_seconds=0.01) as revocations:
            source.error = OperationalError("select", {}, Exception("gone"))
            calls = source.calls
            await until(lambda: source.calls > calls + 1)
            assert revocations.is_revoked("1", "")
            source.error, source.revoked = None, Revoked()
            await until(lambda: not revocations.is_revoked("1", ""))

    asyncio.run(main())
