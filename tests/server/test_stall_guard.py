import asyncio
import time

import pytest

from server.stall_guard import StallGuard


def test_a_stream_that_stands_still_ends_and_one_that_moves_does_not() -> None:
    moves = []

    async def main() -> None:
        async with StallGuard(0.4) as guard:
            for _ in range(12):
                await asyncio.sleep(0.05)
                guard.progress()
                moves.append(time.monotonic())
            await asyncio.sleep(10)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert len(moves) == 12
    assert 0.2 <= time.monotonic() - moves[-1] < 5
