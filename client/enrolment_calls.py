"""What a device asks the services that give certificates, and how it knows that it asks the right ones.

The rules:

1. Nothing secret is said before the server has proved that the fleet's authority vouches for it. The authority is
   recognised by the fingerprint in the token; no server is trusted because it was the first to answer.
2. Whatever comes back is bounded, and checked to be this device's before it is believed.
"""

import hashlib
import hmac
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tuf.api.exceptions import RepositoryError
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from client.credentials import (
    MAX_CERTIFICATE_BYTES,
    UNREADABLE,
    ClientCredentials,
    ServiceFile,
    check_certificate,
    parse_key,
)
from client.grpc_errors import converted
from client.trusted_metadata import MAX_BYTES
from protos.quantfleet.v1 import enrolment_pb2 as pb
from protos.quantfleet.v1 import enrolment_pb2_grpc as pb_grpc
from quantization.enrolment_token import EnrolmentToken
from quantization.errors import MalformedError, UnauthenticatedError, UnreachableError

CALL_SECONDS = 30.0

_MAX_ANSWER_BYTES = MAX_BYTES["root"] + 4 * MAX_CERTIFICATE_BYTES
_OPTIONS = (("grpc.max_receive_message_length", _MAX_ANSWER_BYTES), ("grpc.enable_retries", 0))


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a server gave, checked.

    Attributes:
        service: Where it is, and what the device is called.
        certificate_pem: The device's certificate.
        authority_pem: The fleet's authority.
        root: The root of signed metadata to start from.
    """

    service: ServiceFile
    certificate_pem: bytes
    authority_pem: bytes
    root: bytes


def fetch_authority(
    address: str, fingerprint: str, timeout_seconds: float = CALL_SECONDS
) -> x509.Certificate:
    """Return the authority of the server at an address, once it is the one that was expected.

    The server is asked over a connection that holds it to the very certificate it has just shown, which proves nothing
    yet: nothing secret is said on it.

    Args:
        address: Host and port of the enrolment service.
        fingerprint: SHA-256 of the authority's certificate, hex.
        timeout_seconds: For each of two connections.

    Raises:
        UnreachableError: Nobody answers there, or not in TLS.
        UnauthenticatedError: The authority is another one.
        MalformedError: The answer is no certificate.
    """
    shown = _shown_certificate(address, timeout_seconds)
    credentials = grpc.ssl_channel_credentials(shown)
    try:
        with _called(address, credentials, "the fleet's authority cannot be fetched") as channel:
            stub = pb_grpc.EnrolmentServiceStub(channel)
            data = stub.FetchAuthority(pb.FetchAuthorityRequest(), timeout=timeout_seconds).authority
    except UnreachableError as error:
        raise UnreachableError(f"{error}; {_remedy(address, shown)}", error.retry_after_seconds) from error
    found = hashlib.sha256(data).hexdigest()
    if not hmac.compare_digest(found, fingerprint):
        raise UnauthenticatedError(
            f"the server at {address} is not the one that the token is for: its authority has the fingerprint "
            f"{found[:16]}..., the token says {fingerprint[:16]}...; check the address, or ask for a new token"
        )
    return _certificate(data, "the fleet's authority")


def enrol(
    address: str,
    token: EnrolmentToken,
    key: EllipticCurvePrivateKey,
    device: str,
    *,
    timeout_seconds: float = CALL_SECONDS,
) -> Enrolled:
    """Return what the server gives for a token.

    Args:
        address: Host and port of the enrolment service.
        token: From the operator.
        key: The device's; only its public half is sent.
        device: What the device wants to be called; empty where the token says it.
        timeout_seconds: For each of three connections.

    Raises:
        UnreachableError: Nobody answers there, or is too busy.
        UnauthenticatedError: The server is another one than the token's, or the token is not good.
        ForbiddenError: The token is for another name, or the name is taken.
        MalformedError: What came back is not what was asked for.
    """
    authority = fetch_authority(address, token.fingerprint, timeout_seconds)
    authority_pem = authority.public_bytes(Encoding.PEM)
    credentials = grpc.ssl_channel_credentials(authority_pem)
    request = pb.EnrolRequest(secret=token.secret, device=device, certificate_request=signing_request(key))
    with _called(address, credentials, "the device was not enrolled") as channel:
        answer = pb_grpc.EnrolmentServiceStub(channel).Enrol(request, timeout=timeout_seconds)
    certificate = _certificate(answer.certificate, "the device's certificate")
    if device and answer.device != device:
        raise MalformedError(f"'{device}' was asked for, and '{answer.device[:200]}' was enrolled")
    check_certificate(certificate, key, authority, answer.device)
    _check_root(answer.root)
    host = address.rpartition(":")[0]
    service_address = answer.address if not answer.address.startswith(":") else host + answer.address
    service = ServiceFile(service_address, address, answer.device)
    return Enrolled(service, certificate.public_bytes(Encoding.PEM), authority_pem, answer.root)


def renewed_certificate(credentials: ClientCredentials, *, timeout_seconds: float = CALL_SECONDS) -> bytes:
    """Return the device's next certificate, PEM.

    Raises:
        UnreachableError: Nobody answers, or the device has just got one.
        UnauthenticatedError: The device was revoked.
        MalformedError: What came back is not what was asked for.
    """
    key = parse_key(credentials.key_pem)
    request = pb.RenewRequest(certificate_request=signing_request(key))
    what = "the device's certificate was not renewed"
    with _called(credentials.address, credentials.channel_credentials(), what) as channel:
        answer = pb_grpc.RenewalServiceStub(channel).Renew(request, timeout=timeout_seconds)
    certificate = _certificate(answer.certificate, "the device's certificate")
    authority = x509.load_pem_x509_certificate(credentials.authority_pem)
    check_certificate(certificate, key, authority, credentials.device)
    return certificate.public_bytes(Encoding.PEM)


def signing_request(key: EllipticCurvePrivateKey) -> bytes:
    """Return a certificate request for a key (PKCS #10, DER); it asks for no name, because the server says it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    request = x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256())
    return request.public_bytes(Encoding.DER)


@contextmanager
def _called(address: str, credentials: grpc.ChannelCredentials, what: str) -> Iterator[grpc.Channel]:
    with converted(f"{address}: {what}"), grpc.secure_channel(address, credentials, _OPTIONS) as channel:
        yield channel


def _shown_certificate(address: str, timeout_seconds: float) -> bytes:
    host, _, port = address.rpartition(":")
    try:
        return ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=timeout_seconds).encode()
    except (OSError, ValueError) as error:  # a TLS error is an OSError
        raise UnreachableError(f"no server answers in TLS at {address}: {error}") from error


