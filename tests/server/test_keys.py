"""Keys in real files."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from quantization.errors import ConfigurationError, NotFoundError
from server.keys import ROLES, KeyFolder


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_key_is_read_back(tmp_path: Path, passphrase: str | None) -> None:
    made = KeyFolder(tmp_path / "keys", passphrase).generate("root")
    key_id = made.public_key.keyid
    again = KeyFolder(tmp_path / "keys", passphrase)
    assert again.key_ids("root") == (key_id[:16],)
    signature = again.signer("root", key_id).sign(b"data")
    made.public_key.verify_signature(signature, b"data")


def test_only_its_owner_reads_a_key(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path / "keys")
    folder.generate("targets")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()] == [0o600]


def test_a_folder_that_others_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys").chmod(0o750)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        KeyFolder(tmp_path / "keys")


@pytest.mark.parametrize("wrong", [None, "wrong horse"])
def test_another_passphrase_opens_nothing(tmp_path: Path, wrong: str | None) -> None:
    key_id = KeyFolder(tmp_path / "keys", "correct horse").generate("root").public_key.keyid
    (path,) = (tmp_path / "keys").iterdir()
    assert b"ENCRYPTED" in path.read_bytes()
    with pytest.raises(ConfigurationError, match="another passphrase"):
        KeyFolder(tmp_path / "keys", wrong).signer("root", key_id)


def test_a_key_that_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"root\.abababababababab\.pem is not in"):
        KeyFolder(tmp_path / "keys").signer("root", "ab" * 32)


@pytest.mark.parametrize("role", ["../root", "admin", ""])
def test_there_are_four_roles(tmp_path: Path, role: str) -> None:
    folder = KeyFolder(tmp_path / "keys")
    for use in (folder.generate, folder.key_ids, lambda r: folder.signer(r, "ab" * 32)):
        with pytest.raises(ConfigurationError, match="no role"):
            use(role)
    assert len(ROLES) == 4


@pytest.mark.parametrize("key_id", ["../../../../etc/passwd", "ab", "AB" * 32, ""])
def test_a_key_id_is_never_a_path(tmp_path: Path, key_id: str) -> None:
    with pytest.raises(ConfigurationError, match="not the id of a key"):
        KeyFolder(tmp_path / "keys").signer("root", key_id)


def test_a_key_under_another_keys_name_is_refused(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path / "keys")
    folder.generate("root")
    (path,) = folder.path.iterdir()
    path.rename(folder.path / f"root.{'ab' * 8}.pem")
    with pytest.raises(ConfigurationError, match="another key than its name says"):
        folder.signer("root", "ab" * 32)


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path / "keys")
    pem = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder.path / f"root.{'ab' * 8}.pem").write_bytes(pem)
    with pytest.raises(ConfigurationError, match="not an Ed25519 key"):
        folder.signer("root", "ab" * 32)


def test_a_removed_key_is_gone(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path / "keys")
    key_id = folder.generate("snapshot").public_key.keyid
    folder.remove("snapshot", key_id)
    folder.remove("snapshot", key_id)
    assert folder.key_ids("snapshot") == ()
