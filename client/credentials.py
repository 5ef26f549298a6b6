"""Who a device is, and whom it trusts: the files that enrolment left in `<state>/identity`.

device.key      the private key (PKCS #8, PEM), for the device alone; it never leaves
device.crt      the certificate that names the device
ca.crt          the fleet's authority, by which the server is recognised
root.json       the first root of signed metadata
service.json    where the server is, and the device's name; written last: without it there is no identity
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from client.trusted_metadata import MAX_BYTES
from quantization.errors import ConfigurationError, MalformedError, NotFoundError
from quantization.principal import Principal, Role

FOLDER = "identity"
KEY, CERTIFICATE, AUTHORITY, ROOT, SERVICE = "device.key", "device.crt", "ca.crt", "root.json", "service.json"

MAX_CERTIFICATE_BYTES = 16 << 10
MAX_ADDRESS_LENGTH = 300
FORMAT = 1

RENEW_AFTER = 2 / 3
"""Part of a certificate's lifetime after which it should be renewed."""

_MAX_FILE_BYTES = 64 << 10

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises where something is no certificate, or one that it cannot read."""

_Value = TypeVar("_Value")


def identity_folder(state: Path | str) -> Path:
    """Return where a state folder keeps the device's identity."""
    return Path(state) / FOLDER


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """What `service.json` says.

    Attributes:
        address: Host and port of the update service.
        enrolment_address: Host and port where the device was enrolled.
        device: The device's name.
    """

    address: str
    enrolment_address: str
    device: str

    def __post_init__(self) -> None:
        """Refuse what is no address and no name."""
        Principal(Role.DEVICE, self.device)
        for address in (self.address, self.enrolment_address):
            check_address(address)

    def to_bytes(self) -> bytes:
        """Return the file."""
        fields = {"address": self.address, "device": self.device, "enrolment_address": self.enrolment_address}
        return (json.dumps({"format": FORMAT, **fields}, sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return what a file says; the inverse of `to_bytes`.

        Raises:
            MalformedError: It is no such file.
        """
        try:
            fields = json.loads(data)
            if fields["format"] != FORMAT:
                raise MalformedError(f"format {fields['format']!r:.40}; this version reads {FORMAT}")
            values = [fields[name] for name in cls.__slots__]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise MalformedError(f"not a service file: {error!r:.200}") from error
        if not all(isinstance(value, str) for value in values):
            raise MalformedError("not a service file: an address and a name are text")
        return cls(*values)


@dataclass(frozen=True, slots=True, repr=False)
class ClientCredentials:
    """A whole identity.

    Attributes:
        device: The device's name, as its certificate proves it.
        address: Host and port of the update service.
        enrolment_address: Host and port where the device was enrolled.
        first_root: The first root of signed metadata.
        authority_pem: Certificate of the fleet's authority.
        certificate_pem: The device's certificate.
        key_pem: Its private key.
        issued_at_seconds: When the certificate begins, in seconds since 1970 (UTC).
        expires_at_seconds: When it ends.
    """

    device: str
    address: str
    enrolment_address: str
    first_root: bytes
    authority_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    issued_at_seconds: float
    expires_at_seconds: float

    def __repr__(self) -> str:
        return f"ClientCredentials(device={self.device!r}, address={self.address!r})"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the identity in a folder, `<state>/identity`.

        Raises:
            NotFoundError: There is none.
            ConfigurationError: It is damaged, others may read its key, or its parts do not belong together.
        """
        service_data = _read(folder, SERVICE)
        if service_data is None:
            raise NotFoundError(f"no identity in {folder}; enrol the device with `quantfleet-client enroll`")
        service = _parsed(folder, SERVICE, ServiceFile.parse, service_data)
        key_pem, certificate_pem = _needed(folder, KEY), _needed(folder, CERTIFICATE)
        authority_pem, first_root = _needed(folder, AUTHORITY), _needed(folder, ROOT)
        check_private(folder / KEY)
        key = _parsed(folder, KEY, parse_key, key_pem)
        certificate = _parsed(folder, CERTIFICATE, x509.load_pem_x509_certificate, certificate_pem)
        authority = _parsed(folder, AUTHORITY, x509.load_pem_x509_certificate, authority_pem)
        try:
            check_certificate(certificate, key, authority, service.device)
        except MalformedError as error:
            raise ConfigurationError(f"{folder / CERTIFICATE} cannot be used: {error}; {_REMEDY}") from error
        return cls(
            device=service.device,
            address=service.address,
            enrolment_address=service.enrolment_address,
            first_root=first_root,
            authority_pem=authority_pem,
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            issued_at_seconds=certificate.not_valid_before_utc.timestamp(),
            expires_at_seconds=certificate.not_valid_after_utc.timestamp(),
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel needs: it shows the device's certificate and trusts the fleet's authority alone."""
        return grpc.ssl_channel_credentials(self.authority_pem, self.key_pem, self.certificate_pem)

    def renew_due(self, now_seconds: float) -> bool:
        """Return whether the certificate should be renewed: two thirds of its lifetime are over."""
        lifetime = self.expires_at_seconds - self.issued_at_seconds
        return now_seconds >= self.issued_at_seconds + RENEW_AFTER * lifetime


_REMEDY = "restore the folder, or remove it and enrol the device anew"


def parse_key(pem: bytes) -> EllipticCurvePrivateKey:
    """Return a private key.

    Raises:
        MalformedError: It is none on an elliptic curve.
    """
    try:
        key = load_pem_private_key(pem, None)
    except UNREADABLE as error:
        raise MalformedError(f"not a private key: {error}") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise MalformedError("not a private key on an elliptic curve")
    return key


def check_certificate(
    certificate: x509.Certificate, key: EllipticCurvePrivateKey, authority: x509.Certificate, device: str
) -> None:
    """Refuse a certificate that is not this device's.

    Raises:
        MalformedError: It has another key or another signer, or names somebody else.
    """
    try:
        has_key = certificate.public_key() == key.public_key()
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *UNREADABLE) as error:
        raise MalformedError("the certificate was not signed by the fleet's authority") from error
    if not has_key:
        raise MalformedError("the certificate has another key than the device")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except UNREADABLE as error:
        raise MalformedError(f"the certificate names nobody: {error}") from error
    expected = Principal(Role.DEVICE, device).uri
    if uris != [expected]:
        raise MalformedError(f"the certificate names {', '.join(uris)[:300] or 'nobody'}, not {expected}")


def check_address(address: str) -> str:
    """Return "host:port" that is one.

    Raises:
        MalformedError: It is none.
    """
    host, _, port = address.rpartition(":")
    if not (host and len(address) <= MAX_ADDRESS_LENGTH and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise MalformedError(f"{address[:80]!r} is not an address, such as fleet.example.org:9443")
    return address


def check_private(path: Path) -> None:
    """Refuse a file that others may read.

    Raises:
        ConfigurationError: They may.
    """
    mode = path.stat().st_mode
    if mode & 0o077:
        raise ConfigurationError(f"{path} is open to others (mode {mode & 0o777:o}); chmod 600 it")


def _parsed(folder: Path, name: str, parse: Callable[[bytes], _Value], data: bytes) -> _Value:
    try:
        return parse(data)
    except (*UNREADABLE, MalformedError) as error:
        raise ConfigurationError(f"{folder / name} is damaged ({error}); {_REMEDY}") from error


def _needed(folder: Path, name: str) -> bytes:
    data = _read(folder, name)
    if data is None:
        raise ConfigurationError(f"{folder / name} is missing; {_REMEDY}")
    return data


def _read(folder: Path, name: str) -> bytes | None:
    limit = MAX_BYTES["root"] if name == ROOT else _MAX_FILE_BYTES
    try:
        with (folder / name).open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{folder / name} cannot be read ({error.strerror})") from error
    if len(data) > limit:
        raise ConfigurationError(f"{folder / name} is larger than {limit} bytes; {_REMEDY}")
    return data
