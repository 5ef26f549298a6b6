"""The update service: tells devices of their targets, and sends them what they lack.

The rules:

1. A device is sent only what a manifest of its model and class names: knowing a digest is not enough.
2. No device waits for another: a stream holds one chunk of 64 KiB, which leaves when the device reads.
3. Whatever is asked is bounded: calls and streams per device, streams in all, digests, idle time.
4. Times that the server tells a device are drawn anew for each, so that a fleet does not come back at once.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from grpc import aio

from protos.quantfleet.v1 import update_pb2 as pb
from quantization.blob import check_digest
from quantization.blob_ref import check_name
from quantization.errors import MalformedError, NotFoundError
from server.blob_sender import BlobSender, Opening, all_wanted, start_of
from server.blob_store import BlobStore
from server.delta_store import DeltaStore
from server.payloads import CHUNK_BYTES, PayloadSource
from server.peers import Context, Identify, OnRefusal, PeerLimits, refusals
from server.served_contents import Catalog, ServedContents
from server.stall_guard import StallGuard
from server.targets import Assignment, TargetSource
from server.update_metrics import UpdateMetrics
from server.update_settings import UpdateSettings
from server.watch_hub import ClassKey, WatchHub

MetadataSource = Callable[[str, int], bytes]
"""From role and version (0 for the latest) to the bytes of a file of signed metadata; may block.

