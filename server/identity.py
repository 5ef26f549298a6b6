"""Who calls: the device or the operator that a connection's certificate names.

The rules:

1. TLS has checked that the certificate is signed by the fleet's authority and that the caller has its key. What is
   left is checked here, for every call: that it has not expired since, that it is not revoked, and that its role is
   the one that may make the call.
2. A role comes from the certificate's URI alone; common names and metadata count for nothing.
3. Without certificates (loopback only, `server.grpc_server` sees to it) a device is who it says it is.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.x509 import load_pem_x509_certificate

from quantization.errors import ForbiddenError, MalformedError, UnauthenticatedError
from quantization.principal import Principal, Role, check_principal_name
from server.peers import DEVICE_KEY, Context
from server.pem import UNREADABLE, principal_of, serial_of
from server.signing_requests import public_bytes

IsRevoked = Callable[[str, str], bool]
"""From a certificate's serial number (hex) and the URI of whom it names to whether it is good no more."""

LOCAL_OPERATOR = "local"
"""Who operates a server without certificates."""

_CACHED_CERTIFICATES = 8192  # of 1 KiB, so that a call costs no parsing


@dataclass(frozen=True, slots=True)
class Caller:
    """What a caller's certificate says.

    Attributes:
        principal: Whom it names.
        serial: Its serial number, hex.
        public_key: SubjectPublicKeyInfo, DER; empty if it is on no elliptic curve.
        not_before_seconds: It is good from then on, in seconds since 1970 (UTC).
        not_after_seconds: And until then.
    """

    principal: Principal
    serial: str
    public_key: bytes
    not_before_seconds: float
    not_after_seconds: float


class Identity:
    """Names callers; make one with `certified` or `insecure`."""

    def __init__(self, is_revoked: IsRevoked | None, clock: Callable[[], float]) -> None:
        self._is_revoked = is_revoked
        self._clock = clock

    @classmethod
    def certified(cls, is_revoked: IsRevoked, *, clock: Callable[[], float] = time.time) -> Self:
        """Return who takes certificates' word.

        Args:
            is_revoked: Knows those that are good no more; called for every call, so it must not block.
            clock: Seconds since 1970 (UTC).
        """
        return cls(is_revoked, clock)

    @classmethod
    def insecure(cls) -> Self:
        """Return who takes a device's own word, and everybody for the operator: on a loopback address only."""
        return cls(None, time.time)

    @property
    def is_certified(self) -> bool:
        """Whether callers need certificates."""
        return self._is_revoked is not None

    def device(self, context: Context) -> str:
        """Return the name of the device that calls.

        Raises:
            UnauthenticatedError: It shows no certificate, or one that is not good.
            ForbiddenError: It is no device.
        """
        if self._is_revoked is None:
            return _stated_device(context)
        return self._named(context, Role.DEVICE).principal.name

    def operator(self, context: Context) -> str:
        """Return the name of the operator that calls.

        Raises:
            UnauthenticatedError: It shows no certificate, or one that is not good.
            ForbiddenError: It is no operator.
        """
        if self._is_revoked is None:
            return LOCAL_OPERATOR
        return self._named(context, Role.OPERATOR).principal.name

    def caller(self, context: Context) -> Caller:
        """Return what the caller's certificate says, whatever its role.

        Raises:
            UnauthenticatedError: It shows none, or one that is not good.
        """
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            raise UnauthenticatedError(
                "this call needs a certificate of the fleet; enrol the device, or name --operator"
            )
        caller = _parsed(bytes(next(iter(shown))))
        now = self._clock()
        if not caller.not_before_seconds <= now <= caller.not_after_seconds:
            raise UnauthenticatedError(
                f"the certificate of {caller.principal.uri} is good from {caller.not_before_seconds:.0f} to "
                f"{caller.not_after_seconds:.0f} s since 1970, and it is {now:.0f}"
            )
        if self._is_revoked is None or self._is_revoked(caller.serial, caller.principal.uri):
            raise UnauthenticatedError(f"the certificate of {caller.principal.uri} was revoked")
        return caller

    def _named(self, context: Context, role: Role) -> Caller:
        caller = self.caller(context)
        if caller.principal.role is not role:
            raise ForbiddenError(f"this call needs the role '{role}', and {caller.principal.uri} calls")
        return caller


@functools.lru_cache(_CACHED_CERTIFICATES)
def _parsed(pem: bytes) -> Caller:
    try:
        certificate = load_pem_x509_certificate(pem)
        principal = principal_of(certificate)
        key = certificate.public_key()
    except (*UNREADABLE, MalformedError) as error:
        raise UnauthenticatedError(f"the caller's certificate names nobody of this fleet: {error}") from error
    return Caller(
        principal,
        serial_of(certificate),
        public_bytes(key) if isinstance(key, EllipticCurvePublicKey) else b"",
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def _stated_device(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == DEVICE_KEY:
            return check_principal_name(value if isinstance(value, str) else "")
    raise UnauthenticatedError(f"a device without a certificate names itself in the metadata '{DEVICE_KEY}'")
