"""Enrolment and renewal over a real connection, as a caller of the schema sees them."""

import contextlib
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificate_requests import badly_signed, request_for
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given, settings
from hypothesis import strategies as st
from identified_server import QUICK, IdentifiedServer, identified_server

from protos.quantfleet.v1 import enrolment_pb2 as pb
from protos.quantfleet.v1.enrolment_pb2_grpc import EnrolmentServiceStub, RenewalServiceStub
from quantization.enrolment_token import EnrolmentToken
from quantization.errors import ConfigurationError, QuantFleetError
from server.certificates import Authority
from server.enrolment_service import EnrolmentService, EnrolmentSettings, network
from server.identity_registry import MIN_RENEWAL_SECONDS, IdentityRegistry
from server.pem import principal_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentifiedServer]:
    with identified_server(tmp_path_factory.mktemp("server") / "home") as started:
        yield started


@contextmanager
def enrolment(server: IdentifiedServer) -> Iterator[Any]:
    credentials = grpc.ssl_channel_credentials(server.authority.certificate_pem)
    with grpc.secure_channel(server.enrolment_address, credentials) as channel:
        yield EnrolmentServiceStub(channel)


def secret(server: IdentifiedServer, device: str | None = None) -> str:
    return EnrolmentToken.parse(server.token(device)).secret


def refusal(server: IdentifiedServer, **fields: Any) -> grpc.RpcError:
    with enrolment(server) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Enrol(pb.EnrolRequest(**fields), timeout=20)
    return caught.value


def test_a_device_gets_all_that_it_needs(server: IdentifiedServer) -> None:
    key = generate_private_key(SECP256R1())
    with enrolment(server) as stub:
        answer = stub.Enrol(
            pb.EnrolRequest(secret=secret(server), device="a-1", certificate_request=request_for(key))
        )
    certificate = x509.load_der_x509_certificate(answer.certificate)
    authority = x509.load_der_x509_certificate(answer.authority)
    certificate.verify_directly_issued_by(authority)
    assert certificate.public_key() == key.public_key()
    assert answer.device == principal_of(certificate).name == "a-1"
    assert answer.root == server.home.metadata.read("root", 1)
    assert answer.address == ":" + server.address.rpartition(":")[2]
    device = server.registry.device("a-1")
    assert load_der_public_key(bytes.fromhex(device.public_key)) == key.public_key()
    assert device.openssh_key().startswith("ecdsa-sha2-nistp256 ")
    assert device.openssh_key().endswith(" a-1")


def test_the_authority_is_handed_to_everybody(server: IdentifiedServer) -> None:
    with enrolment(server) as stub:
        answer = stub.FetchAuthority(pb.FetchAuthorityRequest())
    assert (
        x509.load_der_x509_certificate(answer.authority).fingerprint(SHA256()).hex()
        == server.authority.fingerprint
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"certificate_request": b""},
        {"certificate_request": b"x" * 4097},
        {"certificate_request": b"x" * 200_000},
        {"certificate_request": badly_signed(request_for())},
        {"device": "a/b"},
        {"device": ""},
        {"device": "x" * 100_000},
    ],
    ids=["none", "large", "huge", "badly signed", "no name", "nameless", "long name"],
)
def test_what_cannot_be_enrolled_uses_no_token_up(server: IdentifiedServer, fields: dict[str, Any]) -> None:
    said = secret(server)
    good = {"secret": said, "device": "b-1", "certificate_request": request_for()}
    assert refusal(server, **{**good, **fields}).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [token.used_by for token in server.registry.tokens()][-1] is None


