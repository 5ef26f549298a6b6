"""How much one caller may ask for, and how calls end that are refused.

What a service raises becomes a status here: `refusals` is the outermost shell of every call.
"""

import random
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from grpc import aio
from sqlalchemy.exc import DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from quantization.errors import (
    ConfigurationError,
    DigestMismatchError,
    ForbiddenError,
    IllegalTransitionError,
    MalformedError,
    NotFoundError,
    OverloadedError,
    QuantFleetError,
    UnauthenticatedError,
    UnreachableError,
)
from server.update_settings import UpdateSettings

DEVICE_KEY = "quantfleet-device"
"""Metadata in which a device names itself where connections have no certificates."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata that says how long to wait, in milliseconds."""

_DATABASE_AWAY = (OperationalError, InterfaceError, DisconnectionError, PoolTimeoutError)
_AWAY_RETRY_SECONDS = 2.0

Context = aio.ServicerContext[Any, Any]
Identify = Callable[[Context], str]
"""Names the device that calls."""
OnRefusal = Callable[[Exception], None]
"""Told why a call is refused."""

_STATUS: dict[type[QuantFleetError], grpc.StatusCode] = {
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    IllegalTransitionError: grpc.StatusCode.FAILED_PRECONDITION,
    MalformedError: grpc.StatusCode.INVALID_ARGUMENT,
    ConfigurationError: grpc.StatusCode.INVALID_ARGUMENT,
    DigestMismatchError: grpc.StatusCode.DATA_LOSS,
    UnreachableError: grpc.StatusCode.UNAVAILABLE,
    QuantFleetError: grpc.StatusCode.INTERNAL,
}


@asynccontextmanager
async def refusals(context: Context, on_refusal: OnRefusal = lambda _error: None) -> AsyncIterator[None]:
    """Turn what the block raises into the status of the call.

    Args:
        context: Of the call.
        on_refusal: Told of what was raised, before the call ends.
    """
    try:
        with _telling(on_refusal):
            yield
    except QuantFleetError as error:
        trailing: tuple[tuple[str, str], ...] = ()
        if isinstance(error, OverloadedError):
            trailing = _pushback(error.retry_after_seconds)
        elif isinstance(error, UnreachableError):
            trailing = _pushback(_spread_retry())
        status = next(code for kind, code in _STATUS.items() if isinstance(error, kind))
        await context.abort(status, str(error), trailing_metadata=trailing)
    except _DATABASE_AWAY:
        await context.abort(
            grpc.StatusCode.UNAVAILABLE,
            "the server's database cannot be reached now",
            trailing_metadata=_pushback(_spread_retry()),
        )
    except TimeoutError:
        await context.abort(
            grpc.StatusCode.DEADLINE_EXCEEDED, "the device neither read nor asked for too long"
        )


def _pushback(seconds: float) -> tuple[tuple[str, str], ...]:
    """Return what tells the caller how long to wait."""
    return ((PUSHBACK_KEY, str(round(1000 * seconds))),)


def _spread_retry() -> float:
    """Return how long to wait for what the server itself waits for."""
    return _AWAY_RETRY_SECONDS * random.uniform(1.0, 4.0)  # noqa: S311 - it spreads load


@contextmanager
def _telling(on_refusal: OnRefusal) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        on_refusal(error)
        raise


class PeerLimits:
    """Counts what each device asks for; refuses what is too much. One event loop uses it."""

    def __init__(
        self, settings: UpdateSettings, rng: random.Random, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._clock = clock
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()  # and when they were counted
        self._streams: Counter[tuple[str, str]] = Counter()
        self._totals: Counter[str] = Counter()

    def count_call(self, device: str) -> None:
        """Take one call off what the device may ask for now.

        Raises:
            OverloadedError: It has asked too often.
        """
        now, burst, rate = self._clock(), self._settings.calls_burst, self._settings.calls_per_second
        left, at = self._tokens.pop(device, (float(burst), now))
        left = min(burst, left + (now - at) * rate)
        is_refused = left < 1
        self._tokens[device] = (left if is_refused else left - 1, now)
        if len(self._tokens) > self._settings.max_known_devices:
            self._tokens.popitem(last=False)
        if is_refused:
            raise OverloadedError("too many calls from one device", self._spread((1 - left) / rate))

    @contextmanager
    def stream(self, device: str, kind: str, most: int) -> Iterator[None]:
        """Count a stream of the device while the block runs.

        Args:
            device: Its name.
            kind: Streams of each kind are counted apart.
            most: Streams of that kind, of all devices, at the same time.

        Raises:
            OverloadedError: It, or the server, has too many of them.
        """
        retry = self._spread(self._settings.retry_seconds)
        if self._streams[device, kind] >= self._settings.max_streams_per_device:
            raise OverloadedError(
                f"one device has {self._streams[device, kind]} streams of kind '{kind}'", retry
            )
        if self._totals[kind] >= most:
            raise OverloadedError(f"{most} devices have a stream of kind '{kind}'; this one must wait", retry)
        self._streams[device, kind] += 1
        self._totals[kind] += 1
        try:
            yield
        finally:
            self._totals[kind] -= 1
            self._streams[device, kind] -= 1
            if not self._streams[device, kind]:
                del self._streams[device, kind]

    def _spread(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1.0, 2.0)
