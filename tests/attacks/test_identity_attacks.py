"""What somebody can try who is not who they say, over real connections to a whole server.

Where a check is ours, a control takes it away and shows that the attack would land; where it is TLS's, a control shows
that the same caller with the right certificate is answered. Of nearly all of them, `test_removed_checks` shows that
the test notices when the attack lands.
"""

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificate_requests import badly_signed, request_for
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP224R1, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding
from identified_server import (
    PATIENCE_SECONDS,
    IdentifiedServer,
    ask_status,
    check,
    eventually,
    identified_server,
    status_of,
)

from client.credentials import ClientCredentials
from client.enrolment import enroll, renew
from protos.quantfleet.v1 import admin_pb2, enrolment_pb2, telemetry_pb2, update_pb2
from protos.quantfleet.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from protos.quantfleet.v1.telemetry_pb2_grpc import TelemetryServiceStub
from protos.quantfleet.v1.update_pb2_grpc import UpdateServiceStub
from quantization.device_class import ARM
from quantization.enrolment_token import EnrolmentToken
from quantization.errors import ForbiddenError, UnauthenticatedError, UnreachableError
from quantization.principal import Principal, Role
from server.certificates import Authority
from server.entries import Model
from server.identity_registry import MIN_RENEWAL_SECONDS
from server.peers import DEVICE_KEY
from server.pem import key_to_pem, new_key, parse_certificate, principal_of
from server.registry import Registry
from server.rollout_registry import RolloutRegistry

DAY = 86_400.0
MODEL, MANIFEST = "a" * 64, "b" * 64
OK = grpc.StatusCode.OK
KNOWN = grpc.StatusCode.NOT_FOUND  # of a model that nobody has
REFUSED_BY_TLS = grpc.StatusCode.UNAVAILABLE
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentifiedServer]:
    with identified_server(tmp_path_factory.mktemp("fleet") / "home") as started:
        publish(started)
        yield started


@pytest.fixture(autouse=True)
def now(server: IdentifiedServer) -> Iterator[None]:
    yield
    server.ahead_seconds = 0.0


def publish(server: IdentifiedServer) -> None:
    """Make a target that devices can watch."""
    url = f"sqlite:///{server.home.path / 'registry.db'}"
    with Registry.open(url) as registry:
        registry.add_model(Model(MODEL, "digits", 10))
        registry.add_device_class(ARM)
    with RolloutRegistry.open(url) as rollouts:
        rollouts.publish(MODEL, "arm", MANIFEST, reason="first", actor="ana")


@dataclass
class Forged:
    """A key and a certificate for it."""

    key_pem: bytes
    certificate_pem: bytes

    def shown_to(self, server: IdentifiedServer) -> grpc.ChannelCredentials:
        return server.shown(self.key_pem, self.certificate_pem)


def certificate(authority: Authority, uri: str, at_seconds: float) -> Forged:
    key = new_key()
    issued = authority.issue(Principal.parse(uri), key.public_key(), now_seconds=at_seconds)
    return Forged(key_to_pem(key), issued.certificate_pem)


# Certificates.


@pytest.mark.parametrize("uri", ["quantfleet://device/press-7", "quantfleet://operator/admin"])
def test_a_certificate_of_another_authority_is_refused(server: IdentifiedServer, uri: str) -> None:
    other = Authority.create(now_seconds=time.time())  # with the same name
    for call in (check, ask_status):
        forged = certificate(other, uri, time.time()).shown_to(server)
        assert call(server.address, forged) is REFUSED_BY_TLS
        genuine = certificate(server.authority, uri, time.time()).shown_to(server)
        assert call(server.address, genuine) is not REFUSED_BY_TLS


def test_control_a_server_that_trusts_another_authority_would_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority.create(now_seconds=time.time())
    monkeypatch.setattr("server.pki.PkiFolder.authority_pem", lambda _self: other.certificate_pem)
    with identified_server(tmp_path / "home") as careless:
        forged = certificate(other, "quantfleet://operator/admin", time.time())
        assert ask_status(careless.address, forged.shown_to(careless)) is OK


