import asyncio
import random
from collections.abc import Awaitable, Callable

from simulation.bad_network import BadNetwork

_SENT = bytes(range(256)) * 512  # 128 KiB


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(_SENT)
    await writer.drain()
    writer.close()


async def _through(kind: str, receive: Callable[[asyncio.StreamReader], Awaitable[bytes]]) -> bytes:
    async with await asyncio.start_server(_serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with BadNetwork(host, port, random.Random(7)) as network:  # noqa: S311
            reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[kind])
            writer.write(b"?")
            received = await receive(reader)
            writer.close()
            return received


async def _all(reader: asyncio.StreamReader) -> bytes:
    received = b""
    try:
        while piece := await reader.read(1 << 16):
            received += piece
    except ConnectionError:
        pass
    return received


async def _first(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(2048)


def test_a_cut_connection_brings_a_part() -> None:
    received = asyncio.run(_through("cut", _all))
    assert 0 < len(received) <= 64 << 10
    assert _SENT.startswith(received)


def test_a_corrupt_connection_flips_bits() -> None:
    received = asyncio.run(_through("corrupt", _all))
    wrong = [(a ^ b).bit_count() for a, b in zip(received, _SENT, strict=False) if a != b]
    assert wrong
    assert set(wrong) == {1}


def test_a_slow_connection_brings_what_was_sent() -> None:
    assert asyncio.run(_through("slow", _first)) == _SENT[:2048]


def test_a_server_that_is_away_is_a_reset_connection() -> None:
    async def connect() -> bytes:
        async with BadNetwork("127.0.0.1", 1, random.Random(0)) as network:  # noqa: S311
            reader, _ = await asyncio.open_connection("127.0.0.1", network.ports["cut"])
            return await _all(reader)

    assert asyncio.run(connect()) == b""
