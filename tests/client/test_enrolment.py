"""Enrolment against a real server, with real files."""

import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from dying_disk import Death, deaths
from identified_server import IdentifiedServer, check, grpc, identified_server

from client.credentials import KEY, SERVICE, ClientCredentials, ServiceFile, identity_folder
from client.disk import Disk
from client.enrolment import PENDING_KEY, enroll, renew
from client.enrolment_calls import Enrolled
from client.supernode_key import PRIVATE_KEY
from quantization.enrolment_token import EnrolmentToken
from quantization.errors import (
    ConfigurationError,
    ForbiddenError,
    MalformedError,
    NotFoundError,
    QuantFleetError,
    UnauthenticatedError,
    UnreachableError,
)
from quantization.principal import Principal, Role
from server.certificates import Authority
from server.identity_registry import MIN_RENEWAL_SECONDS
from server.pem import key_to_pem

DAY = 86_400.0
KNOWN = grpc.StatusCode.NOT_FOUND  # nothing is published to whom the server knows


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentifiedServer]:
    with identified_server(tmp_path_factory.mktemp("server") / "home") as started:
        yield started


@pytest.fixture(autouse=True)
def now(server: IdentifiedServer) -> Iterator[None]:
    yield
    server.ahead_seconds = 0.0


def test_an_enrolled_device_is_known(server: IdentifiedServer, tmp_path: Path) -> None:
    made = enroll(tmp_path, server.enrolment_address, server.token(), "a-1")
    assert made == ClientCredentials.read(identity_folder(tmp_path))
    assert (made.device, made.address) == ("a-1", server.address)
    assert made.first_root == server.home.metadata.read("root", 1)
    assert check(made.address, made.channel_credentials()) is KNOWN