@pytest.mark.parametrize("role", ["device", "operator"])
@pytest.mark.parametrize("shift", [-400 * DAY, 2 * DAY], ids=["expired", "not yet valid"])
def test_a_certificate_out_of_its_time_is_refused(server: IdentifiedServer, role: str, shift: float) -> None:
    call, good = (check, KNOWN) if role == "device" else (ask_status, OK)
    uri = f"quantfleet://{role}/press-7"
    late = certificate(server.authority, uri, time.time() + shift).shown_to(server)
    assert call(server.address, late) is REFUSED_BY_TLS
    assert call(server.address, certificate(server.authority, uri, time.time()).shown_to(server)) is good


def test_a_certificate_that_ends_while_connected_is_refused(server: IdentifiedServer, tmp_path: Path) -> None:
    mine = server.enrolled(tmp_path, "ends").channel_credentials()
    request = update_pb2.CheckRequest(device_class="arm", model_digest=bytes.fromhex(MODEL))
    with grpc.secure_channel(server.address, mine) as channel:
        stub = UpdateServiceStub(channel)
        assert stub.Check(request).version == 1
        server.ahead_seconds = 91 * DAY
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(request)
    assert caught.value.code() is UNAUTHENTICATED


def test_a_device_cannot_sign_certificates(server: IdentifiedServer, tmp_path: Path) -> None:
    mine = server.enrolled(tmp_path, "signer")
    signer = Authority.parse(mine.key_pem, mine.certificate_pem)
    forged = certificate(signer, "quantfleet://operator/admin", time.time())
    chain = Forged(forged.key_pem, forged.certificate_pem + mine.certificate_pem)
    for attempt in (forged, chain):
        assert ask_status(server.address, attempt.shown_to(server)) is REFUSED_BY_TLS


def test_no_certificate_is_no_caller(server: IdentifiedServer) -> None:
    bare = grpc.ssl_channel_credentials(server.authority.certificate_pem)
    for call in (check, ask_status):
        assert call(server.address, bare) is REFUSED_BY_TLS
    for path in ("/grpc.health.v1.Health/Check", "/quantfleet.v1.RenewalService/Renew", "/a/b"):
        status = status_of(server.address, bare, lambda channel, path=path: channel.unary_unary(path)(b""))
        assert status is REFUSED_BY_TLS


@pytest.mark.parametrize("which", ["address", "enrolment_address"])
def test_plain_text_is_not_answered(server: IdentifiedServer, which: str) -> None:
    address = getattr(server, which)
    assert check(address, None) is REFUSED_BY_TLS
    assert status_of(address, None, ask_authority) is REFUSED_BY_TLS


def ask_authority(channel: grpc.Channel) -> None:
    EnrolmentServiceStub(channel).FetchAuthority(enrolment_pb2.FetchAuthorityRequest(), timeout=20)


# Roles.


