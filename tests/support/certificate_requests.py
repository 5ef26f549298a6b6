"""Requests for certificates, good and bad."""

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from quantization.principal import Principal

_SHA256 = SHA256()


def request_for(
    key: Any = None, name: str = "device", uri: str = "", algorithm: HashAlgorithm | None = _SHA256
) -> bytes:
    """Return a request (DER) that asks for a name, and for a URI if there is one."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder(subject)
    if uri:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = builder.sign(key or generate_private_key(SECP256R1()), algorithm)
    return signed.public_bytes(Encoding.DER)


def badly_signed(request: bytes) -> bytes:
    """Return a request whose signature is not that of its key: another request's."""
    other = request_for()
    mine, its = x509.load_der_x509_csr(request), x509.load_der_x509_csr(other)
    assert request.endswith(mine.signature)
    assert len(its.signature) >= 60
    while len(its.signature) != len(mine.signature):
        its = x509.load_der_x509_csr(request_for())
    return request[: -len(mine.signature)] + its.signature


def named_in(request: bytes) -> Principal:
    """Return whom a request asks to be."""
    names = x509.load_der_x509_csr(request).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return Principal.parse(names.value.get_values_for_type(x509.UniformResourceIdentifier)[0])