def test_statuses_say_what_to_do(server: IdentifiedServer) -> None:
    request = request_for()
    unknown = refusal(server, secret="y" * 43, device="c", certificate_request=request)
    assert unknown.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "ask the operator for a new one" in unknown.details()
    other = refusal(server, secret=secret(server, "c"), device="d", certificate_request=request)
    assert other.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_renewal_keeps_key_and_name(server: IdentifiedServer, tmp_path: Path) -> None:
    before = server.enrolled(tmp_path, "e-1")
    key = generate_private_key(SECP256R1())
    try:
        server.ahead_seconds = MIN_RENEWAL_SECONDS + 1
        with grpc.secure_channel(server.address, before.channel_credentials()) as channel:
            stub = RenewalServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Renew(pb.RenewRequest(certificate_request=request_for(key)))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(grpc.RpcError) as caught:
                stub.Renew(pb.RenewRequest())
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        server.ahead_seconds = 0.0


def test_an_operator_renews_no_device(server: IdentifiedServer) -> None:
    with (
        grpc.secure_channel(server.address, server.operator()) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        RenewalServiceStub(channel).Renew(pb.RenewRequest(certificate_request=request_for()))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_enrolment_is_not_on_the_other_port(server: IdentifiedServer, tmp_path: Path) -> None:
    mine = server.enrolled(tmp_path, "f-1").channel_credentials()
    with grpc.secure_channel(server.address, mine) as channel, pytest.raises(grpc.RpcError) as caught:
        EnrolmentServiceStub(channel).FetchAuthority(pb.FetchAuthorityRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_renewed_server_certificate_is_shown_without_a_restart(
    server: IdentifiedServer, tmp_path: Path
) -> None:
    def shown(address: str) -> str:
        host, _, port = address.rpartition(":")
        return ssl.get_server_certificate((host, int(port)), timeout=20)

    before = shown(server.enrolment_address)
    server.home.pki().issue_server(["127.0.0.1"], now_seconds=server.clock())
    for address in (server.enrolment_address, server.address):
        assert shown(address) != before
        assert shown(address).strip().encode() == server.home.pki().server_pair()[1].strip()
    server.enrolled(tmp_path, "g-1")


def test_one_network_cannot_ask_too_often(tmp_path: Path) -> None:
    few = replace(QUICK, calls_burst=3, calls_per_second=0.001)
    with identified_server(tmp_path / "home", few) as server, enrolment(server) as stub:
        for _ in range(3):
            stub.FetchAuthority(pb.FetchAuthorityRequest())
        with pytest.raises(grpc.RpcError) as caught:
            stub.Enrol(pb.EnrolRequest(secret="y" * 43))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "grpc-retry-pushback-ms" in {key for key, _ in caught.value.trailing_metadata()}


@settings(max_examples=30)
@given(
    st.one_of(st.none(), st.text(max_size=60)),
    st.text(max_size=150),
    st.one_of(st.binary(max_size=400), st.just(request_for())),
)
def test_any_request_is_answered_or_refused(
    fuzzed: EnrolmentService, guess: str | None, device: str, request: bytes
) -> None:
    known = fuzzed._registry.new_token(valid_seconds=60.0, actor="ana").secret
    said = known if guess is None else guess
    with contextlib.suppress(QuantFleetError):
        asked = pb.EnrolRequest(secret=said, device=device, certificate_request=request)
        assert fuzzed._enrol(pb.EnrolRequest.FromString(asked.SerializeToString()), "peer").device == device


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrolmentService]:
    url = f"sqlite:///{tmp_path_factory.mktemp('fuzzed') / 'registry.db'}"
    authority = Authority.create(now_seconds=time.time())
    with IdentityRegistry.open(url) as registry:
        service = EnrolmentService(registry, authority, lambda: b"{}", address=":1", clock=time.time)
        with service:
            yield service


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:10.0.0.1:4000", "10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::1]:4000", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:4000", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4000", "fe80::/64"),
        ("unix:/run/socket", "unix"),
        ("", ""),
    ],
)
def test_calls_are_counted_per_network(peer: str, expected: str) -> None:
    assert network(peer) == expected


@pytest.mark.parametrize("name", EnrolmentSettings.__slots__)
def test_settings_that_stop_the_service_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        EnrolmentSettings(**{name: 0})
