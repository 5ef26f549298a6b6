"""A watch that goes on: it notices dead streams, comes back after pauses, and ends at once when it is told to.

1. A stream on which nothing came for as long as the service said is dead, whatever the network thinks.
2. After a stream that the service ended, the device waits as long as the service said; after one that broke, longer
   with every failure in a row. All waits are drawn at random, so that a fleet does not come back at once.
3. What is announced is a hint: nothing here is verified, and nothing should be installed because of it alone.
"""

import random
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

import grpc

from client.backoff import Backoff
from client.grpc_channel import GrpcSettings
from client.grpc_errors import as_error, seconds_within
from client.transport import Offer
from client.watchdog import Watchdog
from quantization.errors import NotFoundError, UnreachableError

_MOST_SILENT_SECONDS = 3600.0


class WatchCall(Protocol):
    """One stream of announcements."""

    def __next__(self) -> tuple[Offer, float]:
        """Return the next one, and after how many seconds without another the stream is dead; 0 for never."""
        ...

    def cancel(self) -> object:
        """End the stream; any thread may call it."""
        ...

    def end(self) -> object:
        """End the stream, in the thread that has read it."""
        ...


class Watch:
    """Announced targets, one after another; use it as a context manager, and iterate over it in one thread.

    Iterating yields the target at once and whenever another is announced; it ends after `cancel`. It raises what a
    pause does not cure: `MalformedError` where the service refuses the request.
    """

    def __init__(
        self,
        open_call: Callable[[], WatchCall],
        settings: GrpcSettings,
        *,
        rng: random.Random,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        """Watch, once somebody iterates.

        Args:
            open_call: Opens a stream.
            settings: For how long to wait.
            rng: Draws the pauses.
            on_end: Called when the watch is cancelled.
        """
        self._open_call, self._settings, self._on_end = open_call, settings, on_end
        self._backoff = Backoff(settings.first_backoff_seconds, settings.most_backoff_seconds, rng)
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._call: WatchCall | None = None
        self._is_connected = False
        self._offers = self._run()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Offer]:
        return self._offers

    @property
    def is_connected(self) -> bool:
        """Whether the stream that is open has said something."""
        return self._is_connected

    def cancel(self) -> None:
        """End the watch at once, whatever it waits for; any thread may call it, any number of times."""
        with self._lock:
            self._cancelled.set()
            if self._call is not None:
                self._call.cancel()
        self._on_end()

    def _run(self) -> Iterator[Offer]:
        last: Offer | None = None
        while not self._cancelled.is_set():
            told_seconds = 0.0  # what the service said of coming back
            try:
                for offer in self._stream():
                    self._backoff.reset()
                    told_seconds = offer.retry_after_seconds
                    if last is None or offer.target != last.target:
                        last = offer
                        yield offer
                pause = told_seconds or self._backoff.next_seconds()
            except NotFoundError:  # nothing was published yet; it may be
                pause = self._backoff.next_seconds(self._settings.most_backoff_seconds / 2)
            except UnreachableError as error:
                pause = self._backoff.next_seconds(max(error.retry_after_seconds, told_seconds))
            self._cancelled.wait(pause)

    def _stream(self) -> Iterator[Offer]:
        """Yield what one stream says, until it ends or breaks."""
        with self._lock:
            if self._cancelled.is_set():
                return
            call = self._call = self._open_call()
        silent_after = self._settings.stall_seconds
        try:
            with Watchdog(call.cancel) as dog:
                while True:
                    dog.arm(silent_after)
                    try:
                        offer, silent_after = next(call)
                    except StopIteration:
                        return
                    except grpc.RpcError as error:
                        if dog.has_bitten:
                            raise UnreachableError(f"the watch was silent for {silent_after} s") from error
                        if self._cancelled.is_set():
                            return
                        raise as_error(error, "watch") from error
                    dog.disarm()
                    self._is_connected = True
                    silent_after = seconds_within(silent_after, _MOST_SILENT_SECONDS)
                    yield offer
        finally:
            self._is_connected = False
            call.end()
            with self._lock:
                self._call = None
