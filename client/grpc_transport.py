"""Targets, blobs and telemetry over gRPC: what `client.transport.Transport` asks for, and a watch beside it.

The rules:

1. An offer is believed only if it is signed (`client.signed_offers`). Without trust in signatures a device talks to
   its own machine alone.
2. Whatever the service declares is bounded before it is allocated: messages by `MAX_ANSWER_BYTES`, chunks by 64 KiB,
   files of metadata by their role, blobs by what the manifest says (`client.fetching`). Whatever it says of time is
   bounded too.
3. No wait is endless: questions have deadlines, and streams must go on.
4. Every error of gRPC becomes one of this project's (`client.grpc_errors`); nothing is repeated here but a watch.

Any threads may call the methods of one transport, but a device has one updater. gRPC does not survive `fork`: a process
that forks must open its transports afterwards, or use `spawn`.
"""

import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc
from google.protobuf.message import Message

from client.grpc_blobs import blob_pieces, fetch_requests
from client.grpc_channel import GrpcSettings, call_metadata, open_channel
from client.grpc_errors import converted, seconds_within
from client.signed_offers import SignedOffers, Trust
from client.slots import Target
from client.transport import NOTHING_COMPLETE, Offer, Piece, Want
from client.update_messages import (
    Announcements,
    Reported,
    metadata_chunks,
    offer_of,
    parsed,
    question,
    report_batches,
    serialized,
)
from client.watching import Watch
from protos.quantfleet.v1 import telemetry_pb2, update_pb2
from quantization.errors import ConfigurationError, NotFoundError, UnreachableError
from quantization.target_name import TargetName

_UPDATES = "/quantfleet.v1.UpdateService/"
_REPORT = "/quantfleet.v1.TelemetryService/Report"

_Message = TypeVar("_Message", bound=Message)


