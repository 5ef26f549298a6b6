"""One stream of blobs: what the device asks for, checked, and sent in chunks as fast as it reads."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from protos.quantfleet.v1 import update_pb2 as pb
from quantization.blob import check_digest
from quantization.delta import Encoding
from quantization.errors import MalformedError, NotFoundError
from server.payloads import BUNDLED, Payload, PayloadSource
from server.served_contents import ServedContents

MAX_HELD = 4096
"""Most digests that a device may say it holds."""

MAX_WANTED = 4096
"""Most that it may ask for with its opening."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a device said when it opened a stream of blobs.

    Attributes:
        device_class: Name of its class.
        model_digest: Of the model that it runs, 64 hex digits.
        held: Digests of contents that it holds.
        held_manifests: Digests of manifests of which it holds everything.
        accepted: Encodings that it decodes.
        wanted: What it asked for with that.
    """

    device_class: str
    model_digest: str
    held: frozenset[str]
    accepted: frozenset[Encoding]
    held_manifests: frozenset[str] = frozenset()
    wanted: tuple[pb.BlobWanted, ...] = ()

    @classmethod
    def from_proto(cls, message: pb.FetchBlobsRequest) -> "Opening":
        """Return the opening of a stream; encodings that this server doesn't know are left out.

        Raises:
            MalformedError: If the message is not an opening, or not a possible one.
        """
        if message.WhichOneof("step") != "opening":
            raise MalformedError("a stream of blobs starts with its opening")
        opening = message.opening
        for digests in (opening.held_digests, opening.held_manifest_digests):
            if len(digests) > MAX_HELD:
                raise MalformedError(f"{len(digests)} digests are held; at most {MAX_HELD} are read")
        if len(opening.wanted) > MAX_WANTED:
            raise MalformedError(
                f"{len(opening.wanted)} blobs are wanted at once; at most {MAX_WANTED} are read"
            )
        known = {int(encoding) for encoding in Encoding}
        return cls(
            device_class=opening.device_class,
            model_digest=check_digest(opening.model_digest.hex()),
            held=frozenset(check_digest(digest.hex()) for digest in opening.held_digests),
            accepted=frozenset(Encoding(number) for number in opening.accepted_encodings if number in known),
            held_manifests=frozenset(check_digest(digest.hex()) for digest in opening.held_manifest_digests),
            wanted=tuple(opening.wanted),
        )


class BlobSender:
    """Chooses the payload of each blob that one device asks for."""

    def __init__(
        self,
        opening: Opening,
        contents: ServedContents,
        payloads: PayloadSource,
        *,
        reload: Callable[[], Awaitable[ServedContents]],
        executor: Executor,
        delta_wait_seconds: float,
    ) -> None:
        """Serve what a device may fetch.

        Args:
            opening: What the device has.
            contents: What its class may fetch.
            payloads: Where the bytes come from.
            reload: Asks the registry again for what its class may fetch.
            executor: Runs what blocks.
            delta_wait_seconds: Longest wait for a difference that is being computed.
        """
        self._opening = opening
        self._contents = contents
        self._payloads = payloads
        self._reload = reload
        self._executor = executor
        self._delta_wait_seconds = delta_wait_seconds

    async def payload(self, digest: str) -> Payload:
        """Return what to send for a blob.

        Raises:
            NotFoundError: If no manifest of the device's class names it.
        """
        if digest not in self._contents:
            self._contents = await self._reload()  # another server process may know of a newer target
        if digest not in self._contents:
            raise NotFoundError(f"no target of '{self._opening.device_class}' names blob {digest}")
        base = self._contents.base_for(digest, self._opening.held, self._opening.held_manifests)
        if base is None or not self._opening.accepted - {Encoding.FULL}:
            return await self._full(digest)
        return await self._smallest(digest, base)

    async def bundle(self, digest: str, base: str) -> Payload:
        """Return what to send for everything that one manifest names and another does not.

        Raises:
            NotFoundError: If one of the two is no manifest of the device's class, or the bundle would be too large, or
                takes too long to make: then blobs are sent one by one.
        """
        if digest not in self._contents.manifests:
            self._contents = await self._reload()
        manifests = self._contents.manifests
        if digest not in manifests or base not in manifests:
            raise NotFoundError(f"no bundle from manifest {base[:12]} to {digest[:12]}")
        known = self._payloads.known(digest, base, BUNDLED)
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(
            self._executor, self._payloads.bundle, (digest, manifests[digest]), (base, manifests[base])
        )
        done, _ = await asyncio.wait({work}, timeout=self._delta_wait_seconds)
        if not done:
            raise NotFoundError(f"the bundle from manifest {base[:12]} to {digest[:12]} is being made")
        return work.result()

    async def _full(self, digest: str) -> Payload:
        known = self._payloads.known(digest, None, frozenset())
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._payloads.full, digest)

    async def _smallest(self, digest: str, base: str) -> Payload:
        accepted = self._opening.accepted
        known = self._payloads.known(digest, base, accepted)
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, self._payloads.smallest, digest, base, accepted)
        done, _ = await asyncio.wait({work}, timeout=self._delta_wait_seconds)
        # What is not done goes on, for those who come later.
        return work.result() if done else await self._full(digest)


async def all_wanted(
    opening: Opening, requests: AsyncIterator[pb.FetchBlobsRequest]
) -> AsyncIterator[pb.BlobWanted]:
    """Yield what a device asks for: with its opening, then in one message after another.

    Raises:
        MalformedError: If a message asks for nothing.
    """
    for wanted in opening.wanted:
        yield wanted
    while (request := await anext(requests, None)) is not None:
        if request.WhichOneof("step") != "wanted":
            raise MalformedError("after its opening, a stream of blobs asks for one blob after another")
        yield request.wanted


def start_of(wanted: pb.BlobWanted, payload: Payload) -> int:
    """Return the offset in bytes to send from: the one that is asked for, or 0 if it is of another payload.

    Raises:
        MalformedError: If the offset lies behind the end of the payload that it is of.
    """
    if wanted.payload_digest != payload.head.payload_digest:
        return 0
    if wanted.offset_bytes > payload.size_bytes:
        raise MalformedError(f"offset {wanted.offset_bytes} of a payload of {payload.size_bytes} bytes")
    return wanted.offset_bytes
