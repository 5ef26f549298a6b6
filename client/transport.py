"""What an updater needs of whatever brings updates: the words of `protos/quantfleet/v1/update.proto`, without gRPC."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from client.slots import Target
from quantization.blob import HEADER_BYTES, check_digest
from quantization.delta import Encoding
from quantization.errors import MalformedError, UnreachableError

NOTHING_COMPLETE: Mapping[str, Collection[str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Offer:
    """What a device should run, as far as the service knows.

    Attributes:
        target: Its version and manifest, whose signatures the transport has checked.
        fetch_after_seconds: To wait before fetching, so that not all devices come at once.
        retry_after_seconds: To wait before asking again; 0 if the device may choose.
    """

    target: Target
    fetch_after_seconds: float = 0.0
    retry_after_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Want:
    """A blob that a device asks for.

    Attributes:
        digest: Its name.
        offset_bytes: How much of a payload the device has kept.
        payload_digest: SHA-256 of that payload; empty where the offset is 0.
        base_manifest: If set, the blob is a manifest, and everything is asked for that it names and this one does not:
            a bundle.
    """

    digest: str
    offset_bytes: int = 0
    payload_digest: str = ""
    base_manifest: str = ""


@dataclass(frozen=True, slots=True)
class Payload:
    """How a blob is sent.

    Attributes:
        digest: Name of the blob.
        encoding: How the payload becomes the blob.
        base_digest: Content that it is a difference to; empty for a full blob.
        total_bytes: Size of the payload.
        payload_digest: SHA-256 of the payload.
    """

    digest: str
    encoding: Encoding
    base_digest: str
    total_bytes: int
    payload_digest: str

    def __post_init__(self) -> None:
        """Refuse what no payload can be."""
        check_digest(self.digest)
        check_digest(self.payload_digest)
        if self.encoding is not Encoding.FULL:
            check_digest(self.base_digest)
        elif self.base_digest:
            raise MalformedError(f"full blob {self.digest[:12]} with a base")
        if self.total_bytes < HEADER_BYTES:
            raise MalformedError(f"payload of {self.total_bytes} bytes; the least is {HEADER_BYTES}")


class Piece(NamedTuple):
    """A part of the answer to one want.

    Attributes:
        payload: What is sent; None but in the first piece of an answer.
        offset_bytes: Where the data belongs in the payload.
        data: The next bytes.
    """

    payload: Payload | None
    offset_bytes: int
    data: bytes | memoryview


class Transport(Protocol):
    """Brings targets and blobs. Its methods raise `UnreachableError` where the service cannot be reached."""

    @property
    def brings_bundles(self) -> bool:
        """Whether bundles may be asked for."""
        ...

    def check(self, device_class: str, model_digest: str, serving: Target | None) -> Offer | None:
        """Return what the device should run; None where the service has nothing for it.

        Args:
            device_class: Name of the device's class.
            model_digest: SHA-256 of the model that the device runs; empty before the first.
            serving: What it runs now.
        """
        ...

    def fetch(
        self,
        wants: Sequence[Want],
        held: Collection[str],
        complete: Mapping[str, Collection[str]] = NOTHING_COMPLETE,
    ) -> Iterator[Piece]:
        """Yield the answers to the wants, in their order, each whole before the next.

        Args:
            wants: What is asked for.
            held: Digests of contents that differences may refer to.
            complete: By the digest of a manifest that is held, what it names, where all of that is held too: one
                digest then says all of it.
        """
        ...


class NoService:
    """The transport of a device on its own: there is never anything for it."""

    brings_bundles = False

    def check(self, device_class: str, model_digest: str, serving: Target | None) -> Offer | None:  # noqa: ARG002
        """Return nothing."""
        return None

    def fetch(
        self,
        wants: Sequence[Want],  # noqa: ARG002
        held: Collection[str],  # noqa: ARG002
        complete: Mapping[str, Collection[str]] = NOTHING_COMPLETE,  # noqa: ARG002
    ) -> Iterator[Piece]:
        """Fetch nothing.

        Raises:
            UnreachableError: Always.
        """
        raise UnreachableError("this device has no update service")
