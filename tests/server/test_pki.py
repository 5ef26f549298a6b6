"""Keys and certificates in real files."""

import stat
from pathlib import Path

import pytest

from quantization.errors import ConfigurationError, MalformedError, NotFoundError
from quantization.principal import Principal, Role
from server.certificates import CertificateLifetimes
from server.operator_credentials import OperatorCredentials
from server.pem import hosts_of, parse_certificate, parse_key, principal_of, serial_of
from server.pki import PkiFolder

NOW = 1_800_000_000.0
DAY = 86_400.0


@pytest.fixture
def pki(tmp_path: Path) -> PkiFolder:
    folder = PkiFolder(tmp_path / "pki")
    folder.create(now_seconds=NOW)
    folder.issue_server(["127.0.0.1"], now_seconds=NOW)
    folder.issue_operator("ana", now_seconds=NOW)
    return folder


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_keys_are_for_their_owner_alone(pki: PkiFolder) -> None:
    assert stat.S_IMODE(pki.path.stat().st_mode) == 0o700
    found = modes(pki.path)
    keys = {name: mode for name, mode in found.items() if name.endswith(".key")}
    assert set(keys) == {"ca.key", "server.key", "operators/ana/operator.key"}
    assert set(keys.values()) == {0o600}
    assert {name for name in found if name.endswith(".crt")} == {
        "ca.crt", "server.crt", "operators/ana/operator.crt", "operators/ana/ca.crt"
    }  # fmt: skip


def test_the_second_authority_is_refused(pki: PkiFolder) -> None:
    with pytest.raises(ConfigurationError, match="holds an authority already"):
        pki.create(now_seconds=NOW)


def test_what_is_missing_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="keys init"):
        PkiFolder(tmp_path / "pki").authority()


def test_a_key_that_others_may_read_is_refused(pki: PkiFolder) -> None:
    (pki.path / "ca.key").chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        pki.authority()


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_damaged_authority_is_a_clear_error(pki: PkiFolder, name: str) -> None:
    (pki.path / name).write_bytes(b"\0" * 100)
    with pytest.raises(ConfigurationError, match=r"ca\.key"):
        pki.authority()


def test_a_renewed_server_keeps_key_and_hosts(pki: PkiFolder) -> None:
    key, before = pki.server_pair()
    assert pki.refresh(now_seconds=NOW + 100 * DAY) == ()
    assert pki.server_pair() == (key, before)
    late = NOW + 300 * DAY
    assert set(pki.refresh(now_seconds=late)) == {"quantfleet://server/server", "quantfleet://operator/ana"}
    key_after, after = pki.server_pair()
    assert key_after == key
    certificate = parse_certificate(after)
    assert hosts_of(certificate) == ("127.0.0.1",)
    assert certificate.not_valid_after_utc.timestamp() == late + 397 * DAY
    assert certificate.public_key() == parse_key(key).public_key()
    assert pki.refresh(now_seconds=late) == ()


def test_an_operator_reads_what_was_made(pki: PkiFolder) -> None:
    read = OperatorCredentials.read(pki.operator_folder("ana"))
    assert read.name == "ana"
    assert read.authority_pem == pki.authority_pem()
    assert pki.operators() == ("ana",)
    assert principal_of(pki.operator_certificate("ana")) == Principal(Role.OPERATOR, "ana")
    assert "PRIVATE" not in repr(read)


def test_certificates_from_before_a_renewal_are_known_until_they_expire(pki: PkiFolder) -> None:
    first = serial_of(pki.operator_certificate("ana"))
    pki.refresh(now_seconds=NOW + 300 * DAY)
    second = serial_of(pki.operator_certificate("ana"))
    assert [serial_of(one) for one in pki.operator_certificates("ana")] == [second, first]
    pki.refresh(now_seconds=NOW + 600 * DAY)  # the first one has expired, the second one is good for a while
    third = serial_of(pki.operator_certificate("ana"))
    assert [serial_of(one) for one in pki.operator_certificates("ana")] == [third, second]
    assert pki.operators() == ("ana",)


def test_an_operator_is_made_once(pki: PkiFolder) -> None:
    with pytest.raises(ConfigurationError, match="holds operator 'ana' already"):
        pki.issue_operator("ana", now_seconds=NOW)
    first = serial_of(pki.operator_certificate("ana"))
    key = (pki.operator_folder("ana") / "operator.key").read_bytes()
    pki.remove_operator("ana")
    pki.issue_operator("ana", now_seconds=NOW)
    assert serial_of(pki.operator_certificate("ana")) != first
    assert (pki.operator_folder("ana") / "operator.key").read_bytes() != key


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "."])
def test_an_operator_s_name_is_no_path(pki: PkiFolder, name: str) -> None:
    with pytest.raises(MalformedError):
        pki.issue_operator(name, now_seconds=NOW)


def test_a_device_s_folder_is_no_operator_s(pki: PkiFolder) -> None:
    folder = pki.operator_folder("ana")
    key = parse_key((folder / "operator.key").read_bytes()).public_key()
    issued = pki.authority().issue(Principal(Role.DEVICE, "ana"), key, now_seconds=NOW)
    (folder / "operator.crt").write_bytes(issued.certificate_pem)
    with pytest.raises(ConfigurationError, match="quantfleet://device/ana"):
        OperatorCredentials.read(folder)
    with pytest.raises(ConfigurationError, match="quantfleet://device/ana"):
        pki.operator_certificate("ana")


def test_an_operator_s_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="keys operator"):
        OperatorCredentials.read(tmp_path)


def test_lifetimes_are_those_of_the_settings(tmp_path: Path) -> None:
    folder = PkiFolder(
        tmp_path / "pki", CertificateLifetimes(authority=100, server=10, operator=20, device=5)
    )
    authority = folder.create(now_seconds=NOW)
    assert folder.authority_expires_at_seconds() == NOW + 100 * DAY
    assert folder.issue_server(["a"], now_seconds=NOW).not_after_seconds == NOW + 10 * DAY
    folder.issue_operator("ana", now_seconds=NOW)
    assert folder.operator_certificate("ana").not_valid_after_utc.timestamp() == NOW + 20 * DAY
    key = parse_key(folder.server_pair()[0]).public_key()
    issued = authority.issue(Principal(Role.DEVICE, "a"), key, now_seconds=NOW)
    assert issued.not_after_seconds == NOW + 5 * DAY


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        PkiFolder(tmp_path / "file").create(now_seconds=NOW)


def test_no_half_file_is_left_where_writing_fails(pki: PkiFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = pki.server_pair()
    monkeypatch.setattr("server.private_files.os.fsync", fail)
    with pytest.raises(ConfigurationError, match="No space left"):
        pki.issue_server(["other"], now_seconds=NOW)
    assert pki.server_pair() == before
    assert [path.name for path in pki.path.iterdir() if path.name.startswith(".")] == []
