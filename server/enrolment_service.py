"""Enrolment and renewal: how devices get certificates.

The rules:

1. `EnrolmentService` has a port of its own, for callers without a certificate. What they send is bounded, calls are
   counted per network, and few are worked on at a time.
2. The name of a device comes from its token and the registry, never from its request for a certificate.
3. `RenewalService` is on the port where devices show their certificates. A renewal keeps name and key.
"""

import asyncio
import ipaddress
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding
from grpc import aio

from protos.quantfleet.v1 import enrolment_pb2 as pb
from protos.quantfleet.v1 import enrolment_pb2_grpc as pb_grpc
from quantization.errors import ConfigurationError
from server.certificates import Authority, Issued
from server.identity import Identity
from server.identity_registry import IdentityRegistry
from server.peers import Context, OnRefusal, PeerLimits, refusals
from server.pem import parse_certificate
from server.registry_part import Clock
from server.signing_requests import public_bytes, requested_key
from server.update_settings import UpdateSettings

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class EnrolmentSettings:
    """Limits of enrolment and renewal.

    Attributes:
        calls_per_second: Calls from one network (an IPv4 address, an IPv6 /64), or of one device, on average.
        calls_burst: How many of them at once after a pause; a site with one address enrols that many at a time.
        max_calls: Calls that are worked on or wait for it, of everybody.
        max_known_networks: Networks that are remembered; the least recently seen is forgotten.
        workers: Threads for the registry and signatures.
        revocation_poll_seconds: How often the registry is asked what was revoked: for so long a revoked device is
            still answered.
    """

    calls_per_second: float = 2.0
    calls_burst: int = 50
    max_calls: int = 256
    max_known_networks: int = 16_384
    workers: int = 2
    revocation_poll_seconds: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what would stop the service."""
        wrong = [name for name in self.__slots__ if not getattr(self, name) > 0]
        if wrong:
            raise ConfigurationError(f"settings of enrolment must be above 0: {', '.join(wrong)}")

    def limits(self) -> PeerLimits:
        """Return a counter of calls."""
        settings = UpdateSettings(
            calls_per_second=self.calls_per_second,
            calls_burst=self.calls_burst,
            max_known_devices=self.max_known_networks,
            max_streams_per_device=self.max_calls,
        )
        return PeerLimits(settings, random.Random())  # noqa: S311 - it spreads load, it guards nothing


class EnrolmentService(pb_grpc.EnrolmentServiceServicer):
    """Answers whoever has a token; close it when the server has stopped."""

    NAME = "quantfleet.v1.EnrolmentService"

    def __init__(
        self,
        registry: IdentityRegistry,
        authority: Authority,
        first_root: Callable[[], bytes],
        *,
        address: str,
        clock: Clock,
        settings: EnrolmentSettings | None = None,
        on_refusal: OnRefusal = lambda _error: None,
    ) -> None:
        """Enrol devices.

        Args:
            registry: Has the tokens.
            authority: Signs.
            first_root: Returns the newest root of signed metadata, in which devices start to trust; may block.
            address: Where devices find their services: "host:port", or ":port" on the host that they enrol at.
            clock: Seconds since 1970 (UTC).
            settings: Limits; the defaults if None.
            on_refusal: Told why a call is refused.
        """
        self._registry, self._authority, self._first_root = registry, authority, first_root
        self._address, self._clock, self._on_refusal = address, clock, on_refusal
        self._work = _Work(settings or EnrolmentSettings())
        self._authority_der = _der(authority.certificate_pem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop working; calls that wait are refused."""
        self._work.close()

    def register(self, server: aio.Server) -> None:
        """Add the service to a server."""
        pb_grpc.add_EnrolmentServiceServicer_to_server(self, server)

    async def FetchAuthority(  # noqa: N802 - the schema's name
        self, request: pb.FetchAuthorityRequest, context: Context
    ) -> pb.FetchAuthorityResponse:
        """Return the authority's certificate."""
        del request
        async with refusals(context, self._on_refusal):
            self._work.count(network(str(context.peer())))
        return pb.FetchAuthorityResponse(authority=self._authority_der)

    async def Enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolResponse:  # noqa: N802
        """Return a device's first certificate."""
        async with refusals(context, self._on_refusal):
            peer = network(str(context.peer()))
            self._work.count(peer)
            return await self._work.do(lambda: self._enrol(request, peer))

    def _enrol(self, request: pb.EnrolRequest, peer: str) -> pb.EnrolResponse:
        key = requested_key(request.certificate_request)
        root = self._first_root()
        issued = self._registry.enrol(
            request.secret,
            public_bytes(key).hex(),
            request.device,
            lambda principal: self._authority.issue(principal, key, now_seconds=self._clock()),
            peer=peer,
        )
        return pb.EnrolResponse(
            device=issued.principal.name,
            certificate=_der(issued.certificate_pem),
            authority=self._authority_der,
            root=root,
            address=self._address,
        )


