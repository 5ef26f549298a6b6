"""The device's key in the form that a Flower SuperNode reads, so that one identity serves both.

`flower-supernode --auth-supernode-private-key identity/supernode.key`; the operator registers the public key with
`flwr supernode register`. Flower takes keys on NIST's curves in OpenSSH's form; the device's lies on P-256.
"""

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from client.credentials import parse_key

PRIVATE_KEY, PUBLIC_KEY = "supernode.key", "supernode.pub"


def supernode_keys(key_pem: bytes) -> tuple[bytes, bytes]:
    """Return a device's private and public key in OpenSSH's form.

    Raises:
        MalformedError: It is no private key on an elliptic curve.
    """
    key = parse_key(key_pem)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
