"""A device's connection to its server, as its identity in the state folder allows, and anew when that is renewed."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from client.events import event_log
from client.grpc_transport import Credentials, GrpcTransport
from client.link import Announcements, FleetLink, Reported
from client.signed_offers import Trust
from client.slots import Target
from client.state import StateFolder
from client.transport import NOTHING_COMPLETE, Offer, Piece, Want
from protos.quantfleet.v1.telemetry_pb2 import TelemetryReport
from quantization.errors import ConfigurationError, NotFoundError, QuantFleetError

_events = event_log("connection")

METADATA_FOLDER = "metadata"
"""Where a state folder keeps verified metadata."""


@dataclass(frozen=True, slots=True)
class ServiceChoice:
    """Which server a device talks to, and as whom.

    Attributes:
        address: Host and port; empty for what its identity says.
        device: Its name, where it says that itself.
        is_insecure: Whether it goes without certificates and signatures, to a server on its own machine.
    """

    address: str = ""
    device: str = ""
    is_insecure: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.is_insecure and not (self.address and self.device):
            raise ConfigurationError(
                "without certificates a device needs a name, and the address of a server on this machine; give "
                "--address and --device"
            )
        if not self.is_insecure and self.device:
            raise ConfigurationError(
                f"a device's certificate names it; --device {self.device} goes with --insecure alone"
            )


class Connection:
    """The link of an agent. What it is made of can be replaced while it is used, as when a certificate is renewed.

    Attributes:
        device: The device's name.
    """

    def __init__(self, open_link: Callable[[], FleetLink], device: str) -> None:
        """Open a link.

        Args:
            open_link: Opens it, with the identity as it then is.
            device: The device's name.
        """
        self.device = device
        self._open_link = open_link
        self._lock = threading.Lock()
        self._link = open_link()
        self._is_closed = False

    def reopen(self) -> None:
        """Go on with a new link; what goes on over the one before ends with `UnreachableError`.

        Raises:
            QuantFleetError: If it cannot be opened; the one before stays.
        """
        link = self._open_link()
        with self._lock:
            before, self._link = self._link, link
            is_closed = self._is_closed
        (link if is_closed else before).close()
        _events.info("connection_reopened", device=self.device)

    def check(self, device_class: str, model_digest: str, serving: Target | None) -> Offer | None:
        """Return what the device should run; see `FleetLink`."""
        return self._link.check(device_class, model_digest, serving)

    @property
    def brings_bundles(self) -> bool:
        """Whether bundles may be asked for."""
        return self._link.brings_bundles

    def fetch(
        self,
        wants: Sequence[Want],
        held: Collection[str],
        complete: Mapping[str, Collection[str]] = NOTHING_COMPLETE,
    ) -> Iterator[Piece]:
        """Yield the answers to the wants; see `FleetLink`."""
        return self._link.fetch(wants, held, complete)

    def watch(
        self, device_class: str, model_digest: str, serving: Callable[[], Target | None]
    ) -> Announcements:
        """Return the announcements for the device; see `FleetLink`."""
        return self._link.watch(device_class, model_digest, serving)

    def report(self, reports: Sequence[TelemetryReport]) -> Reported:
        """Send reports; see `FleetLink`."""
        return self._link.report(reports)

    def close(self) -> None:
        """End whatever goes on."""
        with self._lock:
            self._is_closed, link = True, self._link
        link.close()


def connect(state: StateFolder, choice: ServiceChoice, device_class: str, model_digest: str) -> Connection:
    """Return the connection of the device of a state folder; nothing goes over the network yet.

    Args:
        state: With an identity, unless the choice is to go without; owned by this process.
        choice: Which server.
        device_class: Name of the device's class.
        model_digest: SHA-256 of the model that it asks for while it has none; may be empty.

    Raises:
        ConfigurationError: If the identity is not there or cannot be used, or the address is not this machine's and
            there is none.
    """

    def open_with(
        address: str, credentials: Credentials | None, device: str, trust: Trust | None
    ) -> GrpcTransport:
        return GrpcTransport.open(
            address,
            credentials,
            device,
            trust,
            device_class=device_class,
            model_digest=_held_model(state) or model_digest,
            least_version=partial(_greatest_version, state),
        )

    if choice.is_insecure:
        return Connection(lambda: open_with(choice.address, None, choice.device, None), choice.device)
    # Signed metadata costs 22 MB, which a device that goes without does not pay.
    from client.credentials import ClientCredentials, identity_folder  # noqa: PLC0415
    from client.trusted_metadata import MetadataFolder, TrustedMetadata  # noqa: PLC0415

    def read() -> ClientCredentials:
        try:
            return ClientCredentials.read(identity_folder(state.path))
        except NotFoundError as error:
            raise ConfigurationError(str(error)) from error

    def open_link() -> GrpcTransport:
        credentials = read()
        files = MetadataFolder(state.path / METADATA_FOLDER, state.disk)
        trust = TrustedMetadata(files, first_root=credentials.first_root)
        return open_with(choice.address or credentials.address, credentials, credentials.device, trust)

    return Connection(open_link, read().device)


def _held_model(state: StateFolder) -> str:
    """Return the digest of the model that a device has; empty where it has none."""
    try:
        manifest = state.read_manifest()
    except QuantFleetError:  # damaged: it is fetched anew
        return ""
    return "" if manifest is None else manifest.model_digest


def _greatest_version(state: StateFolder) -> int:
    """Return the greatest version that a device has had; 0 before the first."""
    slots = state.slots()
    return max([slots.refused_version, *(target.version for target in slots.targets)])
