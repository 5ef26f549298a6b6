import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from update_client import Running, running

from quantization.errors import ConfigurationError, MalformedError
from server.grpc_server import Service, is_loopback, serving
from server.peers import DEVICE_KEY

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


CALLS: dict[str, Callable[[aio.Channel, bytes], Awaitable[object]]] = {
    "Check": lambda channel, data: channel.unary_unary(f"/{NAME}/Check")(data),
    "Watch": lambda channel, data: channel.unary_stream(f"/{NAME}/Watch")(data).read(),
    "FetchBlobs": lambda channel, data: channel.stream_stream(f"/{NAME}/FetchBlobs")(
        iter([data]), metadata=((DEVICE_KEY, "device-1"),)
    ).read(),
}


@pytest.mark.parametrize("method", list(CALLS))
def test_bytes_that_are_no_message_are_refused_as_bad_requests(
    method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(channel: aio.Channel) -> None:
        with pytest.raises(aio.AioRpcError, match="cannot be read") as caught:
            await CALLS[method](channel, b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    serve(tmp_path, body)
    assert "Traceback" not in caplog.text


def test_refusals_of_bytes_that_are_no_message_are_told(tmp_path: Path) -> None:
    async def main() -> list[Exception]:
        told: list[Exception] = []
        async with asyncio.timeout(20), running(tmp_path) as run:
            service = Service(NAME, run.service.register)
            async with (
                serving([service], "127.0.0.1:0", None, on_refusal=told.append) as port,
                aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            ):
                with pytest.raises(aio.AioRpcError):
                    await channel.unary_unary(f"/{NAME}/Check")(b"\xff")
        return told

    (error,) = asyncio.run(main())
    assert isinstance(error, MalformedError)
