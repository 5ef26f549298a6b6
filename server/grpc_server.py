"""A gRPC server with standard health and reflection, around whatever services are handed in."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from quantization.errors import ConfigurationError
from server.peers import OnRefusal
from server.request_parsing import RequestParsing

MAX_REQUEST_BYTES = 256 << 10
"""Largest message that is read from a device: 4,096 digests of what it holds."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.so_reuseport", 0),  # two servers on one port are a mistake
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True)
class Service:
    """A service to serve.

    Attributes:
        name: As the schema has it, such as "quantfleet.v1.UpdateService".
        register: Adds it to a server.
    """

    name: str
    register: Callable[[aio.Server], None]


@asynccontextmanager
async def serving(
    services: Sequence[Service],
    address: str,
    credentials: grpc.ServerCredentials | None,
    *,
    grace_seconds: float = 10.0,
    before_stop: Callable[[], None] = lambda: None,
    on_refusal: OnRefusal = lambda _error: None,
) -> AsyncIterator[int]:
    """Serve while the block runs; yields the port.

    Args:
        services: What to serve, beside `grpc.health.v1.Health` and reflection.
        address: Host and port, such as "[::]:9443"; port 0 takes a free one.
        credentials: Of the server; None only on a loopback address.
        grace_seconds: How long calls may go on when the block ends.
        before_stop: Called when the block ends, before calls are waited for.
        on_refusal: Told of calls whose bytes are no message.

    Raises:
        ConfigurationError: The address cannot be served, or must not be without credentials.
    """
    if credentials is None and not is_loopback(address):
        raise ConfigurationError(
            f"'{address}' is not a loopback address: connections to it need certificates; serve without them on "
            "127.0.0.1 only"
        )
    server = aio.server(options=_OPTIONS, interceptors=[RequestParsing(on_refusal)])
    state = await _add_standard_services(server, [service.name for service in services])
    for service in services:
        service.register(server)
    port = _bind(server, address, credentials)
    await server.start()
    try:
        yield port
    finally:
        await state.enter_graceful_shutdown()
        before_stop()
        await asyncio.shield(server.stop(grace_seconds))


def is_loopback(address: str) -> bool:
    """Return whether "host:port" is reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")


async def _add_standard_services(server: aio.Server, names: Sequence[str]) -> health.aio.HealthServicer:
    state = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    for name in ("", *names):
        await state.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return state


def _bind(server: aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigurationError(f"'{address}' cannot be served: {error}") from error
