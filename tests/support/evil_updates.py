"""A device that trusts a signed repository, and an update service that may lie in any of its answers."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from artifacts import example
from grpc_updates import scripted, wanted_of
from trust import DAY, NOW, Repository
from update_client import CLASS

from client.disk import Disk
from client.garbage import Limits
from client.grpc_channel import CHUNK_BYTES, GrpcSettings
from client.grpc_transport import GrpcTransport
from client.self_testing import load
from client.slots import Target
from client.state import StateFolder
from client.trial import TrialRules
from client.trusted_metadata import MetadataFolder, TrustedMetadata
from client.updater import Updater, UpdateSettings
from protos.quantfleet.v1 import update_pb2 as pb
from quantization.artifact import Artifact
from quantization.blob import encode_blob
from quantization.errors import NotFoundError
from quantization.target_name import TargetName

OLD, NEW, NEWER = (example("mlp").artifact(n, width=3.0 + n, is_observed=False) for n in range(3))
MODEL = OLD.manifest.model_digest
SETTINGS = UpdateSettings(
    CLASS, limits=Limits(free_bytes=0), trial=TrialRules(least_seconds=0.0, least_runs=0)
)


def named(version: int) -> TargetName:
    return TargetName(MODEL, CLASS, version)


def sign(repository: Repository, version: int, artifact: Artifact, now: float = NOW) -> None:
    """Sign an artifact's manifest as a version."""
    repository.metadata.publish(
        {named(version): artifact.manifest.to_bytes()},
        offline=repository.offline,
        online=repository.online,
        now_seconds=now,
    )


def answer(digest: str, data: bytes, start: int = 0, **lies: Any) -> Iterator[bytes]:
    """Yield the chunks that send a payload from an offset; `lies` replace what its head says."""
    head = {
        "digest": bytes.fromhex(digest),
        "encoding": pb.BLOB_ENCODING_FULL,
        "total_bytes": len(data),
        "payload_digest": hashlib.sha256(data).digest(),
        **lies,
    }
    for offset in range(start, max(len(data), start + 1), CHUNK_BYTES):
        payload = pb.BlobPayload(**head) if offset == start else None
        yield pb.BlobChunk(
            payload=payload, offset_bytes=offset, data=data[offset : offset + CHUNK_BYTES]
        ).SerializeToString()


@dataclass
class Evil:
    """What the service says; tests replace what it is to lie about.

    Attributes:
        repository: Where signed metadata comes from.
        offer: What `Check` answers.
        metadata: From role and version to a file.
        blobs: Stored blobs by digest.
        answer: From a want to the chunks of its answer.
        asked: Metadata that was asked for.
        wants: Wants that were asked for.
    """

    repository: Repository
    offer: Target
    metadata: Callable[[str, int], bytes]
    blobs: dict[str, bytes] = field(default_factory=dict)
    answer: Callable[[pb.BlobWanted], Iterable[bytes]] | None = None
    chunks: Callable[[bytes], Iterable[bytes]] | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)
    wants: list[pb.BlobWanted] = field(default_factory=list)

    def publish(self, artifact: Artifact, version: int) -> None:
        """Offer an artifact, without signing it."""
        self.offer = Target(version, artifact.manifest.digest())
        self.blobs |= {
            **artifact.blobs,
            artifact.manifest.digest(): encode_blob(artifact.manifest.to_bytes()),
        }

    def check(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        return pb.CheckResponse(
            version=self.offer.version, manifest_digest=bytes.fromhex(self.offer.manifest_digest)
        ).SerializeToString()

    def fetch_metadata(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        asked = pb.FetchMetadataRequest.FromString(request)
        self.asked.append((asked.role, asked.version))
        try:
            data = self.metadata(asked.role, asked.version)
        except NotFoundError:
            context.abort(grpc.StatusCode.NOT_FOUND, "none")
        if self.chunks is not None:
            yield from self.chunks(data)
            return
        for start in range(0, len(data), CHUNK_BYTES):
            yield pb.MetadataChunk(
                total_bytes=0 if start else len(data), data=data[start : start + CHUNK_BYTES]
            ).SerializeToString()

    def fetch_blobs(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for wanted in wanted_of(requests):
            if wanted.base_manifest_digest:
                context.abort(grpc.StatusCode.NOT_FOUND, "no bundles")
            self.wants.append(wanted)
            digest = wanted.digest.hex()
            if self.answer is not None:
                yield from self.answer(wanted)
            else:
                yield from answer(digest, self.blobs[digest], wanted.offset_bytes)


@dataclass
class Bench:
    """A device that runs the old artifact as version 1, and the service that it asks.

    Attributes:
        now: Seconds since 1970 by the device's clock.
    """

    evil: Evil
    state: StateFolder
    transport: GrpcTransport
    updater: Updater
    clock: list[float]

    def pass_days(self, days: float) -> None:
        self.clock[0] += days * DAY

    @property
    def is_unharmed(self) -> bool:
        """Whether the old artifact serves, and nothing else was kept."""
        serving = self.state.slots().serving
        runtime = self.updater.runtime
        return (
            serving == Target(1, OLD.manifest.digest())
            and runtime is not None
            and runtime.manifest == OLD.manifest
            and self.state.slots().candidate is None
        )


@contextmanager
def bench(path: Path, *, keys: int = 1, **options: Any) -> Iterator[Bench]:
    """Run a device that has version 1, from a service that has said the truth so far and offers version 2."""
    repository = Repository.create(path / "repository", keys=keys)
    sign(repository, 1, OLD)
    evil = Evil(repository, Target(1, OLD.manifest.digest()), repository.metadata.read)
    evil.publish(OLD, 1)
    clock = [NOW]
    with ExitStack() as stack:
        address = stack.enter_context(
            scripted(Check=evil.check, FetchMetadata=evil.fetch_metadata, FetchBlobs=evil.fetch_blobs)
        )
        state = stack.enter_context(StateFolder(path / "device"))
        trust = TrustedMetadata(
            MetadataFolder(path / "device/trust", Disk()), first_root=repository.metadata.read("root", 1)
        )
        transport = stack.enter_context(
            GrpcTransport.open(
                address,
                None,
                "device-1",
                trust,
                settings=options.pop("settings", GrpcSettings(call_seconds=20, stall_seconds=20)),
                wall_clock=lambda: clock[0],
                clock=lambda: clock[0],
                **options,
            )
        )
        updater = Updater(state, transport, replace_model(SETTINGS), test=load, clock=time.monotonic)
        updater.update()
        updater.watch()
        made = Bench(evil, state, transport, updater, clock)
        assert made.is_unharmed
        sign(repository, 2, NEW)
        evil.publish(NEW, 2)
        yield made
        updater.close()


def replace_model(settings: UpdateSettings) -> UpdateSettings:
    """Return the settings of a device that asks for the model."""
    return UpdateSettings(
        settings.device_class, model_digest=MODEL, limits=settings.limits, trial=settings.trial
    )