def methods(*modules: Any) -> list[tuple[str, str]]:
    """Return the services' names and their methods, of whole files of the schema."""
    return [
        (service.full_name, method.name)
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def call_any(channel: grpc.Channel, service: str, method: str) -> None:
    """Call a method with an empty request, whatever its kind: all four kinds are one on the wire."""
    call = channel.stream_stream(f"/{service}/{method}")
    for _ in call(iter([b""]), timeout=20):
        pass


ADMIN = methods(admin_pb2)
OF_DEVICES = [*methods(update_pb2, telemetry_pb2), ("quantfleet.v1.RenewalService", "Renew")]


def test_lists_of_methods_are_those_of_the_schema() -> None:
    assert ("quantfleet.v1.AdminService", "Rollback") in ADMIN
    assert ("quantfleet.v1.UpdateService", "FetchBlobs") in OF_DEVICES
    assert len(OF_DEVICES) >= 6


@pytest.fixture(scope="module")
def device(server: IdentifiedServer, tmp_path_factory: pytest.TempPathFactory) -> ClientCredentials:
    return server.enrolled(tmp_path_factory.mktemp("state"), "press-7")


@pytest.mark.parametrize(("service", "method"), ADMIN, ids=[method for _, method in ADMIN])
def test_a_device_makes_no_admin_call(
    server: IdentifiedServer, device: ClientCredentials, service: str, method: str
) -> None:
    mine = device.channel_credentials()
    assert status_of(server.address, mine, lambda channel: call_any(channel, service, method)) is DENIED


@pytest.mark.parametrize(("service", "method"), OF_DEVICES, ids=[method for _, method in OF_DEVICES])
def test_an_operator_is_no_device(server: IdentifiedServer, service: str, method: str) -> None:
    operator = server.operator()
    assert status_of(server.address, operator, lambda channel: call_any(channel, service, method)) is DENIED


def test_control_without_roles_a_device_would_administer(
    server: IdentifiedServer, device: ClientCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask_status(server.address, device.channel_credentials()) is DENIED
    assert check(server.address, server.operator()) is DENIED
    monkeypatch.setattr("server.identity.Identity._named", lambda self, context, _role: self.caller(context))
    assert ask_status(server.address, device.channel_credentials()) is OK
    assert check(server.address, server.operator()) is KNOWN


def test_the_server_s_own_certificate_opens_nothing(server: IdentifiedServer) -> None:
    own = Forged(*server.home.pki().server_pair()).shown_to(server)
    assert check(server.address, own) is REFUSED_BY_TLS
    assert ask_status(server.address, own) is REFUSED_BY_TLS


def test_a_device_in_the_server_s_place_is_not_believed(
    server: IdentifiedServer, device: ClientCredentials, tmp_path: Path
) -> None:
    """Its certificate is the fleet's, but names no host and is not for answering."""
    victim = server.enrolled(tmp_path, "victim")
    with answering(device.key_pem, device.certificate_pem) as (address, calls):
        assert check(address, victim.channel_credentials()) is REFUSED_BY_TLS
        assert calls == []
    with answering(*server.home.pki().server_pair()) as (address, calls):
        assert check(address, victim.channel_credentials()) is grpc.StatusCode.UNIMPLEMENTED
        assert len(calls) == 1


@contextmanager
def answering(key_pem: bytes, certificate_pem: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serve nothing with a certificate of choice; yields the address, and the calls that came."""
    calls: list[str] = []

    class Recorder(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> None:
            calls.append(details.method)

    with futures.ThreadPoolExecutor(2) as executor:
        impostor = grpc.server(executor, [Recorder()])
        credentials = grpc.ssl_server_credentials([(key_pem, certificate_pem)])
        port = impostor.add_secure_port("127.0.0.1:0", credentials)
        impostor.start()
        try:
            yield f"127.0.0.1:{port}", calls
        finally:
            impostor.stop(0).wait()


def test_a_device_reports_and_asks_in_its_own_name_alone(
    server: IdentifiedServer, device: ClientCredentials, tmp_path: Path
) -> None:
    """What it says of itself in metadata is not heard."""
    victim = server.enrolled(tmp_path, "victim-2").channel_credentials()
    claim = ((DEVICE_KEY, "victim-2"),)
    report = telemetry_pb2.TelemetryReport(
        sequence=7,
        model_digest=bytes.fromhex(MODEL),
        device_class="arm",
        manifest_digest=bytes.fromhex(MANIFEST),
        version=1,
    )
    for credentials, reports, stored in ((device.channel_credentials(), [report], 7), (victim, [], 0)):
        with grpc.secure_channel(server.address, credentials) as channel:
            asked = telemetry_pb2.ReportRequest(reports=reports)
            answer = TelemetryServiceStub(channel).Report(asked, metadata=claim, timeout=20)
        assert answer.stored_sequence == stored


# Revocation.


def watch_request() -> update_pb2.WatchRequest:
    return update_pb2.WatchRequest(device_class="arm", model_digest=bytes.fromhex(MODEL))


def test_a_revoked_device_is_refused(server: IdentifiedServer, tmp_path: Path) -> None:
    mine = server.enrolled(tmp_path, "stolen").channel_credentials()
    other = server.enrolled(tmp_path / "other", "kept").channel_credentials()
    assert check(server.address, mine) is KNOWN
    server.registry.revoke_device("stolen", actor="ana")
    assert eventually(lambda: check(server.address, mine) is UNAUTHENTICATED)
    assert check(server.address, other) is KNOWN


def test_a_watch_of_a_revoked_device_ends(server: IdentifiedServer, tmp_path: Path) -> None:
    mine = server.enrolled(tmp_path, "watching").channel_credentials()
    with grpc.secure_channel(server.address, mine) as channel:
        watch = UpdateServiceStub(channel).Watch(watch_request(), timeout=PATIENCE_SECONDS)
        assert next(watch).version == 1
        server.registry.revoke_device("watching", actor="ana")
        with pytest.raises(grpc.RpcError) as caught:
            list(watch)
    assert caught.value.code() is UNAUTHENTICATED


def test_control_without_the_check_the_watch_would_go_on(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.identity_records.Revoked.holds", lambda *_: False)
    mine = server.enrolled(tmp_path, "unnoticed").channel_credentials()
    with grpc.secure_channel(server.address, mine) as channel:
        watch = UpdateServiceStub(channel).Watch(watch_request(), timeout=60)
        next(watch)
        server.registry.revoke_device("unnoticed", actor="ana")
        assert [next(watch).version for _ in range(5)] == [1] * 5
        watch.cancel()
    assert check(server.address, mine) is KNOWN


def test_a_stream_of_blobs_of_a_revoked_device_ends(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def known(_self: object, _opening: object) -> object:
        return None

    monkeypatch.setattr("server.update_service.UpdateService._sender", known)  # so that the stream stays open
    mine = server.enrolled(tmp_path, "fetching").channel_credentials()
    go_on = threading.Event()
    opening = update_pb2.FetchOpening(device_class="arm", model_digest=bytes.fromhex(MODEL))

    def steps() -> Iterator[update_pb2.FetchBlobsRequest]:
        yield update_pb2.FetchBlobsRequest(opening=opening)
        go_on.wait()
        yield update_pb2.FetchBlobsRequest(wanted=update_pb2.BlobWanted(digest=bytes(32)))

    with grpc.secure_channel(server.address, mine) as channel:
        stream = UpdateServiceStub(channel).FetchBlobs(steps(), timeout=60)
        server.registry.revoke_device("fetching", actor="ana")
        assert eventually(lambda: check(server.address, mine) is UNAUTHENTICATED)
        go_on.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
    assert caught.value.code() is UNAUTHENTICATED


def test_a_revoked_device_renews_nothing(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.enrolled(tmp_path, "renewing")
    server.ahead_seconds = MIN_RENEWAL_SECONDS + 1
    server.registry.revoke_device("renewing", actor="ana")
    with pytest.raises(UnauthenticatedError, match="revoked"):
        renew(tmp_path)
    monkeypatch.setattr("server.identity_records.Revoked.holds", lambda *_: False)
    with pytest.raises(UnauthenticatedError, match="revoked"):  # the registry knows by itself
        renew(tmp_path)


def test_the_certificate_of_a_device_that_was_replaced_is_refused(
    server: IdentifiedServer, tmp_path: Path
) -> None:
    lost = server.enrolled(tmp_path / "lost", "replaced").channel_credentials()
    new = server.enrolled(tmp_path / "new", "replaced").channel_credentials()
    assert eventually(lambda: check(server.address, lost) is UNAUTHENTICATED)
    assert check(server.address, new) is KNOWN


def test_a_revoked_operator_is_refused(server: IdentifiedServer) -> None:
    pki = server.home.pki()
    pki.issue_operator("leaver", now_seconds=time.time())
    shown, known = server.operator("leaver"), pki.operator_certificate("leaver")
    assert ask_status(server.address, shown) is OK
    server.registry.revoke_certificate(
        principal_of(known), f"{known.serial_number:x}", known.not_valid_after_utc.timestamp(), actor="ana"
    )
    assert eventually(lambda: ask_status(server.address, shown) is UNAUTHENTICATED)
    assert ask_status(server.address, server.operator()) is OK


# Tokens.


def test_a_token_that_was_used_is_refused(server: IdentifiedServer, tmp_path: Path) -> None:
    token = server.token()
    enroll(tmp_path / "1", server.enrolment_address, token, "first")
    for name in ("first", "second"):
        with pytest.raises(UnauthenticatedError, match="used already"):
            enroll(tmp_path / name, server.enrolment_address, token, name)


def test_an_expired_token_is_refused(server: IdentifiedServer, tmp_path: Path) -> None:
    token = server.token("late", valid_seconds=60.0)
    server.ahead_seconds = 61.0
    with pytest.raises(UnauthenticatedError, match="expired"):
        enroll(tmp_path, server.enrolment_address, token)
    server.ahead_seconds = 0.0  # the control: the same token in its time
    enroll(tmp_path, server.enrolment_address, token)


def test_a_guessed_token_is_refused(server: IdentifiedServer, tmp_path: Path) -> None:
    server.token()  # there is one to guess
    guessed = EnrolmentToken("g" * 43, server.authority.fingerprint).text
    with pytest.raises(UnauthenticatedError, match="unknown"):
        enroll(tmp_path, server.enrolment_address, guessed, "guesser")


def test_control_without_the_comparison_a_guess_would_do(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = EnrolmentToken.parse(server.token("guessed")).secret
    genuine = hashlib.sha256(secret.encode()).hexdigest()
    monkeypatch.setattr("server.enrolment_tokens._digest", lambda _said: genuine)
    guessed = EnrolmentToken("g" * 43, server.authority.fingerprint).text
    assert enroll(tmp_path, server.enrolment_address, guessed).device == "guessed"


def test_a_used_token_brings_no_revoked_device_back(server: IdentifiedServer) -> None:
    """It is good for the same key again, because an answer can be lost; but not after a revocation."""
    request, token = request_for(), server.token()
    assert enrolled_with(server, request, "returning", token)[0] is OK
    assert enrolled_with(server, request, "returning", token)[0] is OK
    server.registry.revoke_device("returning", actor="ana")
    assert enrolled_with(server, request, "returning", token)[0] is UNAUTHENTICATED


def test_a_token_for_another_device_is_refused(server: IdentifiedServer, tmp_path: Path) -> None:
    with pytest.raises(ForbiddenError, match="not for 'other'"):
        enroll(tmp_path, server.enrolment_address, server.token("mine"), "other")


def test_a_free_token_takes_no_name_that_is_taken(
    server: IdentifiedServer, device: ClientCredentials, tmp_path: Path
) -> None:
    with pytest.raises(ForbiddenError, match="already"):
        enroll(tmp_path, server.enrolment_address, server.token(), device.device)


def test_another_fleet_s_server_learns_no_token(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address leads to somebody else, with an authority of the same name."""
    heard: list[str] = []
    listen_to_enrol(monkeypatch, heard)
    with (
        identified_server(tmp_path / "impostor") as impostor,
        pytest.raises((UnauthenticatedError, UnreachableError)) as caught,
    ):
        enroll(tmp_path / "state", impostor.enrolment_address, server.token(), "tricked")
    assert heard == []
    assert "not the one that the token is for" in str(caught.value)


def test_a_token_with_another_fingerprint_is_not_said(server: IdentifiedServer, tmp_path: Path) -> None:
    """Somebody changed it on its way from the operator."""
    tampered = EnrolmentToken(EnrolmentToken.parse(server.token()).secret, "0" * 64)
    with pytest.raises(UnauthenticatedError, match="not the one that the token is for"):
        enroll(tmp_path / "state", server.enrolment_address, tampered.text, "tricked")


def test_control_without_the_fingerprint_an_impostor_would_learn_the_token(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    listen_to_enrol(monkeypatch, heard)
    monkeypatch.setattr("client.enrolment_calls.hmac.compare_digest", lambda *_: True)
    token = server.token()
    with identified_server(tmp_path / "impostor") as impostor, pytest.raises(UnreachableError):
        enroll(tmp_path / "state", impostor.enrolment_address, token, "tricked")
    assert heard == [EnrolmentToken.parse(token).secret]


def test_a_server_that_repeats_the_fleet_s_authority_learns_no_token(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority's certificate is no secret; but an impostor has no certificate that it signed."""
    heard: list[str] = []
    genuine = parse_certificate(server.authority.certificate_pem).public_bytes(Encoding.DER)

    async def repeat(*_: object) -> enrolment_pb2.FetchAuthorityResponse:
        heard.append("asked for the authority")
        return enrolment_pb2.FetchAuthorityResponse(authority=genuine)

    monkeypatch.setattr("server.enrolment_service.EnrolmentService.FetchAuthority", repeat)
    listen_to_enrol(monkeypatch, heard)
    with (
        identified_server(tmp_path / "impostor") as impostor,
        pytest.raises(UnreachableError, match="was not enrolled"),
    ):
        enroll(tmp_path / "state", impostor.enrolment_address, server.token(), "tricked")
    assert heard == ["asked for the authority"]


def listen_to_enrol(monkeypatch: pytest.MonkeyPatch, heard: list[str]) -> None:
    """Have servers that start from now on write down which secrets they hear, and answer nothing."""

    async def listen(_self: object, request: enrolment_pb2.EnrolRequest, _context: object) -> None:
        heard.append(request.secret)

    monkeypatch.setattr("server.enrolment_service.EnrolmentService.Enrol", listen)


# Requests for certificates.


def enrolled_with(
    server: IdentifiedServer, request: bytes, name: str, token: str | None = None
) -> tuple[grpc.StatusCode, bytes]:
    """Return how an enrolment with this request for a certificate ends, and the certificate."""
    answers: list[bytes] = []
    secret = EnrolmentToken.parse(token or server.token(name)).secret

    def call(channel: grpc.Channel) -> None:
        asked = enrolment_pb2.EnrolRequest(secret=secret, device=name, certificate_request=request)
        answers.append(EnrolmentServiceStub(channel).Enrol(asked, timeout=20).certificate)

    bare = grpc.ssl_channel_credentials(server.authority.certificate_pem)
    status = status_of(server.enrolment_address, bare, call)
    return status, answers[0] if answers else b""


def test_a_request_in_another_s_name_gets_one_s_own(server: IdentifiedServer) -> None:
    key = generate_private_key(SECP256R1())
    request = request_for(key, "admin", "quantfleet://operator/admin")
    status, der = enrolled_with(server, request, "modest")
    assert status is OK
    got = x509.load_der_x509_certificate(der)
    assert principal_of(got) == Principal(Role.DEVICE, "modest")
    assert got.subject.rfc4514_string() == "CN=modest"
    assert not got.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    shown = server.shown(key_to_pem(key), got.public_bytes(Encoding.PEM))
    assert ask_status(server.address, shown) is DENIED
    assert check(server.address, shown) is KNOWN


def test_a_request_for_another_s_key_is_refused(
    server: IdentifiedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stolen = badly_signed(request_for())
    assert enrolled_with(server, stolen, "thief")[0] is grpc.StatusCode.INVALID_ARGUMENT
    monkeypatch.setattr(
        "server.enrolment_service.requested_key", lambda request: x509.load_der_x509_csr(request).public_key()
    )
    assert enrolled_with(server, stolen, "thief")[0] is OK  # the control


@pytest.mark.parametrize(
    "key",
    [generate_rsa_key(65537, 1024), generate_rsa_key(65537, 2048), generate_private_key(SECP224R1())],  # noqa: S505
    ids=["weak RSA", "RSA", "small curve"],
)
def test_a_request_with_a_weak_key_is_refused(server: IdentifiedServer, key: Any) -> None:
    assert enrolled_with(server, request_for(key), "weak")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "weak" not in {device.name for device in server.registry.devices()}


@pytest.mark.parametrize("size", [4096, 200_000, 1_000_000], ids=["long", "huge", "larger than a message"])
def test_a_request_that_is_too_large_is_refused(server: IdentifiedServer, size: int) -> None:
    """Nothing is wrong with it but its size."""
    status, _ = enrolled_with(server, request_for(uri="x:" + size * "x"), f"large-{size}")
    assert status in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert f"large-{size}" not in {device.name for device in server.registry.devices()}


@pytest.mark.parametrize(
    "request_",
    [b"\x30\x84\xff\xff\xff\xff" + bytes(4000), bytes(4000)],
    ids=["endless", "zeros"],
)
def test_bytes_that_are_no_request_are_refused(server: IdentifiedServer, request_: bytes) -> None:
    assert enrolled_with(server, request_, "junk")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "junk" not in {device.name for device in server.registry.devices()}


@pytest.mark.parametrize(
    "name", ["../operator/admin", "a/../../operator/admin", "a\nb", "a,URI:quantfleet://operator/admin"]
)
def test_a_name_is_no_path_and_no_second_uri(server: IdentifiedServer, name: str) -> None:
    bare = grpc.ssl_channel_credentials(server.authority.certificate_pem)
    secret = EnrolmentToken.parse(server.token()).secret
    asked = enrolment_pb2.EnrolRequest(secret=secret, device=name, certificate_request=request_for())
    status = status_of(
        server.enrolment_address, bare, lambda channel: EnrolmentServiceStub(channel).Enrol(asked, timeout=20)
    )
    assert status is grpc.StatusCode.INVALID_ARGUMENT