class RenewalService(pb_grpc.RenewalServiceServicer):
    """Answers devices that have a certificate; close it when the server has stopped."""

    NAME = "quantfleet.v1.RenewalService"

    def __init__(
        self,
        registry: IdentityRegistry,
        authority: Authority,
        identity: Identity,
        *,
        clock: Clock,
        settings: EnrolmentSettings | None = None,
        on_refusal: OnRefusal = lambda _error: None,
    ) -> None:
        """Renew certificates.

        Args:
            registry: Knows the devices.
            authority: Signs.
            identity: Names the device that calls; it must be certified.
            clock: Seconds since 1970 (UTC).
            settings: Limits; the defaults if None.
            on_refusal: Told why a call is refused.
        """
        self._registry, self._authority, self._identity, self._clock = registry, authority, identity, clock
        self._on_refusal = on_refusal
        self._work = _Work(settings or EnrolmentSettings())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop working; calls that wait are refused."""
        self._work.close()

    def register(self, server: aio.Server) -> None:
        """Add the service to a server."""
        pb_grpc.add_RenewalServiceServicer_to_server(self, server)

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:  # noqa: N802
        """Return a device's next certificate."""
        async with refusals(context, self._on_refusal):
            name = self._identity.device(context)
            self._work.count(name)
            serial = self._identity.caller(context).serial
            issued = await self._work.do(lambda: self._renew(name, serial, request.certificate_request))
            return pb.RenewResponse(certificate=_der(issued.certificate_pem))

    def _renew(self, name: str, serial: str, certificate_request: bytes) -> Issued:
        key = requested_key(certificate_request)
        return self._registry.renew(
            name,
            serial,
            public_bytes(key).hex(),
            lambda principal: self._authority.issue(principal, key, now_seconds=self._clock()),
        )


class _Work:
    """Bounds calls, and does what blocks in threads."""

    def __init__(self, settings: EnrolmentSettings) -> None:
        self._max_calls = settings.max_calls
        self._limits = settings.limits()
        self._executor = ThreadPoolExecutor(settings.workers, "quantfleet-enrolment")

    def count(self, peer: str) -> None:
        """Take one call off what a peer may ask for now.

        Raises:
            OverloadedError: It has asked too often.
        """
        self._limits.count_call(peer)

    async def do(self, work: Callable[[], _Value]) -> _Value:
        """Return what blocking work returns.

        Raises:
            OverloadedError: Too many calls wait.
        """
        with self._limits.stream("", "enrol", self._max_calls):
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


def network(peer: str) -> str:
    """Return what calls of one peer are counted under: its IPv4 address, or its IPv6 network of 64 bits.

    Args:
        peer: As gRPC names it, such as "ipv4:10.0.0.1:40000" or "ipv6:%5B::1%5D:40000".
    """
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0].removeprefix("%5B").removesuffix("%5D").strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return kind
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _der(pem: bytes) -> bytes:
    return parse_certificate(pem).public_bytes(Encoding.DER)
