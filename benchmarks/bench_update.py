"""What does an update cost beside the bare bytes, and how soon does a fleet know of it?

FetchBlobs as a device fetches (`client.fetching`: received, SHA-256 compared), against a gRPC stream of nothing but
bytes in chunks of the same size, from the same server process to the same process, in an order that is drawn anew for
each repetition. The bare stream is read through both of gRPC's interfaces as they are; the ratio to the faster of the
two has the bar. Beside that the limits: the bare stream over a device's own connection, which is read in one thread,
and the same with SHA-256 of each chunk and nothing else. Once nothing is kept, for what verification costs, and once
all is kept in a folder in memory, as a device keeps it. Then devices that watch, each on a connection of its own: the
time from a publication until the last of them knows, and the server's peak memory.

    python benchmarks/bench_update.py [--megabytes 48] [--watchers 1000] [--json] [--smoke]
"""

import argparse
import asyncio
import hashlib
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc import aio
from prometheus_client import CollectorRegistry

from client.blobs import BlobFolder
from client.fetching import fetch_blobs
from client.grpc_channel import GrpcSettings, open_channel
from client.grpc_transport import GrpcTransport
from client.partial import PartialBlobs
from client.state import StateFolder
from client.transport import Payload
from protos.quantfleet.v1 import update_pb2 as pb
from protos.quantfleet.v1.update_pb2_grpc import UpdateServiceStub
from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.manifest import BlobRef, Manifest, Stage, TensorSpec
from server.blob_store import BlobStore
from server.delta_store import DeltaStore
from server.grpc_server import Service, serving
from server.identity import Identity
from server.payloads import CHUNK_BYTES
from server.peers import DEVICE_KEY
from server.targets import Assignment, PublishedTargets
from server.update_metrics import UpdateMetrics
from server.update_service import UpdateService
from server.update_settings import UpdateSettings

BAR_RATIO, BAR_SECONDS, BAR_MIB = 0.7, 3.0, 400.0
MODEL, CLASS = "ab" * 32, "bench"
BLOB_BYTES = 2 << 20  # a large layer
BARE = "/bench.Bare/Stream"


@dataclass
class Publications:
    """What the class runs; a line on stdin publishes the next."""

    manifests: tuple[str, ...]
    published: int = 1

    def find(self, _model: str, _device_class: str) -> PublishedTargets:
        """Return what the class runs now."""
        versions = range(self.published, 0, -1)
        return PublishedTargets(tuple(Assignment(v, self.manifests[(v - 1) % 2]) for v in versions))


def store_manifests(blobs: BlobStore, blob_count: int) -> tuple[str, ...]:
    """Store two manifests of incompressible blobs; return their digests."""
    rng, refs = np.random.default_rng(0), []
    for number in range(blob_count):
        content = rng.bytes(BLOB_BYTES)
        digest, stored = content_digest(content), encode_blob(content, level=1)
        blobs.put(digest, stored)
        refs.append(BlobRef(f"w{number:04}", digest, "bytes", (BLOB_BYTES,), 8, len(stored)))
    skeleton = replace(refs[0], location="")
    stage = Stage("main", TensorSpec("x", (1,)), ("y",), skeleton, tuple(refs))
    digests = []
    for generation in range(2):
        data = Manifest(MODEL, CLASS, generation, (stage,)).to_bytes()
        blobs.put(content_digest(data), encode_blob(data))
        digests.append(content_digest(data))
    return tuple(digests)


class BareStream(grpc.GenericRpcHandler):
    """Sends all blobs, one after another, in chunks of bytes and nothing else."""

    def __init__(self, blobs: BlobStore) -> None:
        data = b"".join(blobs.get(digest) for digest in blobs.digests())
        self._chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return the one method's handler."""
        return grpc.unary_stream_rpc_method_handler(self._send) if details.method == BARE else None

    async def _send(self, _request: bytes, _context: object) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


