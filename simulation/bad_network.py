"""A network that fails: a TCP proxy that cuts connections, slows them down, or flips bits in what the server sends.

Faults are real ones, below everything that the two sides know of: HTTP/2 frames break as well as the blobs in them.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Self

_PIECE_BYTES = 4096
_SLOW_BYTES_PER_SECOND = 8192
_CUT_BYTES = (4 << 10, 64 << 10)
_CORRUPT_PART = 0.1
_LINGER_NONE = struct.pack("ii", 1, 0)

_Pump = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class BadNetwork:
    """One listening port for each kind of fault; use it as an async context manager.

    Attributes:
        ports: By kind: "cut", "slow", "corrupt".
    """

    def __init__(self, host: str, port: int, rng: random.Random) -> None:
        """Stand before a server; draw faults from `rng`."""
        self.ports: dict[str, int] = {}
        self._host, self._port, self._rng = host, port, rng
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        for kind, pump in (("cut", self._cut), ("slow", self._slow), ("corrupt", self._corrupt)):

            async def connect(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pump: _Pump = pump
            ) -> None:
                await self._pass_on(reader, writer, pump)

            server = await asyncio.start_server(connect, "127.0.0.1", 0, limit=_PIECE_BYTES, backlog=1024)
            self.ports[kind] = server.sockets[0].getsockname()[1]
            self._servers.append(server)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pump: _Pump) -> None:
        """Carry one connection until either side, or the fault, ends it."""
        task = asyncio.current_task()
        if task is None:
            return
        self._tasks.add(task)
        try:
            up = await asyncio.open_connection(self._host, self._port, limit=_PIECE_BYTES)
        except OSError:
            _abort(writer)
            self._tasks.discard(task)
            return
        sides = [asyncio.create_task(_copy(reader, up[1])), asyncio.create_task(pump(up[0], writer))]
        try:
            await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)
            _abort(writer)
            _abort(up[1])
            self._tasks.discard(task)

    async def _cut(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._rng.randint(*_CUT_BYTES)
        while left > 0 and (piece := await reader.read(_PIECE_BYTES)):
            writer.write(piece[:left])
            left -= len(piece)
            await writer.drain()

    async def _slow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_SLOW_BYTES_PER_SECOND // 8):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(len(piece) / _SLOW_BYTES_PER_SECOND)

    async def _corrupt(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE_BYTES):
            if self._rng.random() < _CORRUPT_PART * len(piece) / _PIECE_BYTES:
                damaged = bytearray(piece)
                damaged[self._rng.randrange(len(piece))] ^= 1 << self._rng.randrange(8)
                piece = bytes(damaged)
            writer.write(piece)
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection as a broken network does: with a reset."""
    with contextlib.suppress(OSError):
        raw = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    writer.transport.abort()
