"""Update services that a test talks to over real gRPC: the real one in a thread, and one that does what it is told."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from update_client import QUICK, Running, Shelf, running

from protos.quantfleet.v1 import update_pb2 as pb
from quantization.artifact import Artifact
from server.blob_store import BlobStore
from server.targets import Assignment
from server.update_settings import UpdateSettings

Handler = Callable[[Any, grpc.ServicerContext], Any]
"""From a request, serialised (or an iterator of such), and its context to an answer, serialised (or an iterator)."""

UPDATES = "/quantfleet.v1.UpdateService/"
TELEMETRY = "/quantfleet.v1.TelemetryService/"

_SHAPES: dict[str, Callable[..., Any]] = {
    "Check": grpc.unary_unary_rpc_method_handler,
    "Report": grpc.unary_unary_rpc_method_handler,
    "Watch": grpc.unary_stream_rpc_method_handler,
    "FetchMetadata": grpc.unary_stream_rpc_method_handler,
    "FetchBlobs": grpc.stream_stream_rpc_method_handler,
}


class Live:
    """The real service, in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, run: Running) -> None:
        self._loop, self.run = loop, run

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.run.port}"

    @property
    def model_digest(self) -> str:
        return self.run.shelf.model_digest

    def publish(self, artifact: Artifact) -> Assignment:
        target = self.run.shelf.publish(artifact)
        self.call(self.run.service.poll)
        return target

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the service's thread."""
        self._loop.call_soon_threadsafe(function)


@contextmanager
def live(
    folder: Path, *artifacts: Artifact, settings: UpdateSettings = QUICK, **keywords: Any
) -> Iterator[Live]:
    """Serve while the block runs, with some artifacts published."""
    started: list[Live] = []
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    shelf = Shelf(BlobStore(folder / "blobs"))
    for artifact in artifacts:
        shelf.publish(artifact)

    async def serve() -> None:
        async with running(folder, settings, shelf, **keywords) as run:
            started.append(Live(loop, run))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


def wanted_of(requests: Iterable[bytes]) -> Iterator[pb.BlobWanted]:
    """Yield what a device asks for in a stream of blobs."""
    for data in requests:
        request = pb.FetchBlobsRequest.FromString(data)
        yield from request.opening.wanted
        if request.HasField("wanted"):
            yield request.wanted


@contextmanager
def scripted(port: int = 0, **methods: Handler) -> Iterator[str]:
    """Serve handlers of single methods while the block runs; yields the address.

    Args:
        port: Of 127.0.0.1; 0 for a free one.
        methods: By name, what answers it; others are not implemented.
    """
    handlers = {name: _SHAPES[name](handler) for name, handler in methods.items()}
    executor = ThreadPoolExecutor(8)
    server = grpc.server(executor, options=[("grpc.so_reuseport", 0)])
    for prefix in (UPDATES, TELEMETRY):
        service = prefix.strip("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    found = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{found}"
    finally:
        server.stop(0).wait(10)
        executor.shutdown(wait=False)