async def serve(folder: Path, blob_count: int) -> None:
    """Serve until stdin ends; each line publishes another version and prints peak memory in MiB."""
    blobs = BlobStore(folder / "blobs")
    publications = Publications(store_manifests(blobs, blob_count))
    settings = UpdateSettings(calls_burst=1000, max_streams_per_device=1000)
    metrics = UpdateMetrics(CollectorRegistry())
    service = UpdateService(
        publications.find,
        blobs,
        DeltaStore(blobs, folder / "deltas"),
        metrics,
        identify=Identity.insecure().device,
        settings=settings,
    )

    def register(server: aio.Server) -> None:
        service.register(server)
        server.add_generic_rpc_handlers((BareStream(blobs),))

    update = Service(service.NAME, register)
    async with service, serving([update], "127.0.0.1:0", None, grace_seconds=0) as port:
        print(json.dumps({"port": port, "manifests": publications.manifests}), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            publications.published += 1
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


class ForgottenParts(PartialBlobs):
    """Parts that are not kept: these blobs are verified while they come."""

    def begin(self, payload: Payload, offset_bytes: int) -> None:
        """Take up an answer."""

    def append(self, digest: str, data: bytes | memoryview) -> None:
        """Forget the next bytes."""

    def view(self, digest: str) -> memoryview:
        """Return nothing: there is no second chance to verify a blob."""
        sys.exit(f"blob {digest} was not verified")


class ForgottenBlobs(BlobFolder):
    """Blobs that are not kept."""

    def adopt_verified(self, digest: str, path: Path) -> None:
        """Do nothing with a blob."""


def fetch_rate(port: int, sizes: dict[str, int], *, is_kept: bool) -> float:
    """Return the bytes per second at which a device without any blobs fetches and verifies them."""
    shared = Path("/dev/shm")  # noqa: S108 - the disk is not what is measured
    with (
        tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name,
        StateFolder(name) as state,
        GrpcTransport.open(
            f"127.0.0.1:{port}", None, "bench", None, device_class=CLASS, model_digest=MODEL
        ) as transport,
    ):
        partial = PartialBlobs(Path(name) / "partial", state.disk)
        if not is_kept:
            partial = ForgottenParts(Path(name) / "partial", state.disk)
            state.blobs = ForgottenBlobs(state.blobs.path, state.disk)
        began = time.perf_counter()
        fetch_blobs(transport, state, partial, sizes)
        return sum(sizes.values()) / (time.perf_counter() - began)


def read_all(chunks: Iterable[bytes], size_bytes: int, look: Callable[[bytes], object] = len) -> None:
    """Receive a bare stream, and do something with each chunk, or next to nothing."""
    received = 0
    for chunk in chunks:
        look(chunk)
        received += len(chunk)
    if received < size_bytes:
        sys.exit(f"{received} bytes came")


def read_bare(port: int, size_bytes: int) -> None:
    """Receive the same bytes through gRPC's interface of threads."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        read_all(channel.unary_stream(BARE)(b""), size_bytes)


async def read_bare_async(port: int, size_bytes: int) -> None:
    """Receive them through gRPC's other interface."""
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream(BARE)(b"")
        received = 0
        while (chunk := await call.read()) is not aio.EOF:
            received += len(chunk)
    if received < size_bytes:
        sys.exit(f"{received} bytes came")


def read_as_device(port: int, size_bytes: int, look: Callable[[bytes], object] = len) -> None:
    """Receive them on a connection as devices have it."""
    with open_channel(f"127.0.0.1:{port}", None, GrpcSettings()) as channel:
        read_all(channel.unary_stream(BARE)(b""), size_bytes, look)


def rate(work: Callable[[], None], size_bytes: int) -> float:
    """Return the bytes per second of one run of the work."""
    began = time.perf_counter()
    work()
    return size_bytes / (time.perf_counter() - began)


def measure_rates(port: int, manifest: str, blob_count: int, repeats: int) -> dict[str, float]:
    """Return the rates in MB/s, medians, and the medians of ratios in one repetition."""
    size = blob_count * BLOB_BYTES
    sizes = dict.fromkeys(asyncio.run(digests_of(port, manifest)), BLOB_BYTES)
    works: dict[str, Callable[[], float]] = {
        "verified": lambda: fetch_rate(port, sizes, is_kept=False),
        "kept": lambda: fetch_rate(port, sizes, is_kept=True),
        "bare_threads": lambda: rate(lambda: read_bare(port, size), size),
        "bare_asyncio": lambda: rate(lambda: asyncio.run(read_bare_async(port, size)), size),
        "bare_as_device": lambda: rate(lambda: read_as_device(port, size), size),
        "only_sha256": lambda: rate(lambda: read_as_device(port, size, hashlib.sha256().update), size),
    }
    rng = random.Random(0)  # noqa: S311 - an order
    rows = [{name: works[name]() for name in rng.sample(list(works), len(works))} for _ in range(repeats + 1)]
    rows = rows[1:]  # the first run fills caches
    result = {
        f"{name}_mb_per_second": round(statistics.median(row[name] for row in rows) / 1e6) for name in works
    }

    def ratio(name: str, other: str) -> float:
        return round(statistics.median(row[name] / row[other] for row in rows), 3)

    to_each = {
        f"ratio_to_{bare}": ratio("verified", bare) for bare in works if bare not in ("verified", "kept")
    }
    faster = min(("bare_threads", "bare_asyncio"), key=lambda bare: to_each[f"ratio_to_{bare}"])
    return (
        result
        | to_each
        | {
            "ratio": to_each[f"ratio_to_{faster}"],
            "kept_ratio": ratio("kept", faster),
            "limit_ratio": ratio("only_sha256", faster),
        }
    )


async def digests_of(port: int, manifest: str) -> list[str]:
    """Return the blobs that a manifest names."""
    opening = pb.FetchOpening(device_class=CLASS, model_digest=bytes.fromhex(MODEL))
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = UpdateServiceStub(channel).FetchBlobs(metadata=((DEVICE_KEY, "device"),))
        await call.write(pb.FetchBlobsRequest(opening=opening))
        await call.write(pb.FetchBlobsRequest(wanted=pb.BlobWanted(digest=bytes.fromhex(manifest))))
        content = decode_blob_content((await call.read()).data, manifest)
        call.cancel()
    return list(Manifest.from_bytes(content).blobs)


async def watch(port: int, number: int, told: asyncio.Queue[int]) -> None:
    """Watch on a connection of one's own, and pass on every version."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        request = pb.WatchRequest(device_class=CLASS, model_digest=bytes.fromhex(MODEL))
        call = UpdateServiceStub(channel).Watch(request, metadata=((DEVICE_KEY, f"device-{number}"),))
        async for message in call:
            told.put_nowait(message.version)


async def measure_watchers(port: int, server: subprocess.Popen[str], count: int) -> dict[str, float]:
    """Return seconds until all watchers know of a version, and the server's peak memory in MiB."""
    told: asyncio.Queue[int] = asyncio.Queue()
    tasks = [asyncio.create_task(watch(port, number, told)) for number in range(count)]
    for _ in tasks:
        await told.get()
    began = time.perf_counter()
    publish(server)
    knowing = 0
    while knowing < count:
        knowing += await told.get() == 2
    seconds = time.perf_counter() - began
    peak_mib = publish(server)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"watchers": count, "told_seconds": round(seconds, 2), "server_peak_mib": round(peak_mib)}