Raises NotFoundError where there is none.
"""

_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,256}")


def no_metadata(role: str, version: int) -> bytes:
    """Say that this server signs nothing.

    Raises:
        NotFoundError: Always.
    """
    raise NotFoundError(
        f"this server has no signed metadata, so none for role '{role}' and version {version}"
    )


class UpdateService:
    """Answers devices; use it as an async context manager around the server's life.

    Calls that stream are coroutines that write, not generators, so that a write can time out; and blobs are written as
    serialised messages. So the service registers itself (`register`), not through the generated function.
    """

    NAME = "quantfleet.v1.UpdateService"

    def __init__(
        self,
        targets: TargetSource,
        blobs: BlobStore,
        deltas: DeltaStore,
        metrics: UpdateMetrics,
        *,
        identify: Identify,
        metadata: MetadataSource = no_metadata,
        settings: UpdateSettings | None = None,
        on_refusal: OnRefusal = lambda _error: None,
        rng: random.Random | None = None,
    ) -> None:
        """Serve targets and blobs.

        Args:
            targets: What each class should run.
            blobs: Holds manifests and what they name.
            deltas: Differences between blobs.
            metrics: Counts what is sent.
            identify: Names the device that calls: `server.identity.Identity.device`.
            metadata: Files of signed metadata.
            settings: Limits and times; the defaults if None.
            on_refusal: Told why a call is refused.
            rng: Draws the times that devices are told; seeded by the system if None.
        """
        self._settings = settings or UpdateSettings()
        self._rng = rng or random.Random()  # noqa: S311 - it spreads load, it guards nothing
        self._executor = ThreadPoolExecutor(self._settings.workers, "quantfleet-update")
        self._hub = WatchHub(targets, self._settings, self._executor, rng=self._rng, clock=time.monotonic)
        self._limits = PeerLimits(self._settings, self._rng)
        self._catalog = Catalog(blobs)
        self._payloads = PayloadSource(blobs, deltas, self._settings.cache_bytes)
        self._metadata = metadata
        self._identify = identify
        self._on_refusal = on_refusal
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        metrics.watchers.set_function(lambda: self._hub.watchers)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._hub.run(), name="watch-hub")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drain()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def register(self, server: aio.Server) -> None:
        """Add the service to a server."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self.check, pb.CheckRequest.FromString, pb.CheckResponse.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.watch, pb.WatchRequest.FromString, pb.TargetChanged.SerializeToString
            ),
            "FetchMetadata": grpc.unary_stream_rpc_method_handler(
                self.fetch_metadata, pb.FetchMetadataRequest.FromString, pb.MetadataChunk.SerializeToString
            ),
            "FetchBlobs": grpc.stream_stream_rpc_method_handler(
                self.fetch_blobs, pb.FetchBlobsRequest.FromString, None
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self.NAME, handlers),))

    @property
    def watchers(self) -> int:
        """Devices that watch this server process now."""
        return self._hub.watchers

    def drain(self) -> None:
        """End all watches, so that devices go to another server process; a stream of blobs goes on."""
        self._hub.close()

    def poll(self) -> None:
        """Look for changed targets at once, because something was published."""
        self._hub.poll()

    async def check(self, request: pb.CheckRequest, context: Context) -> pb.CheckResponse:
        """Return the device's target."""
        async with refusals(context, self._on_refusal):
            device, key = self._admit(request, context)
            target = (await self._hub.targets(key, self._settings.poll_seconds)).target_for(device)
            return pb.CheckResponse(
                version=target.version,
                manifest_digest=bytes.fromhex(target.manifest_digest),
                fetch_after_seconds=self._fetch_after(key, request, target),
                retry_after_seconds=self._settings.check_seconds * self._rng.uniform(0.5, 1.5),
            )

    async def watch(self, request: pb.WatchRequest, context: Context) -> None:
        """Tell the device of its target until the watch ends."""
        async with refusals(context, self._on_refusal):
            device, key = self._admit(request, context)
            targets = await self._hub.targets(key, self._settings.poll_seconds)
            with (
                self._limits.stream(device, "watch", self._settings.max_watchers),
                self._hub.watcher(key, device, targets) as watcher,
            ):
                while (target := await watcher.next()) is not None:
                    self._identify(context)  # whoever was revoked meanwhile is told no more
                    async with asyncio.timeout(self._settings.stall_seconds):
                        await context.write(self._target_changed(key, request, target))

    async def fetch_metadata(self, request: pb.FetchMetadataRequest, context: Context) -> None:
        """Send a file of signed metadata."""
        async with refusals(context, self._on_refusal):
            self._limits.count_call(self._identify(context))
            if not _ROLE.fullmatch(request.role):
                raise MalformedError(f"{request.role!r:.80} is not the name of a role")
            loop = asyncio.get_running_loop()
            data = await loop.run_in_executor(self._executor, self._metadata, request.role, request.version)
            for start in range(0, max(1, len(data)), CHUNK_BYTES):
                chunk = pb.MetadataChunk(
                    total_bytes=0 if start else len(data), data=data[start : start + CHUNK_BYTES]
                )
                async with asyncio.timeout(self._settings.stall_seconds):
                    await context.write(chunk)

    async def fetch_blobs(self, requests: AsyncIterator[pb.FetchBlobsRequest], context: Context) -> None:
        """Send the blobs that the device asks for."""
        async with refusals(context, self._on_refusal):
            device = self._identify(context)
            self._limits.count_call(device)
            with self._limits.stream(device, "fetch", self._settings.max_fetches):
                await self._send_blobs(requests, context)

    async def _send_blobs(self, requests: AsyncIterator[pb.FetchBlobsRequest], context: Context) -> None:
        """Answer every step of the device.

        Raises:
            TimeoutError: The device neither read nor asked for too long.
        """
        async with StallGuard(self._settings.stall_seconds) as guard:
            request = await anext(requests, None)
            if request is None:
                raise MalformedError("a stream of blobs starts with its opening")
            opening = Opening.from_proto(request)
            sender = await self._sender(opening)
            guard.progress()
            async for wanted in all_wanted(opening, requests):
                guard.progress()
                self._identify(context)  # whoever was revoked meanwhile is sent no more
                digest, base = check_digest(wanted.digest.hex()), wanted.base_manifest_digest.hex()
                payload = await (
                    sender.bundle(digest, check_digest(base)) if base else sender.payload(digest)
                )
                messages = payload.messages(start_of(wanted, payload))
                await self._send(
                    messages, context, guard, (opening.device_class, payload.encoding.name.lower())
                )

    async def _send(
        self, messages: Iterator[bytes], context: Context, guard: StallGuard, labels: tuple[str, str]
    ) -> None:
        """Send an answer as fast as the device reads, and count it, or the part that was sent."""
        size_bytes = 0
        try:
            for message in messages:
                await context.write(message)
                guard.progress()
                size_bytes += len(message)
            self._metrics.sent_blobs.labels(*labels).inc()
        finally:
            self._metrics.sent_bytes.labels(*labels).inc(size_bytes)

    async def _sender(self, opening: Opening) -> BlobSender:
        key = (opening.model_digest, check_name(opening.device_class, "device class"))

        async def load(max_age_seconds: float = 0.0) -> ServedContents:
            digests = (await self._hub.targets(key, max_age_seconds)).manifest_digests
            known = self._catalog.known(digests)
            if known is not None:
                return known
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, self._catalog.contents, digests)

        return BlobSender(
            opening,
            await load(math.inf),
            self._payloads,
            reload=load,
            executor=self._executor,
            delta_wait_seconds=self._settings.delta_wait_seconds,
        )

    def _admit(self, request: pb.CheckRequest | pb.WatchRequest, context: Context) -> tuple[str, ClassKey]:
        """Return the device's name and class, once the call is counted and the request checked."""
        device = self._identify(context)
        self._limits.count_call(device)
        if request.manifest_digest:
            check_digest(request.manifest_digest.hex())
        return device, (
            check_digest(request.model_digest.hex()), check_name(request.device_class, "device class")
        )  # fmt: skip

    def _target_changed(
        self, key: ClassKey, request: pb.WatchRequest, target: Assignment
    ) -> pb.TargetChanged:
        crowd_seconds = self._hub.watchers_of(key) / self._settings.connects_per_second
        return pb.TargetChanged(
            version=target.version,
            manifest_digest=bytes.fromhex(target.manifest_digest),
            fetch_after_seconds=self._fetch_after(key, request, target),
            retry_after_seconds=self._rng.uniform(0.0, 2 * self._settings.retry_seconds + crowd_seconds),
            silent_after_seconds=3 * self._settings.heartbeat_seconds,
        )

    def _fetch_after(
        self, key: ClassKey, request: pb.CheckRequest | pb.WatchRequest, target: Assignment
    ) -> float:
        """Return how many seconds a device should wait before it fetches: all watchers, one after another."""
        if target.manifest_digest == request.manifest_digest.hex():
            return 0.0
        return self._rng.uniform(0.0, self._hub.watchers_of(key) / self._settings.fetches_per_second)