class Credentials(Protocol):
    """What a device shows and trusts; see `client.credentials.ClientCredentials`."""

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return those of its connections."""
        ...


class GrpcTransport:
    """One device's connection to its service; use it as a context manager, or `close` it."""

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        metadata: tuple[tuple[str, str], ...] = (),
        trust: Trust | None = None,
        settings: GrpcSettings,
        least_version: Callable[[], int] = int,
        device_class: str = "",
        model_digest: str = "",
        rng: random.Random | None = None,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use a channel, which is closed with this; `open` makes one."""
        self._channel, self._metadata, self._settings = channel, metadata, settings
        self._least_version = least_version
        self._asked = (device_class, model_digest)
        self._rng = rng or random.Random()  # noqa: S311 - it spreads load, it guards nothing
        self._lock = threading.Lock()
        self._watches: set[Watch] = set()
        self._is_closed = False
        self._offers = None
        if trust is not None:
            self._offers = SignedOffers(
                trust,
                self.fetch_metadata,
                refresh_seconds=settings.refresh_seconds,
                wall_clock=wall_clock,
                clock=clock,
            )

    @classmethod
    def open(
        cls,
        address: str,
        credentials: Credentials | None,
        device: str,
        trust: Trust | None,
        *,
        settings: GrpcSettings | None = None,
        **keywords: Any,  # noqa: ANN401 - those of the constructor
    ) -> Self:
        """Return a transport; it connects when it is first used.

        Args:
            address: Of the service, "host:port".
            credentials: Of this device; None only for a service on this machine.
            device: Name of the device, which it says itself where it has no credentials.
            trust: Signed metadata; None only without credentials, on this machine.
            settings: For how long to wait; the defaults if None.
            keywords: `least_version`, which returns the greatest version that the device has had (slots); the
                `device_class` and `model_digest` that blobs are fetched for before the first `check`; `rng`,
                `wall_clock` and `clock`.

        Raises:
            ConfigurationError: What goes over a network would not be protected, or the device's name is none.
        """
        if trust is None and credentials is not None:
            raise ConfigurationError(
                "updates from another machine must be signed: give the device its root of trust (enrol it again)"
            )
        settings = settings or GrpcSettings()
        metadata = call_metadata(device, is_insecure=credentials is None)
        channel = open_channel(
            address, None if credentials is None else credentials.channel_credentials(), settings
        )
        return cls(channel, metadata=metadata, trust=trust, settings=settings, **keywords)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all watches and calls, and the connection; any thread may call it."""
        with self._lock:
            self._is_closed = True
            watches = list(self._watches)
        for watch in watches:
            watch.cancel()
        self._channel.close()

    def check(self, device_class: str, model_digest: str, serving: Target | None) -> Offer | None:
        """Return what the device should run, signed; None where nothing was published for it.

        Args:
            device_class: Name of the device's class.
            model_digest: SHA-256 of the model that the device runs.
            serving: What it runs now.

        Raises:
            UnreachableError: The service cannot be reached, or is busy.
            StaleVersionError: The target, or the metadata, is older than what this device has had.
            UpdateRejectedError: The target, or the metadata, is not signed as it must be.
            MalformedError: The service does not understand the question, or does not answer it.
        """
        self._asked = (device_class, model_digest)
        request = update_pb2.CheckRequest(**question(device_class, model_digest, serving))
        try:
            answer = self._ask(_UPDATES + "Check", request, update_pb2.CheckResponse)
        except NotFoundError:
            return None
        offer = offer_of(answer)
        if self._offers is not None:
            name = TargetName(model_digest, device_class, offer.target.version)
            least = max(serving.version if serving else 0, self._least_version())
            self._offers.check(name, offer.target, serving, least)
        return offer

    @property
    def brings_bundles(self) -> bool:
        """Whether bundles may be asked for: a service that makes none says so."""
        return True

    def fetch(
        self,
        wants: Sequence[Want],
        held: Collection[str],
        complete: Mapping[str, Collection[str]] = NOTHING_COMPLETE,
    ) -> Iterator[Piece]:
        """Yield the answers to the wants; see `client.transport.Transport`.

        Raises:
            UnreachableError: The stream broke, or did not go on.
            NotFoundError: No manifest of the device's class names a blob.
            UpdateRejectedError: A manifest would be larger than what is signed.
            MalformedError: What comes is no part of an answer.
        """
        device_class, model_digest = self._asked
        if not device_class or not model_digest:
            raise UnreachableError("nothing can be fetched before the service was asked for a target")
        requests = fetch_requests(device_class, model_digest, wants, held, complete)
        return self._answers(requests)

    def fetch_metadata(self, role: str, version: int) -> Iterator[bytes]:
        """Yield the chunks of a file of signed metadata, none of which is verified.

        Args:
            role: Whose file.
            version: Of the file; 0 for the newest.

        Raises:
            NotFoundError: There is none.
            UnreachableError: The service cannot be reached, or the file takes too long.
            MalformedError: What comes is larger than files of the role are, or not a file.
        """
        request = update_pb2.FetchMetadataRequest(role=role, version=version)
        with self._calling():
            call: Any = self._channel.unary_stream(_UPDATES + "FetchMetadata", serialized)(
                request, timeout=self._settings.call_seconds, metadata=self._metadata
            )
        return metadata_chunks(call, role)

    def watch(
        self, device_class: str, model_digest: str, serving: Callable[[], Target | None] = lambda: None
    ) -> Watch:
        """Return a watch that announces targets until it is cancelled.

        What it announces is not verified: `check` is what tells a device its target.

        Args:
            device_class: Name of the device's class.
            model_digest: SHA-256 of the model that the device runs.
            serving: Returns what it runs when it connects.
        """

        def open_call() -> Announcements:
            request = update_pb2.WatchRequest(**question(device_class, model_digest, serving()))
            with self._calling():
                return Announcements(
                    self._channel.unary_stream(_UPDATES + "Watch", serialized)(
                        request, metadata=self._metadata
                    )
                )

        def forget() -> None:
            with self._lock:
                self._watches.discard(watch)

        watch = Watch(open_call, self._settings, rng=self._rng, on_end=forget)
        with self._lock:
            self._watches.add(watch)
        if self._is_closed:
            watch.cancel()
        return watch

    def report(self, reports: Sequence[telemetry_pb2.TelemetryReport]) -> Reported:
        """Send reports, in as many requests as they need; return what the service has afterwards.

        Args:
            reports: In ascending order of sequence; none to ask what the service has.

        Raises:
            UnreachableError: The service cannot be reached, or is busy.
            MalformedError: The service refuses a report.
        """
        reported = Reported(0, 0.0)
        for batch in report_batches(reports) if reports else ([],):
            request = telemetry_pb2.ReportRequest(reports=batch)
            answer = self._ask(_REPORT, request, telemetry_pb2.ReportResponse)
            reported = Reported(answer.stored_sequence, seconds_within(answer.retry_after_seconds))
        return reported

    def _answers(self, requests: Iterable[update_pb2.FetchBlobsRequest]) -> Iterator[Piece]:
        """Yield what streams of blobs bring, one after another."""
        check_size = None if self._offers is None else self._offers.check_size
        for request in requests:
            # One message is all that a device says, so the stream is one that answers it, and is read as such.
            with self._calling():
                call: Any = self._channel.unary_stream(_UPDATES + "FetchBlobs", serialized)(
                    request, metadata=self._metadata
                )
            yield from blob_pieces(call, self._settings.stall_seconds, check_size)

    def _ask(self, method: str, request: Message, kind: type[_Message]) -> _Message:
        """Return the answer to one question."""
        with self._calling(), converted(method.rpartition("/")[2]):
            data: bytes = self._channel.unary_unary(method, serialized)(
                request, timeout=self._settings.call_seconds, metadata=self._metadata
            )
        return parsed(kind, data)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Say that a closed connection is one that reaches nobody: gRPC calls that a ValueError."""
        try:
            yield
        except ValueError as error:
            if not self._is_closed:
                raise
            raise UnreachableError("the connection is closed") from error