def publish(server: subprocess.Popen[str]) -> float:
    """Have the server publish a version; return its peak memory in MiB."""
    if server.stdin is None or server.stdout is None:
        sys.exit("the server has no pipes")
    server.stdin.write("publish\n")
    server.stdin.flush()
    return float(server.stdout.readline())


def measure(blob_count: int, repeats: int, watchers: int) -> dict[str, float]:
    """Start a server for each question, and ask it."""
    result: dict[str, float] = {}
    for question in ("rates", "watchers"):
        with tempfile.TemporaryDirectory() as folder:
            blobs = blob_count if question == "rates" else 1
            command = [sys.executable, __file__, "--serve", folder, "--blobs", str(blobs)]
            pipe = subprocess.PIPE
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
                try:
                    ready = json.loads(server.stdout.readline()) if server.stdout else {}
                    port = ready["port"]
                    if question == "rates":
                        result |= measure_rates(port, ready["manifests"][0], blobs, repeats)
                    else:
                        result |= asyncio.run(measure_watchers(port, server, watchers))
                finally:
                    server.kill()
    return result


def main() -> None:
    """Measure, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=48, help="fetched in each repetition")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="few bytes and watchers: checks that it runs")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blobs", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, arguments.blobs))
        return
    if arguments.smoke:
        result = measure(1, 3, 50)
    else:
        blobs = max(1, arguments.megabytes * 1_000_000 // BLOB_BYTES)
        result = measure(blobs, arguments.repeats, arguments.watchers)
    print(json.dumps(result) if arguments.json else "\n".join(f"{k:24} {v}" for k, v in result.items()))
    is_met = (
        result["ratio"] >= BAR_RATIO
        and result["told_seconds"] <= BAR_SECONDS
        and result["server_peak_mib"] <= BAR_MIB
    )
    sys.exit(0 if is_met or arguments.smoke else 1)


if __name__ == "__main__":
    main()
