"""One device of a swarm: watches, fetches what it lacks, verifies it, and goes on where it was cut off.

It speaks to the server as a real device does, and keeps what it needs of what a real device keeps on its disk: which
contents it holds, and what came of those that are not complete. Contents themselves are kept once for all devices of a
process, after each device has decoded and verified its own copy.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from grpc import aio

from client.grpc_blobs import fetch_requests
from client.grpc_channel import DEVICE_KEY
from client.grpc_errors import pushback_seconds
from client.transport import Want
from protos.quantfleet.v1 import update_pb2 as pb
from protos.quantfleet.v1.update_pb2_grpc import UpdateServiceStub
from quantization.blob import content_digest, decode_blob_content
from quantization.bundle import parts_between, read_bundle
from quantization.delta import apply_delta
from quantization.errors import DigestMismatchError, MalformedError, QuantFleetError
from quantization.manifest import Manifest
from simulation.swarm_counts import Contents, SwarmCounts, SwarmTarget, Told

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 1 << 20),
)
_LEAST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.2, 5.0
_LEAST_FETCH_WAIT_SECONDS, _LONGEST_FETCH_WAIT_SECONDS = 1.0, 16.0
_STALL_SECONDS = 20.0


@dataclass(slots=True)
class _Partial:
    """What came of one payload."""

    head: pb.BlobPayload
    data: bytearray


class _WatchEndedError(QuantFleetError):
    """The server ended a watch in good order."""


class SwarmDevice:
    """One device; `run` is its life.

    Attributes:
        name: It calls itself so.
        manifest_digest: Of what it runs; empty before the first.
    """

    def __init__(
        self,
        name: str,
        address: str,
        target: SwarmTarget,
        *,
        contents: Contents,
        counts: SwarmCounts,
        on_event: Callable[[Told], None],
        rng: random.Random,
    ) -> None:
        """Make a device that holds nothing."""
        self.name, self.manifest_digest = name, ""
        self._address, self._target, self._contents, self._counts = address, target, contents, counts
        self._on_event, self._rng = on_event, rng
        self._version = 0
        self._said: set[tuple[str, int]] = set()
        self._held: set[str] = set()
        self._partial: dict[str, _Partial] = {}
        self._came: Counter[str] = Counter()  # bytes of each blob, until it is complete
        self._wanted: pb.TargetChanged | None = None
        self._changed = asyncio.Event()
        self._wait_seconds = _LEAST_WAIT_SECONDS

    @property
    def is_complete(self) -> bool:
        """Whether it holds everything that what it runs names."""
        if not self.manifest_digest:
            return False
        return self._contents.manifest(self.manifest_digest).blobs.keys() <= self._held

    async def run(self) -> None:
        """Connect, watch and fetch, again and again, until cancelled."""
        while True:
            wait = self._wait_seconds * self._rng.uniform(0.5, 1.0)
            self._wait_seconds = min(2 * self._wait_seconds, _LONGEST_WAIT_SECONDS)
            try:
                async with aio.insecure_channel(self._address, options=_OPTIONS) as channel:
                    await self._connected(UpdateServiceStub(channel))
            except _WatchEndedError:
                wait = self._wanted.retry_after_seconds if self._wanted else wait
            except aio.AioRpcError as error:
                self._counts.errors[error.code().name.lower()] += 1
                wait = max(wait, pushback_seconds(error.trailing_metadata()))
            except (QuantFleetError, TimeoutError) as error:
                self._counts.errors[_kind(error)] += 1
            await asyncio.sleep(wait)

    async def _connected(self, stub: Any) -> None:  # noqa: ANN401 - a stub has no type
        """Watch and fetch over one connection, until one of the two fails."""
        self._changed.clear()
        sides = [asyncio.create_task(self._watch(stub)), asyncio.create_task(self._follow(stub))]
        try:
            done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            for side in done:
                side.result()
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)

    async def _watch(self, stub: Any) -> None:  # noqa: ANN401
        request = pb.WatchRequest(
            device_class=self._target.device_class,
            model_digest=bytes.fromhex(self._target.model_digest),
            version=self._version,
            manifest_digest=bytes.fromhex(self.manifest_digest),
        )
        async for message in stub.Watch(request, metadata=((DEVICE_KEY, self.name),)):
            self._say("told", message)
            self._wanted = message
            self._changed.set()
        raise _WatchEndedError("the server ended the watch")

    async def _follow(self, stub: Any) -> None:  # noqa: ANN401
        """Bring the device to whatever target it was told last."""
        fetch_wait = _LEAST_FETCH_WAIT_SECONDS
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted = self._wanted
            if wanted is None:
                continue
            if wanted.manifest_digest.hex() != self.manifest_digest:
                if not self._target.is_at_once:
                    await asyncio.sleep(wanted.fetch_after_seconds)
                try:
                    await self._fetch(stub, wanted.manifest_digest.hex())
                except aio.AioRpcError as error:
                    # The watch goes on if the connection does; a server that has too many streams is asked later.
                    self._counts.errors[error.code().name.lower()] += 1
                    await asyncio.sleep(
                        max(
                            pushback_seconds(error.trailing_metadata()),
                            fetch_wait * self._rng.uniform(0.5, 1.0),
                        )
                    )
                    fetch_wait = min(2 * fetch_wait, _LONGEST_FETCH_WAIT_SECONDS)
                    self._changed.set()
                    continue
                fetch_wait = _LEAST_FETCH_WAIT_SECONDS
            self._version = wanted.version
            self._wait_seconds = _LEAST_WAIT_SECONDS
            self._say("current", wanted)

    async def _fetch(self, stub: Any, manifest_digest: str) -> None:  # noqa: ANN401
        """Fetch and verify an artifact, and run it: in one bundle where it runs another, else blob by blob."""
        if manifest_digest not in self._held:
            await self._take_blobs(stub, [manifest_digest])
        manifest = self._contents.manifest(manifest_digest)
        missing = sorted(manifest.blobs.keys() - self._held)
        if self.manifest_digest and len(missing) > 1:
            await self._take_bundle(stub, manifest_digest, manifest)
        elif missing:
            await self._take_blobs(stub, missing)
        self.manifest_digest = manifest_digest
        self._held = {manifest_digest, *manifest.blobs}
        self._partial.clear()

    async def _take_blobs(self, stub: Any, digests: list[str]) -> None:  # noqa: ANN401
        """Ask for blobs, all at once, and take the answers one after another."""
        async with aclosing(self._pieces(stub, [self._want(digest) for digest in digests])) as pieces:
            for digest in digests:
                partial = await self._payload(pieces, digest)
                data, head = self._whole(digest, partial), partial.head
                if head.encoding == pb.BLOB_ENCODING_FULL:
                    content = decode_blob_content(data, digest)
                elif head.base_digest.hex() in self._held:
                    content = apply_delta(data, self._contents.read(head.base_digest.hex()), digest)
                else:
                    raise MalformedError(
                        f"a difference to {head.base_digest.hex()[:12]} came, which is not held"
                    )
                self._hold(digest, content)

    async def _take_bundle(self, stub: Any, digest: str, manifest: Manifest) -> None:  # noqa: ANN401
        """Ask for everything that a manifest names and the device lacks, as one bundle, and take it."""
        wanted = replace(self._want(digest), base_manifest=self.manifest_digest)
        async with aclosing(self._pieces(stub, [wanted])) as pieces:
            partial = await self._payload(pieces, digest)
        if partial.head.encoding != pb.BLOB_ENCODING_BUNDLE:
            del self._partial[digest]
            raise MalformedError("something else came than the bundle that was asked for")
        data = self._whole(digest, partial)
        parts = parts_between(self._contents.manifest(self.manifest_digest), manifest)
        for part, content in read_bundle(data, parts, self._contents.read):
            self._hold(part, content)

    def _want(self, digest: str) -> Want:
        """Return what to ask for to get the rest of a payload."""
        partial = self._partial.get(digest)
        if partial is None:
            return Want(digest)
        return Want(digest, len(partial.data), partial.head.payload_digest.hex())

    async def _pieces(self, stub: Any, wants: list[Want]) -> AsyncGenerator[pb.BlobChunk]:  # noqa: ANN401
        """Ask for payloads, and yield what comes.

        What is wanted goes with a stream's opening, its only message: where a server refuses a stream while its client
        still writes, asyncio's client says "internal" in place of what the server said.
        """
        running = self.manifest_digest
        complete = {running: self._contents.manifest(running).blobs} if running else {}
        for request in fetch_requests(
            self._target.device_class, self._target.model_digest, wants, self._held, complete
        ):
            call = stub.FetchBlobs(iter((request,)), metadata=((DEVICE_KEY, self.name),))
            try:
                while True:
                    async with asyncio.timeout(_STALL_SECONDS):
                        piece = await call.read()
                    if piece is aio.EOF:
                        break
                    yield piece
            finally:
                call.cancel()
        raise MalformedError("the stream of blobs ended too early")

    async def _payload(self, pieces: AsyncGenerator[pb.BlobChunk], digest: str) -> _Partial:
        """Return a complete payload; what came of it is kept when it fails."""
        piece = await anext(pieces)
        if piece.payload.digest.hex() != digest:
            raise MalformedError(f"an answer came for something else than blob {digest[:12]}")
        partial = self._partial.get(digest)
        if partial is None or not piece.offset_bytes:
            partial = self._partial[digest] = _Partial(piece.payload, bytearray())
        while True:
            if piece.offset_bytes != len(partial.data):
                del self._partial[digest]
                raise MalformedError(f"data for blob {digest[:12]} that does not fit")
            partial.data += piece.data
            self._came[digest] += len(piece.data)
            self._counts.received_bytes += len(piece.data)
            if len(partial.data) >= partial.head.total_bytes:
                return partial
            piece = await anext(pieces)

    def _whole(self, digest: str, partial: _Partial) -> bytes:
        """Return a payload that is complete, once it is found to be undamaged; what came twice is counted."""
        del self._partial[digest]
        data = bytes(partial.data)
        if content_digest(data) != partial.head.payload_digest.hex():
            raise DigestMismatchError(f"what came of {digest[:12]} is damaged")
        again = self._came.pop(digest) - len(data)
        self._counts.refetched_bytes += max(again, 0)
        self._counts.refetched_payloads += again > 0
        return data

    def _hold(self, digest: str, content: bytes) -> None:
        """Hold a content that was verified."""
        self._contents.keep(digest, content)
        self._held.add(digest)
        self._counts.verified_blobs += 1

    def _say(self, kind: str, message: pb.TargetChanged) -> None:
        """Say once of each version that the device was told of it, and that it runs it."""
        if (kind, message.version) in self._said:
            return
        self._said.add((kind, message.version))
        self._on_event(Told(kind, message.version, message.manifest_digest.hex(), time.monotonic()))


def _kind(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "stalled"
    return "damaged" if isinstance(error, DigestMismatchError) else "malformed"
