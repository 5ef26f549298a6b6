"""A real update service with contents to serve, and a plain client that decodes what it sends."""

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpc import aio
from prometheus_client import CollectorRegistry

from protos.quantfleet.v1 import update_pb2 as pb
from protos.quantfleet.v1.update_pb2_grpc import UpdateServiceStub
from quantization.artifact import Artifact
from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.delta import Encoding, apply_delta
from quantization.errors import NotFoundError
from server.blob_store import BlobStore
from server.delta_store import DeltaStore
from server.grpc_server import Service, serving
from server.identity import Identity
from server.peers import DEVICE_KEY
from server.targets import Assignment, PublishedTargets
from server.update_metrics import UpdateMetrics
from server.update_service import UpdateService
from server.update_settings import UpdateSettings

CLASS = "x86-vnni"
QUICK = UpdateSettings(
    poll_seconds=0.05, heartbeat_seconds=30.0, calls_burst=1000, max_streams_per_device=1000
)
ALL_ENCODINGS = tuple(int(encoding) for encoding in Encoding)


@dataclass
class Shelf:
    """Artifacts of one model that are published one after another, in memory."""

    blobs: BlobStore
    model_digest: str = ""
    targets: tuple[Assignment, ...] = ()
    loads: int = 0
    broken: Exception | None = None

    def publish(self, artifact: Artifact) -> Assignment:
        """Store an artifact and make it the target."""
        for digest, stored in artifact.blobs.items():
            self.blobs.put(digest, stored)
        manifest = artifact.manifest.to_bytes()
        self.blobs.put(content_digest(manifest), encode_blob(manifest))
        self.model_digest = artifact.manifest.model_digest
        target = Assignment(len(self.targets) + 1, content_digest(manifest))
        self.targets = (target, *self.targets)
        return target

    def find(self, model_digest: str, device_class: str) -> PublishedTargets:
        """Return what the class should run."""
        self.loads += 1
        if self.broken:
            raise self.broken
        if (model_digest, device_class) != (self.model_digest, CLASS):
            raise NotFoundError(f"no target of {model_digest[:12]} for '{device_class}'")
        return PublishedTargets(self.targets)


@dataclass
class Running:
    """A service that serves, and how to reach it."""

    port: int
    service: UpdateService
    shelf: Shelf
    metrics: CollectorRegistry
    channels: list[aio.Channel] = field(default_factory=list)

    def stub(self, device: str = "device-1") -> Any:
        """Return a stub on a connection of its own."""
        channel = aio.insecure_channel(
            f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.channels.append(channel)
        return Named(UpdateServiceStub(channel), device)

    def request(self, **fields: Any) -> dict[str, Any]:
        """Return the fields with which a device of the class calls."""
        return {"device_class": CLASS, "model_digest": bytes.fromhex(self.shelf.model_digest), **fields}


class Named:
    """A stub whose calls say which device it is."""

    def __init__(self, stub: Any, device: str) -> None:
        self._stub = stub
        self._metadata = ((DEVICE_KEY, device),)

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._stub, method)
        return lambda *arguments, **keywords: call(*arguments, metadata=self._metadata, **keywords)


@asynccontextmanager
async def running(
    folder: Path, settings: UpdateSettings = QUICK, shelf: Shelf | None = None, **keywords: Any
) -> AsyncIterator[Running]:
    """Serve what is on a shelf while the block runs."""
    shelf = shelf or Shelf(BlobStore(folder / "blobs"))
    metrics = CollectorRegistry()
    deltas = DeltaStore(shelf.blobs, folder / "deltas")
    service = UpdateService(
        shelf.find,
        shelf.blobs,
        deltas,
        UpdateMetrics(metrics),
        identify=Identity.insecure().device,
        settings=settings,
        rng=random.Random(0),  # noqa: S311 - it guards nothing
        **keywords,
    )
    update = Service(service.NAME, service.register)
    async with (
        service,
        serving([update], "127.0.0.1:0", None, grace_seconds=0.2, before_stop=service.drain) as port,
    ):
        run = Running(port, service, shelf, metrics)
        try:
            yield run
        finally:
            for channel in run.channels:
                await channel.close()


def opening(
    run: Running, held: Iterable[str] = (), encodings: Iterable[int] = ALL_ENCODINGS
) -> pb.FetchBlobsRequest:
    """Return the first message of a stream of blobs."""
    digests = [bytes.fromhex(digest) for digest in held]
    return pb.FetchBlobsRequest(
        opening=pb.FetchOpening(**run.request(held_digests=digests, accepted_encodings=encodings))
    )


def want(digest: str, offset_bytes: int = 0, payload_digest: bytes = b"") -> pb.FetchBlobsRequest:
    """Return a message that asks for a blob."""
    wanted = pb.BlobWanted(
        digest=bytes.fromhex(digest), offset_bytes=offset_bytes, payload_digest=payload_digest
    )
    return pb.FetchBlobsRequest(wanted=wanted)


@dataclass
class Answer:
    """What came for one want."""

    head: pb.BlobPayload
    start: int
    data: bytes
    chunks: int

    def content(self, digest: str, contents: dict[str, bytes]) -> bytes:
        """Return the decoded content, verified; `contents` holds the bases."""
        assert self.head.total_bytes == self.start + len(self.data)
        if self.head.encoding == Encoding.FULL:
            return decode_blob_content(self.data, digest)
        return apply_delta(self.data, contents[self.head.base_digest.hex()], digest)


async def next_answer(call: Any) -> Answer:
    """Read the chunks of one answer."""
    chunk = await call.read()
    answer = Answer(chunk.payload, chunk.offset_bytes, chunk.data, 1)
    while answer.start + len(answer.data) < answer.head.total_bytes:
        chunk = await call.read()
        assert not chunk.HasField("payload")
        assert chunk.offset_bytes == answer.start + len(answer.data)
        answer.data += chunk.data
        answer.chunks += 1
    return answer


async def fetch(stub: Any, first: pb.FetchBlobsRequest, digests: Iterable[str]) -> list[Answer]:
    """Return the answers to a stream that wants some blobs."""
    call = stub.FetchBlobs()
    await call.write(first)
    answers = []
    for digest in digests:
        await call.write(want(digest))
        answers.append(await next_answer(call))
    await call.done_writing()
    assert await call.read() is aio.EOF
    return answers
