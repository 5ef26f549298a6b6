"""Keys and certificates as text, and what a certificate says."""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from quantization.errors import ConfigurationError, MalformedError
from quantization.principal import Principal

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


def new_key() -> EllipticCurvePrivateKey:
    """Return a new private key on P-256."""
    return generate_private_key(SECP256R1())


def key_to_pem(key: EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PKCS #8, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_key(pem: bytes) -> EllipticCurvePrivateKey:
    """Return a private key; the inverse of `key_to_pem`.

    Raises:
        ConfigurationError: It is none on an elliptic curve, or is encrypted.
    """
    try:
        key = load_pem_private_key(pem, None)
    except UNREADABLE as error:
        raise ConfigurationError(f"not a private key in PEM, or an encrypted one: {error}") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigurationError("not a private key on an elliptic curve")
    return key


def parse_certificate(pem: bytes) -> x509.Certificate:
    """Return a certificate.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except UNREADABLE as error:
        raise ConfigurationError(f"not a certificate in PEM: {error}") from error


def principal_of(certificate: x509.Certificate) -> Principal:
    """Return whom a certificate names.

    Raises:
        MalformedError: It names nobody, or more than one.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except UNREADABLE as error:
        raise MalformedError(f"a certificate without alternative names: {error}") from error
    if len(uris) != 1:
        raise MalformedError(f"a certificate with {len(uris)} URIs; one was expected")
    return Principal.parse(uris[0])


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names and IP addresses in a server's certificate."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def serial_of(certificate: x509.Certificate) -> str:
    """Return a certificate's serial number, hex."""
    return f"{certificate.serial_number:x}"
