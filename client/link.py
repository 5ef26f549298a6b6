"""What an agent needs of its connection to the server: what an updater needs, and to watch and to report."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from client.slots import Target
from client.transport import Offer, Transport
from protos.quantfleet.v1.telemetry_pb2 import TelemetryReport


class Announcements(Protocol):
    """Targets as the server announces them, one after another, unverified; it comes back where it breaks."""

    def __iter__(self) -> Iterator[Offer]: ...

    @property
    def is_connected(self) -> bool:
        """Whether the server is there."""
        ...

    def cancel(self) -> None:
        """End the announcements; any thread may call it."""
        ...


class Reported(Protocol):
    """What the server has of a device's reports."""

    @property
    def stored_sequence(self) -> int:
        """Reports up to this one are stored; 0 if none is."""
        ...

    @property
    def retry_after_seconds(self) -> float:
        """To wait before the next report; 0 if the device may choose."""
        ...


class FleetLink(Transport, Protocol):
    """A connection to the server: `client.grpc_transport.GrpcTransport`, but for tests.

    Any threads may call its methods, which raise what a transport's do.
    """

    def watch(
        self, device_class: str, model_digest: str, serving: Callable[[], Target | None]
    ) -> Announcements:
        """Return the announcements for a device.

        Args:
            device_class: Name of the device's class.
            model_digest: SHA-256 of the model that the device runs, or wants.
            serving: Returns what it runs when it connects.
        """
        ...

    def report(self, reports: Sequence[TelemetryReport]) -> Reported:
        """Send reports, oldest first; return what the server has.

        Raises:
            MalformedError: If the server will never take them.
        """
        ...

    def close(self) -> None:
        """End whatever goes on; what is called later raises `UnreachableError`."""
        ...
