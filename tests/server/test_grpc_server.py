import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from update_client import Running, running

from quantization.errors import ConfigurationError
from server.grpc_server import is_loopback, serving

NAME = "quantfleet.v1.UpdateService"


def serve(folder: Path, body: Callable[[aio.Channel], Awaitable[None]]) -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(20),
            running(folder) as run,
            aio.insecure_channel(f"127.0.0.1:{run.port}") as channel,
        ):
            await body(channel)

    asyncio.run(main())


def test_standard_health_says_that_the_services_serve(tmp_path: Path) -> None:
    async def body(channel: aio.Channel) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAME):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    serve(tmp_path, body)


def test_health_says_so_before_the_server_stops(tmp_path: Path) -> None:
    async def main() -> list[int]:
        seen = []
        async with asyncio.timeout(20):
            async with running(tmp_path) as run:
                channel = aio.insecure_channel(f"127.0.0.1:{run.port}")
                call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
                seen.append((await call.read()).status)
                reader = asyncio.create_task(call.read())
            seen.append((await reader).status)
            await channel.close()
        return seen

    states = health_pb2.HealthCheckResponse
    assert asyncio.run(main()) == [states.SERVING, states.NOT_SERVING]


def test_reflection_lists_the_services(tmp_path: Path) -> None:
    async def body(channel: aio.Channel) -> None:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
        ]
        listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
        names = {service.name for service in listed.list_services_response.service}
        assert {NAME, "grpc.health.v1.Health"} <= names
        assert b"FetchBlobs" in described.file_descriptor_response.file_descriptor_proto[0]

    serve(tmp_path, body)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:0", True), ("[::1]:80", True), ("localhost:80", True), ("unix:/run/x", True),
     ("0.0.0.0:80", False), ("[::]:80", False), ("10.0.0.1:1", False), ("example.org:80", False), (":80", False)],
)  # fmt: skip
def test_loopback_addresses_are_told_from_others(address: str, *, expected: bool) -> None:
    assert is_loopback(address) is expected


def refusal(address: str) -> str:
    async def main() -> None:
        async with serving([], address, None):
            pass

    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(main())
    return str(caught.value)


def test_only_loopback_is_served_without_certificates() -> None:
    assert "need certificates" in refusal("0.0.0.0:0")


def test_an_address_that_is_taken_is_a_clear_error(tmp_path: Path) -> None:
    async def main(run: Running) -> None:
        with pytest.raises(ConfigurationError, match="cannot be served"):
            async with serving([], f"127.0.0.1:{run.port}", None):
                pass

    async def around() -> None:
        async with running(tmp_path) as run:
            await main(run)

    asyncio.run(around())
