"""A small certificate authority for one fleet: of its server, its operators and its devices.

The rules:

1. A certificate says who somebody is in one URI (`quantization.principal`); its common name is for people. A server's
   also names the hosts that it is reached by.
2. A device's or operator's certificate is good for connecting only, a server's for answering only, and none of them for
   signing others.
3. Keys lie on P-256; serial numbers are random. The authority signs no intermediate one (path length 0).
4. Lifetimes start an hour early, so that a clock that lags a little is no reason to refuse.

Formats are X.509 by `cryptography`; nothing here computes with keys, reads a clock or touches a file.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from quantization.errors import ConfigurationError
from quantization.principal import Principal, Role
from server.pem import key_to_pem, new_key, parse_certificate, parse_key, serial_of

MAX_HOSTS = 32

_EARLY = timedelta(hours=1)
_MAX_COMMON_NAME_LENGTH = 64  # X.509's own bound


@dataclass(frozen=True, slots=True)
class CertificateLifetimes:
    """For how long certificates are good, in days.

    Attributes:
        authority: Of the authority; devices that trust it must be enrolled anew when it ends.
        server: Of the server; renewed while it runs.
        operator: Of an operator.
        device: Of a device, which renews it by itself.
    """

    authority: float = 3650.0
    server: float = 397.0
    operator: float = 365.0
    device: float = 90.0

    def __post_init__(self) -> None:
        """Refuse what expires at once, or outlives its signer."""
        if not all(0 < days <= self.authority <= 36500 for days in (self.server, self.operator, self.device)):
            raise ConfigurationError(
                f"lifetimes of certificates must lie above 0 and within the authority's, not {self}"
            )


DEFAULT_LIFETIMES = CertificateLifetimes()


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, just signed.

    Attributes:
        principal: Whom it names.
        serial: Its serial number, hex.
        certificate_pem: The certificate.
        not_after_seconds: When it expires, in seconds since 1970 (UTC).
    """

    principal: Principal
    serial: str
    certificate_pem: bytes
    not_after_seconds: float


class Authority:
    """The authority's key and certificate.

    Attributes:
        certificate_pem: What everybody in the fleet trusts.
    """

    def __init__(
        self,
        key: EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        lifetimes: CertificateLifetimes = DEFAULT_LIFETIMES,
    ) -> None:
        """Use a key and its certificate.

        Raises:
            ConfigurationError: They do not belong together.
        """
        if certificate.public_key() != key.public_key():
            raise ConfigurationError("the authority's key and certificate do not belong together")
        self._key, self._certificate, self._lifetimes = key, certificate, lifetimes
        self.certificate_pem = certificate.public_bytes(Encoding.PEM)

    @classmethod
    def create(cls, *, now_seconds: float, lifetimes: CertificateLifetimes = DEFAULT_LIFETIMES) -> Self:
        """Return a new authority; `key_pem` is to be kept."""
        key = new_key()
        name = _subject("Quantfleet authority")
        start, end = _validity(now_seconds, lifetimes.authority)
        usage = _usage(key_cert_sign=True, crl_sign=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), start, end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, SHA256())
        )
        return cls(key, certificate, lifetimes)

    @classmethod
    def parse(
        cls, key_pem: bytes, certificate_pem: bytes, lifetimes: CertificateLifetimes = DEFAULT_LIFETIMES
    ) -> Self:
        """Return the authority of these two files.

        Raises:
            ConfigurationError: They are damaged, or do not belong together.
        """
        return cls(parse_key(key_pem), parse_certificate(certificate_pem), lifetimes)

    @property
    def key_pem(self) -> bytes:
        """The private key (PKCS #8), for its owner alone."""
        return key_to_pem(self._key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER, hex; by it a device recognises the authority."""
        return self._certificate.fingerprint(SHA256()).hex()

    def issue_server(
        self, name: str, hosts: Sequence[str], key: EllipticCurvePublicKey, *, now_seconds: float
    ) -> Issued:
        """Return a server's certificate.

        Args:
            name: Of the server.
            hosts: DNS names and IP addresses that it is reached by, 1 to 32.
            key: Its public key.
            now_seconds: Seconds since 1970 (UTC).

        Raises:
            ConfigurationError: There is no host, or one is neither a name nor an address.
        """
        if not 1 <= len(hosts) <= MAX_HOSTS:
            raise ConfigurationError(f"a server is reached by 1 to {MAX_HOSTS} hosts, not {len(hosts)}")
        names = [_host(host) for host in dict.fromkeys(hosts)]
        principal = Principal(Role.SERVER, name)
        return self._issue(principal, key, now_seconds, self._lifetimes.server, names)

    def issue(self, principal: Principal, key: EllipticCurvePublicKey, *, now_seconds: float) -> Issued:
        """Return the certificate of a device or an operator.

        Args:
            principal: Who it is; the caller has made sure.
            key: Its public key; the caller has made sure that it has the private one.
            now_seconds: Seconds since 1970 (UTC).

        Raises:
            ConfigurationError: The role is another one.
        """
        days = {Role.DEVICE: self._lifetimes.device, Role.OPERATOR: self._lifetimes.operator}
        if principal.role not in days:
            raise ConfigurationError(f"{principal.uri} is no device and no operator")
        return self._issue(principal, key, now_seconds, days[principal.role])

    def _issue(
        self,
        principal: Principal,
        key: EllipticCurvePublicKey,
        now_seconds: float,
        days: float,
        hosts: Sequence[x509.GeneralName] = (),
    ) -> Issued:
        start, end = _validity(now_seconds, days)
        end = min(end, self._certificate.not_valid_after_utc)
        if end <= start + _EARLY:
            raise ConfigurationError(
                f"the authority's certificate ended {self._certificate.not_valid_after_utc}; make a new one with "
                "`quantfleet-server keys init` in a new folder, and enrol devices anew"
            )
        purpose = (
            ExtendedKeyUsageOID.SERVER_AUTH
            if principal.role is Role.SERVER
            else ExtendedKeyUsageOID.CLIENT_AUTH
        )
        subject, serial = _subject(principal.name), x509.random_serial_number()
        names = [*hosts, x509.UniformResourceIdentifier(principal.uri)]
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            x509.CertificateBuilder(self._certificate.subject, subject, key, serial, start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, SHA256())
        )
        pem = certificate.public_bytes(Encoding.PEM)
        return Issued(principal, serial_of(certificate), pem, end.timestamp())


def _validity(now_seconds: float, days: float) -> tuple[datetime, datetime]:
    now = datetime.fromtimestamp(int(now_seconds), UTC)
    return now - _EARLY, now + timedelta(days=days)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_MAX_COMMON_NAME_LENGTH])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    labels = host.rstrip(".").split(".")
    is_name = len(host) <= 253 and all(
        0 < len(label) <= 63 and label.isascii() and label.replace("-", "").replace("*", "").isalnum()
        for label in labels
    )
    if not is_name:
        raise ConfigurationError(f"host {host[:200]!r} is neither a DNS name nor an IP address")
    return x509.DNSName(host)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
