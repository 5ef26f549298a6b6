"""An identity in real files, as enrolment leaves it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from hypothesis import given
from hypothesis import strategies as st

from client.credentials import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    ROOT,
    SERVICE,
    ClientCredentials,
    ServiceFile,
    check_address,
    identity_folder,
)
from client.supernode_key import supernode_keys
from quantization.errors import ConfigurationError, MalformedError, NotFoundError
from quantization.principal import Principal, Role
from server.certificates import Authority
from server.pem import key_to_pem, new_key

NOW = 1_800_000_000.0
DAY = 86_400.0
AUTHORITY_OF_FLEET = Authority.create(now_seconds=NOW)
DEVICE_KEY = new_key()
SERVICE_FILE = ServiceFile("fleet.example.org:9443", "fleet.example.org:9444", "press-7")


def issued(
    name: str = "press-7", role: Role = Role.DEVICE, authority: Authority = AUTHORITY_OF_FLEET
) -> bytes:
    return authority.issue(Principal(role, name), DEVICE_KEY.public_key(), now_seconds=NOW).certificate_pem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = identity_folder(tmp_path)
    made.mkdir()
    (made / KEY).write_bytes(key_to_pem(DEVICE_KEY))
    (made / KEY).chmod(0o600)
    (made / CERTIFICATE).write_bytes(issued())
    (made / AUTHORITY).write_bytes(AUTHORITY_OF_FLEET.certificate_pem)
    (made / ROOT).write_bytes(b"{}")
    (made / SERVICE).write_bytes(SERVICE_FILE.to_bytes())
    return made


def test_an_identity_is_read(folder: Path) -> None:
    read = ClientCredentials.read(folder)
    assert (read.device, read.first_root) == ("press-7", b"{}")
    assert (read.address, read.enrolment_address) == ("fleet.example.org:9443", "fleet.example.org:9444")
    assert read.expires_at_seconds == NOW + 90 * DAY
    assert read.channel_credentials() is not None
    assert "PRIVATE" not in repr(read)
    assert repr(read.key_pem) not in repr(read)


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(folder: Path) -> None:
    read = ClientCredentials.read(folder)
    assert not read.renew_due(NOW)
    assert not read.renew_due(NOW + 59 * DAY)
    assert read.renew_due(NOW + 60 * DAY)
    assert read.renew_due(NOW + 100 * DAY)


def test_without_a_service_file_there_is_no_identity(folder: Path, tmp_path: Path) -> None:
    (folder / SERVICE).unlink()
    with pytest.raises(NotFoundError, match="quantfleet-client enroll"):
        ClientCredentials.read(folder)
    with pytest.raises(NotFoundError):
        ClientCredentials.read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [KEY, CERTIFICATE, AUTHORITY, ROOT])
def test_a_missing_part_is_a_clear_error(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigurationError, match=f"{name} is missing; restore the folder"):
        ClientCredentials.read(folder)


@pytest.mark.parametrize("name", [KEY, CERTIFICATE, AUTHORITY, SERVICE])
@pytest.mark.parametrize("data", [b"", b"\0" * 50, b"{}", b"[1]", b"x" * 70_000], ids=range(5))
def test_a_damaged_part_is_a_clear_error(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(ConfigurationError, match=name):
        ClientCredentials.read(folder)


def test_the_root_is_bounded(folder: Path) -> None:
    (folder / ROOT).write_bytes(b"x" * 600_000)
    with pytest.raises(ConfigurationError, match="larger than 512000 bytes"):
        ClientCredentials.read(folder)


def test_a_key_that_others_may_read_is_refused(folder: Path) -> None:
    (folder / KEY).chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        ClientCredentials.read(folder)


OTHER = Authority.create(now_seconds=NOW)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / KEY).write_bytes(key_to_pem(new_key())), "another key"),
        (lambda folder: (folder / CERTIFICATE).write_bytes(issued(authority=OTHER)), "not signed by"),
        (lambda folder: (folder / AUTHORITY).write_bytes(OTHER.certificate_pem), "not signed by"),
        (lambda folder: (folder / CERTIFICATE).write_bytes(issued("press-8")), "press-8"),
        (lambda folder: (folder / CERTIFICATE).write_bytes(issued(role=Role.OPERATOR)), "operator/press-7"),
    ],
    ids=["key", "certificate", "authority", "name", "role"],
)
def test_parts_that_do_not_belong_together_are_refused(
    folder: Path, change: Callable[[Path], object], said: str
) -> None:
    change(folder)
    with pytest.raises(ConfigurationError, match=said):
        ClientCredentials.read(folder)


def test_an_identity_moves_with_its_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert ClientCredentials.read(tmp_path / "elsewhere") == ClientCredentials.read(folder)


def test_a_service_file_is_read_back() -> None:
    assert ServiceFile.parse(SERVICE_FILE.to_bytes()) == SERVICE_FILE


@given(st.binary(max_size=300))
def test_any_bytes_are_a_service_file_or_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        ServiceFile.parse(data)


@pytest.mark.parametrize(
    "text",
    ['{"format":2}', '{"format":1,"address":1,"enrolment_address":"a:1","device":"a"}', "[" * 5000,
     '{"format":1,"address":"a:1","enrolment_address":"a","device":"a"}',
     '{"format":1,"address":"a:1","enrolment_address":"a:1","device":"a/b"}'],
    ids=["version", "number", "deep", "address", "name"],
)  # fmt: skip
def test_a_service_file_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        ServiceFile.parse(text.encode())


@pytest.mark.parametrize(
    "address", ["", "a", ":1", "a:", "a:0", "a:65536", "a:x", "a:-1", "a" * 400 + ":1", "a:1\n"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(MalformedError, match="not an address"):
        check_address(address)


@pytest.mark.parametrize("address", ["a:1", "[::1]:9443", "10.0.0.1:65535"])
def test_addresses_are_taken(address: str) -> None:
    assert check_address(address) == address


def test_a_supernode_reads_the_device_s_key() -> None:
    private, public = supernode_keys(key_to_pem(DEVICE_KEY))
    assert load_ssh_private_key(private, None).public_key() == DEVICE_KEY.public_key()  # type: ignore[union-attr]
    assert load_ssh_public_key(public) == DEVICE_KEY.public_key()
