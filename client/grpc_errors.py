"""What gRPC raises, as this project's errors: converted here, once."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from quantization.errors import (
    ForbiddenError,
    MalformedError,
    NotFoundError,
    QuantFleetError,
    UnauthenticatedError,
    UnreachableError,
)

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata that says how long to wait, in milliseconds."""

MOST_SECONDS = 86_400.0
"""Longest wait that a service may ask for; what asks for more must not silence a device for good."""

_MAX_DETAILS = 300
# A service that does not know a method is an older one, which may be better the next time.
_ERRORS: dict[grpc.StatusCode, type[QuantFleetError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: MalformedError,
    grpc.StatusCode.OUT_OF_RANGE: MalformedError,
    grpc.StatusCode.FAILED_PRECONDITION: MalformedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
}


@contextlib.contextmanager
def converted(what: str) -> Iterator[None]:
    """Turn what gRPC raises in the block into this project's errors.

    Args:
        what: Is being done, for the message.

    Raises:
        NotFoundError: The service has nothing of the kind.
        MalformedError: The service refuses the request, or sent a message that is too large.
        UnauthenticatedError: The service does not know this device.
        ForbiddenError: This device may not do that.
        UnreachableError: Anything else, which may be better the next time.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise as_error(error, what) from error


def as_error(error: grpc.RpcError, what: str) -> QuantFleetError:
    """Return this project's error for one of gRPC; see `converted`."""
    call: Any = error  # what a call raises is the call itself
    is_call = isinstance(call, grpc.Call)
    code = call.code() if is_call else None
    details = str(call.details() if is_call else call)[:_MAX_DETAILS]
    message = f"{what}: {details} ({code.name if code else 'no status'})"
    if code in _ERRORS:
        return _ERRORS[code](message)
    if _is_too_large(code, details):
        return MalformedError(message)
    return UnreachableError(message, pushback_seconds(call.trailing_metadata() if is_call else None))


def pushback_seconds(trailing: Iterable[tuple[str, str | bytes]] | None) -> float:
    """Return how long the service asks to wait; 0 where it did not say."""
    for key, value in trailing or ():
        if key == PUSHBACK_KEY:
            try:
                return seconds_within(float(value) / 1000)
            except ValueError:
                return 0.0
    return 0.0


def seconds_within(seconds: float, most: float = MOST_SECONDS) -> float:
    """Return what a service says of time within 0 to `most`; 0 for what is not a number."""
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), most)


def _is_too_large(code: grpc.StatusCode | None, details: str) -> bool:
    """Return whether this side refused a message for its size, which the service alone could better."""
    return code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details