def _remedy(address: str, shown: bytes) -> str:
    """Return what may help where a server shows a certificate and then does not answer."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        certificate = x509.load_pem_x509_certificate(shown)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [*names.get_values_for_type(x509.DNSName)]
        hosts += [str(one) for one in names.get_values_for_type(x509.IPAddress)]
    except UNREADABLE:
        hosts = []
    if host not in hosts and not any(name.startswith("*") for name in hosts):
        return (
            f"its certificate is for {', '.join(hosts)[:300] or 'no host'}, not for {host}: enrol at one of these, or "
            f"have the operator make another (`quantfleet-server keys server --host {host}`)"
        )
    return "is this the address for enrolment, which has a port of its own?"


def _certificate(data: bytes, what: str) -> x509.Certificate:
    if not 0 < len(data) <= MAX_CERTIFICATE_BYTES:
        raise MalformedError(f"{what} has {len(data)} bytes; 1 to {MAX_CERTIFICATE_BYTES} are allowed")
    try:
        return x509.load_der_x509_certificate(data)
    except UNREADABLE as error:
        raise MalformedError(f"{what} is no certificate: {error}") from error


def _check_root(root: bytes) -> None:
    try:
        if not 0 < len(root) <= MAX_BYTES["root"]:
            raise ValueError(f"{len(root)} bytes")  # noqa: TRY301 - one message for all that is wrong
        TrustedMetadataSet(root, EnvelopeType.METADATA)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise MalformedError(f"the root of signed metadata cannot be used: {error}") from error
