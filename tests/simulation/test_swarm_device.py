"""A device of a swarm, against servers that are not in good order."""

import asyncio
import random

import grpc
import pytest
from grpc import aio

from protos.quantfleet.v1 import update_pb2 as pb
from protos.quantfleet.v1 import update_pb2_grpc
from simulation import swarm_device
from simulation.swarm_counts import Contents, SwarmCounts, SwarmTarget
from simulation.swarm_device import SwarmDevice

TARGET = SwarmTarget("ab" * 32, "x86", is_at_once=True)


class FullServer(update_pb2_grpc.UpdateServiceServicer):
    """Tells of a target, and has no stream left for what it names."""

    def __init__(self, refusals: int) -> None:
        self.left, self.done = refusals, asyncio.Event()

    async def Watch(self, request: pb.WatchRequest, context: aio.ServicerContext) -> None:  # noqa: ARG002, N802
        await context.write(pb.TargetChanged(version=1, manifest_digest=bytes(32)))
        await asyncio.Event().wait()

    async def FetchBlobs(self, requests: object, context: aio.ServicerContext) -> None:  # noqa: ARG002, N802
        self.left -= 1
        if self.left <= 0:
            self.done.set()
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")


async def _errors_of(refusals: int) -> dict[str, int]:
    server, service, counts = aio.server(), FullServer(refusals), SwarmCounts()
    update_pb2_grpc.add_UpdateServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    device = SwarmDevice(
        "press-7",
        f"127.0.0.1:{port}",
        TARGET,
        contents=Contents(),
        counts=counts,
        on_event=lambda _told: None,
        rng=random.Random(0),  # noqa: S311
    )
    life = asyncio.create_task(device.run())
    try:
        async with asyncio.timeout(30):
            await service.done.wait()
            while sum(counts.errors.values()) < refusals:
                await asyncio.sleep(0.01)
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await server.stop(None)
    return dict(counts.errors)


def test_a_refused_stream_is_counted_as_what_the_server_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_device, "_LEAST_FETCH_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(swarm_device, "_LONGEST_FETCH_WAIT_SECONDS", 0.02)
    assert asyncio.run(_errors_of(20)) == {"resource_exhausted": 20}
