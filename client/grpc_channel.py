"""A device's connection to its service: over TLS, or unprotected on this machine alone."""

import ipaddress
from dataclasses import dataclass
from typing import Any

import grpc
from grpc.experimental import ChannelOptions

from quantization.errors import ConfigurationError

DEVICE_KEY = "quantfleet-device"
"""Metadata in which a device names itself where connections have no certificates."""

CHUNK_BYTES = 64 << 10
"""Most data in one message of a stream."""

MAX_ANSWER_BYTES = CHUNK_BYTES + (16 << 10)
"""Largest message that is read; what declares more is refused before it is read."""

WINDOW_BYTES = 512 << 10
"""Most of one stream that is on its way, or came and was not read: 40 Mbit/s with a service 100 ms away.

Left to gRPC it grows to megabytes, which leave the processor's cache before they are read, and memory for nothing.
"""

_MAX_NAME_LENGTH = 256


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """How long a device waits for its service.

    Attributes:
        call_seconds: For the answer to one question, and for one file of signed metadata.
        stall_seconds: For the next 4 KiB of a stream of blobs, and for the first word of a watch.
        first_backoff_seconds: Longest pause after the first failure of a watch; it doubles with each in a row.
        most_backoff_seconds: Longest pause after many.
        refresh_seconds: Longest time without a look at signed metadata, so that a device that is kept from learning
            of something newer finds out when what it has expires.
    """

    call_seconds: float = 30.0
    stall_seconds: float = 60.0
    first_backoff_seconds: float = 1.0
    most_backoff_seconds: float = 120.0
    refresh_seconds: float = 3600.0

    def __post_init__(self) -> None:
        """Refuse times that end everything at once."""
        wrong = [name for name in self.__slots__ if not 0 < getattr(self, name) < float("inf")]
        if wrong:
            raise ConfigurationError(f"settings of the connection must be above 0: {', '.join(wrong)}")


def open_channel(
    address: str, credentials: grpc.ChannelCredentials | None, settings: GrpcSettings
) -> grpc.Channel:
    """Return a channel, which connects when it is first used.

    Streams that answer one request are read in one thread: the one that wants what they bring takes it out of gRPC
    itself. Left to gRPC, another thread takes it and wakes the first one for each message, which costs as much as all
    the rest of receiving 64 KiB. Such streams end with `end_stream`.

    Args:
        address: Host and port.
        credentials: Of this device; None only for a loopback address.
        settings: For how long to wait.

    Raises:
        ConfigurationError: The address is not on this machine, and there are no credentials.
    """
    if credentials is not None:
        return grpc.secure_channel(address, credentials, options=_options(settings))
    if not is_loopback(address):
        raise ConfigurationError(
            f"'{address}' is not a loopback address: connections to it need a certificate; enrol this device first"
        )
    options = [*_options(settings), ("grpc.enable_http_proxy", 0)]
    return grpc.insecure_channel(address, options=options)


def end_stream(call: Any) -> None:  # noqa: ANN401 - a call has no public type
    """End a stream that this thread has read, if it has not ended; nothing is left of it afterwards.

    What is read in one thread (see `open_channel`) leaves 18 KB for good in gRPC where its last events, that it was
    cancelled among them, are not taken. Its own iteration does not take them, and nothing public does (1.81 to 1.85).
    """
    call.cancel()
    take = getattr(call, "_consume_next_event", None)
    while take is not None and call._state.due:  # noqa: SLF001
        take()


def is_loopback(address: str) -> bool:
    """Return whether "host:port" is reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")


def call_metadata(device: str, *, is_insecure: bool) -> tuple[tuple[str, str], ...]:
    """Return what goes with every call: the device's name, where no certificate says it.

    Raises:
        ConfigurationError: If the name is none.
    """
    if not is_insecure:
        return ()
    if not 1 <= len(device) <= _MAX_NAME_LENGTH or not (device.isascii() and device.isprintable()):
        raise ConfigurationError(
            f"device name {device[:80]!r} is not 1 to {_MAX_NAME_LENGTH} ASCII characters"
        )
    return ((DEVICE_KEY, device),)


def _options(settings: GrpcSettings) -> list[tuple[str, int]]:
    return [
        (ChannelOptions.SingleThreadedUnaryStream, 1),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.bdp_probe", 0),  # so the window stays as it is
        ("grpc.http2.max_frame_size", MAX_ANSWER_BYTES),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.keepalive_time_ms", 120_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.initial_reconnect_backoff_ms", max(100, round(500 * settings.first_backoff_seconds))),
        ("grpc.min_reconnect_backoff_ms", 20_000),  # which is how long one attempt to connect may take
        ("grpc.max_reconnect_backoff_ms", max(100, round(1000 * settings.most_backoff_seconds))),
        (
            "grpc.enable_retries",
            0,
        ),  # who repeats a call is decided here, with what the service says of waiting
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, which ends with the channel
    ]
