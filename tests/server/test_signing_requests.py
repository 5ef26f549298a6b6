import contextlib

import pytest
from certificate_requests import badly_signed, request_for
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import MalformedError
from server.signing_requests import MAX_REQUEST_BYTES, requested_key


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_the_key_is_taken(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    assert requested_key(request_for(key)) == key.public_key()


def test_a_request_with_a_name_gives_its_key_alone() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = request_for(key, "admin", "quantfleet://operator/admin")
    assert requested_key(request) == key.public_key()


def test_a_bad_signature_is_refused() -> None:
    with pytest.raises(MalformedError, match="not signed with the key"):
        requested_key(badly_signed(request_for()))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (rsa.generate_private_key(65537, 1024), "RSA with 1024 bits"),  # noqa: S505 - it is refused
        (rsa.generate_private_key(65537, 2048), "RSA with 2048 bits"),
        (ec.generate_private_key(ec.SECP224R1()), "secp224r1"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
    ],
    ids=["rsa-1024", "rsa-2048", "p-224", "k-256", "ed25519"],
)
def test_other_keys_are_refused(key: object, said: str) -> None:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    with pytest.raises(MalformedError, match=said):
        requested_key(request_for(key, algorithm=algorithm))


@pytest.mark.parametrize("request_", [b"", b"\0", b"x" * (MAX_REQUEST_BYTES + 1), b"-----BEGIN", b"\x30\x80"])
def test_what_is_no_request_is_refused(request_: bytes) -> None:
    with pytest.raises(MalformedError, match="certificate request"):
        requested_key(request_)


def test_a_request_is_bounded_before_it_is_parsed() -> None:
    request = request_for(name="a" * 64)
    padded = request + bytes(MAX_REQUEST_BYTES)
    with pytest.raises(MalformedError, match="4096 bytes"):
        requested_key(padded)


@given(st.binary(max_size=600))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        requested_key(data)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_request_with_one_wrong_byte_is_refused_or_has_its_key(where: int, value: int) -> None:
    request = bytearray(REQUEST)
    request[where % len(request)] = value
    with contextlib.suppress(MalformedError):
        assert requested_key(bytes(request)) == requested_key(REQUEST)


REQUEST = request_for()
