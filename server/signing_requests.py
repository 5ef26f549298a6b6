"""What is taken from a device's request for a certificate: its public key, and that it has the private one.

The rules:

1. A request is bounded before it is parsed, and its key is checked before its signature is: no key is computed with
   that is not of a known, small form.
2. The signature must be good: nobody gets a certificate for a key that is not its own.
3. Nothing else of it counts. Names, purposes and lifetimes that a request asks for are not read; the registry says
   them.
"""

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quantization.errors import MalformedError
from server.pem import UNREADABLE

MAX_REQUEST_BYTES = 4096
"""Largest request, PKCS #10 in DER; one on P-256 has about 300 bytes."""

_CURVES = (SECP256R1, SECP384R1)
_HASHES = (SHA256, SHA384, SHA512)


def requested_key(request: bytes) -> EllipticCurvePublicKey:
    """Return the public key of a request, whose sender has the private one.

    Args:
        request: PKCS #10, DER.

    Raises:
        MalformedError: It is too large, not a request, has another key than one on P-256 or P-384, or is not signed
            with that key.
    """
    if not 0 < len(request) <= MAX_REQUEST_BYTES:
        raise MalformedError(
            f"a certificate request has 1 to {MAX_REQUEST_BYTES} bytes, not {len(request)}; send PKCS #10 in DER"
        )
    try:
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        algorithm = parsed.signature_hash_algorithm
    except UNREADABLE as error:
        raise MalformedError(f"not a certificate request (PKCS #10 in DER): {error}") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise MalformedError(f"the key of a device lies on curve P-256 or P-384; {_named(key)} was sent")
    if not isinstance(algorithm, _HASHES):
        raise MalformedError("a certificate request is signed over a digest of SHA-256, SHA-384 or SHA-512")
    try:
        is_good = parsed.is_signature_valid
    except (InvalidSignature, *UNREADABLE):
        is_good = False
    if not is_good:
        raise MalformedError("the certificate request is not signed with the key that it names")
    return key


def public_bytes(key: EllipticCurvePublicKey) -> bytes:
    """Return a public key as it is stored and compared (SubjectPublicKeyInfo, DER)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _named(key: object) -> str:
    if isinstance(key, EllipticCurvePublicKey):
        return f"one on {key.curve.name}"
    kind, bits = type(key).__name__.replace("PublicKey", ""), getattr(key, "key_size", None)
    return f"a key of kind {kind}" + (f" with {bits} bits" if bits else "")
