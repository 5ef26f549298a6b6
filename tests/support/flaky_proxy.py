"""A TCP proxy whose network a test breaks and mends while connections go through it."""

import contextlib
import random
import socket
import struct
import threading
import time
from enum import StrEnum
from types import TracebackType
from typing import Self

_PIECE_BYTES = 1024
_RESET = struct.pack("ii", 1, 0)


class Network(StrEnum):
    GOOD = "good"
    CUT = "cut"
    """Connections are reset when a few KiB have passed, and at once when there are none."""
    GONE = "gone"
    """Nobody answers: connections are taken, and nothing passes."""
    LORIS = "loris"
    """One byte passes every tenth of a second."""
    CORRUPT = "corrupt"
    """One piece in ten has a flipped bit."""


class FlakyProxy:
    """Passes what comes to a port of this machine; use it as a context manager.

    Attributes:
        network: How it behaves from now on, for connections that there are and for new ones.
        cut_bytes: After which a connection is reset where the network is cut.
        passed_bytes: From the server, so far.
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        self.network, self.cut_bytes, self.passed_bytes = Network.GOOD, 8 << 10, 0
        self._target = ("127.0.0.1", port)
        self._random = random.Random(seed)  # noqa: S311  # it guards nothing
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._is_over = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """End all connections that there are, without a word."""
        for one in list(self._open):
            _reset(one)

    def _accept(self) -> None:
        while not self._is_over:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                _reset(device)
                continue
            self._open |= {device, server}
            for source, sink, is_answer in ((device, server, False), (server, device, True)):
                threading.Thread(target=self._carry, args=(source, sink, is_answer), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                while self.network is Network.GONE and not self._is_over:
                    time.sleep(0.01)
                if is_answer:
                    carried += len(data)
                    self.passed_bytes += len(data)
                    if self.network is Network.CUT and carried > self.cut_bytes:
                        break
                    data = self._damaged(data)
                self._send(sink, data)
        _reset(source)
        _reset(sink)
        self._open -= {source, sink}

    def _damaged(self, data: bytes) -> bytes:
        if self.network is not Network.CORRUPT or self._random.random() >= 0.1:
            return data
        place = self._random.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << self._random.randrange(8)]) + data[place + 1 :]

    def _send(self, sink: socket.socket, data: bytes) -> None:
        start = 0
        while start < len(data):
            is_slow = self.network is Network.LORIS
            part = data[start : start + 1] if is_slow else data[start:]
            sink.sendall(part)
            start += len(part)
            if is_slow:
                time.sleep(0.1)


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        one.close()