def test_the_private_key_is_for_the_device_alone(server: IdentifiedServer, tmp_path: Path) -> None:
    made = enroll(tmp_path, server.enrolment_address, server.token("a-2"))
    folder = identity_folder(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in (KEY, PRIVATE_KEY):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert not (folder / PENDING_KEY).exists()
    everything = b"".join(path.read_bytes() for path in server.home.path.rglob("*") if path.is_file())
    assert made.key_pem.splitlines()[1] not in everything


def test_an_identity_is_not_replaced_by_mistake(server: IdentifiedServer, tmp_path: Path) -> None:
    first = enroll(tmp_path, server.enrolment_address, server.token("a-3"))
    token = server.token("a-3")
    with pytest.raises(ConfigurationError, match="identity of device 'a-3' already"):
        enroll(tmp_path, server.enrolment_address, token)
    again = enroll(tmp_path, server.enrolment_address, token, again=True)
    assert again.key_pem != first.key_pem
    assert check(server.address, again.channel_credentials()) is KNOWN


def test_an_identity_that_has_expired_is_replaced(server: IdentifiedServer, tmp_path: Path) -> None:
    first = enroll(tmp_path, server.enrolment_address, server.token("a-4"))
    second = enroll(
        tmp_path, server.enrolment_address, server.token("a-4"), clock=lambda: first.expires_at_seconds + 1
    )
    assert second.certificate_pem != first.certificate_pem


def test_a_failed_attempt_leaves_the_old_identity(server: IdentifiedServer, tmp_path: Path) -> None:
    first = enroll(tmp_path, server.enrolment_address, server.token("a-5"))
    wrong = EnrolmentToken("w" * 43, server.authority.fingerprint).text
    with pytest.raises(UnauthenticatedError, match="unknown"):
        enroll(tmp_path, server.enrolment_address, wrong, again=True)
    assert ClientCredentials.read(identity_folder(tmp_path)) == first


def test_another_server_than_the_token_s_hears_no_secret(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    monkeypatch.setattr(
        "server.identity_registry.IdentityRegistry.enrol",
        lambda _self, *arguments, **_: heard.append(arguments),
    )
    secret = EnrolmentToken.parse(server.token()).secret
    other = EnrolmentToken(secret, Authority.create(now_seconds=server.clock()).fingerprint)
    with pytest.raises(UnauthenticatedError, match="not the one that the token is for"):
        enroll(tmp_path, server.enrolment_address, other.text, "a-6")
    assert heard == []


@pytest.mark.parametrize("token", ["", "qft1.a.b", "x" * 100])
def test_what_is_no_token_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(MalformedError, match="not an enrolment token"):
        enroll(tmp_path, "127.0.0.1:1", token, "a")
    assert list(tmp_path.iterdir()) == []


def test_where_nobody_answers_it_can_be_tried_again(server: IdentifiedServer, tmp_path: Path) -> None:
    token = server.token("a-7")
    with pytest.raises(UnreachableError, match="no server answers in TLS"):
        enroll(tmp_path, "127.0.0.1:1", token, timeout_seconds=5)
    key = (identity_folder(tmp_path) / PENDING_KEY).read_bytes()
    assert enroll(tmp_path, server.enrolment_address, token).key_pem == key


def test_a_host_that_the_certificate_does_not_name_is_told(server: IdentifiedServer, tmp_path: Path) -> None:
    before = server.home.pki().server_pair()[1]
    server.home.pki().issue_server(["fleet.example.org"], now_seconds=server.clock())
    try:
        with pytest.raises(UnreachableError, match=r"is for fleet\.example\.org, not for 127\.0\.0\.1"):
            enroll(tmp_path, server.enrolment_address, server.token("a-18"))
    finally:
        (server.home.pki().path / "server.crt").write_bytes(before)


def test_the_other_port_is_told_apart(server: IdentifiedServer, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="a port of its own"):
        enroll(tmp_path, server.address, server.token("a-19"))


def test_refusals_of_the_server_are_told(server: IdentifiedServer, tmp_path: Path) -> None:
    with pytest.raises(ForbiddenError, match="for device 'a-8', not for 'b'"):
        enroll(tmp_path / "1", server.enrolment_address, server.token("a-8"), "b")
    with pytest.raises(MalformedError, match="--device"):
        enroll(tmp_path / "2", server.enrolment_address, server.token())


def test_a_folder_that_cannot_be_made_is_a_clear_error(server: IdentifiedServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        enroll(tmp_path / "file", server.enrolment_address, server.token("a-9"))


def test_of_two_that_enrol_in_one_folder_one_waits_no_harm_done(
    server: IdentifiedServer, tmp_path: Path
) -> None:
    results: list[object] = []
    barrier = threading.Barrier(2)

    def work() -> None:
        token = server.token("a-10")
        barrier.wait()
        try:
            results.append(enroll(tmp_path, server.enrolment_address, token))
        except QuantFleetError as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in results if isinstance(one, ClientCredentials)]) == 1
    assert (
        check(server.address, ClientCredentials.read(identity_folder(tmp_path)).channel_credentials())
        is KNOWN
    )


def test_a_renewal_replaces_the_certificate(server: IdentifiedServer, tmp_path: Path) -> None:
    first = enroll(tmp_path, server.enrolment_address, server.token("a-11"))
    server.ahead_seconds = MIN_RENEWAL_SECONDS + 1
    second = renew(tmp_path)
    assert second.certificate_pem != first.certificate_pem
    assert second.expires_at_seconds > first.expires_at_seconds
    assert (second.key_pem, second.device) == (first.key_pem, first.device)
    assert check(server.address, second.channel_credentials()) is KNOWN
    assert check(server.address, first.channel_credentials()) is KNOWN


def test_a_renewal_too_soon_waits(server: IdentifiedServer, tmp_path: Path) -> None:
    enroll(tmp_path, server.enrolment_address, server.token("a-12"))
    with pytest.raises(UnreachableError, match="just got a certificate") as caught:
        renew(tmp_path)
    assert caught.value.retry_after_seconds > MIN_RENEWAL_SECONDS / 2


def test_without_an_identity_nothing_is_renewed(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="enroll"):
        renew(tmp_path)


def test_a_device_that_is_killed_while_it_enrols_has_a_whole_identity_or_none(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, token, authority = tmp_path / "state", server.token("a-13"), server.authority
    sent: list[bytes] = []

    def given(
        address: str, _token: object, key: EllipticCurvePrivateKey, _name: str, **_: object
    ) -> Enrolled:
        """Answer as the server does, which takes a token's first key alone."""
        sent.append(key_to_pem(key))
        assert len(set(sent)) == 1
        issued = authority.issue(Principal(Role.DEVICE, "a-13"), key.public_key(), now_seconds=server.clock())
        service = ServiceFile(server.address, address, "a-13")
        return Enrolled(service, issued.certificate_pem, authority.certificate_pem, b"{}")

    def prepare() -> None:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        sent.clear()

    monkeypatch.setattr("client.enrolment.enrol", given)
    seen = []
    for death in deaths(prepare, lambda disk: enroll(state, server.enrolment_address, token, disk=disk)):
        try:
            found = ClientCredentials.read(identity_folder(state))
        except NotFoundError:
            found = enroll(state, server.enrolment_address, token)
            seen.append(False)
        else:
            seen.append(True)
        assert found.device == "a-13", death
        assert found.key_pem == sent[-1], death
    assert seen[0] is False
    assert True in seen
    assert len(seen) > 50


def test_a_device_that_is_killed_while_the_server_answers_asks_again(
    server: IdentifiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Death

    token = server.token("a-17")
    with monkeypatch.context() as patch:
        patch.setattr("client.enrolment._keep", die)
        with pytest.raises(Death):
            enroll(tmp_path, server.enrolment_address, token)
    assert server.registry.device("a-17").name == "a-17"
    with pytest.raises(NotFoundError):
        ClientCredentials.read(identity_folder(tmp_path))
    made = enroll(tmp_path, server.enrolment_address, token)
    assert check(server.address, made.channel_credentials()) is KNOWN


def test_a_device_that_is_killed_while_it_renews_keeps_a_good_certificate(
    server: IdentifiedServer, tmp_path: Path
) -> None:
    state, original = tmp_path / "state", tmp_path / "original"
    enroll(original, server.enrolment_address, server.token("a-14"))

    def prepare() -> None:
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(original, state)
        server.ahead_seconds += MIN_RENEWAL_SECONDS + 1

    for death in deaths(prepare, lambda disk: renew(state, disk=disk)):
        found = ClientCredentials.read(identity_folder(state))
        assert check(server.address, found.channel_credentials()) is KNOWN, death


def test_a_key_is_never_open_to_others(server: IdentifiedServer, tmp_path: Path) -> None:
    class Watching(Disk):
        def sync(self, path: Path) -> None:
            if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
                modes.append(stat.S_IMODE(path.stat().st_mode))
            super().sync(path)

    modes: list[int] = []
    enroll(tmp_path, server.enrolment_address, server.token("a-15"), disk=Watching())
    assert len(modes) >= 2
    assert set(modes) == {0o600}


def test_the_name_of_the_service_file_is_what_makes_it_whole(
    server: IdentifiedServer, tmp_path: Path
) -> None:
    order = []

    class Ordered(Disk):
        def rename(self, path: Path, target: Path) -> None:
            order.append(target.name)
            super().rename(path, target)

    enroll(tmp_path, server.enrolment_address, server.token("a-16"), disk=Ordered())
    assert order[0] == PENDING_KEY
    assert order[-1] == SERVICE
