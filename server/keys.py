"""Private keys of The Update Framework's roles, in folders.

The rules:

1. A folder holds the keys of some roles, and a host holds the folders it needs: `root` and `targets` stay offline, on
   whatever machine their owner trusts; `snapshot` and `timestamp` are on the server, because they are signed every day.
2. A key is Ed25519, in a file of its own that only its owner reads: `<role>.<first 16 digits of the key's id>.pem`
   (PKCS #8), encrypted where a passphrase is given.
3. A key that was replaced stays in the folder until `remove`: a new root must be signed by the old keys too.

Format and algorithms are those of `cryptography` and `securesystemslib`; nothing here computes with keys.
"""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from quantization.errors import ConfigurationError, NotFoundError

ROLES = ("root", "targets", "snapshot", "timestamp")
OFFLINE_ROLES = ("root", "targets")
ONLINE_ROLES = ("snapshot", "timestamp")

_ID_DIGITS = 16
_MAX_KEY_BYTES = 1 << 14


class KeyFolder:
    """The keys of some roles; made where it is not there, for its owner alone."""

    def __init__(self, path: Path | str, passphrase: str | None = None) -> None:
        """Open the folder.

        Args:
            path: The folder.
            passphrase: What the keys' files are encrypted with; None where they are not.

        Raises:
            ConfigurationError: If the folder cannot be made, or others may read it.
        """
        self.path = Path(path)
        self._passphrase = passphrase.encode() if passphrase else None
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            mode = self.path.stat().st_mode
        except OSError as error:
            raise ConfigurationError(f"key folder {self.path} cannot be made ({error.strerror})") from error
        if mode & 0o077:
            raise ConfigurationError(
                f"key folder {self.path} is open to others (mode {mode & 0o777:o}); chmod 700 it"
            )

    def generate(self, role: str) -> CryptoSigner:
        """Return a new key of a role, once it is stored.

        Raises:
            ConfigurationError: If there is no such role, or the folder cannot be written.
        """
        _check_role(role)
        private = Ed25519PrivateKey.generate()
        signer = CryptoSigner(private)
        cipher: KeySerializationEncryption = NoEncryption()
        if self._passphrase is not None:
            cipher = BestAvailableEncryption(self._passphrase)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher)
        path = self._path(role, signer.public_key.keyid)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigurationError(f"key {path} cannot be written ({error.strerror})") from error
        return signer

    def key_ids(self, role: str) -> tuple[str, ...]:
        """Return the first digits of the ids of a role's keys that are here, in order."""
        _check_role(role)
        return tuple(sorted(path.name.split(".")[1] for path in self.path.glob(f"{role}.*.pem")))

    def signer(self, role: str, key_id: str) -> CryptoSigner:
        """Return the key of that id.

        Raises:
            NotFoundError: It is not in this folder.
            ConfigurationError: It cannot be read, or needs another passphrase.
        """
        _check_role(role)
        path = self._path(role, key_id)
        try:
            with path.open("rb") as file:
                pem = file.read(_MAX_KEY_BYTES)
        except FileNotFoundError as error:
            raise NotFoundError(f"key {path.name} is not in {self.path}") from error
        except OSError as error:
            raise ConfigurationError(f"key {path} cannot be read ({error.strerror})") from error
        try:
            private = load_pem_private_key(pem, self._passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(
                f"key {path} cannot be opened: it is damaged, or encrypted with another passphrase, or with none"
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigurationError(f"key {path} is not an Ed25519 key")
        signer = CryptoSigner(private)
        if signer.public_key.keyid[:_ID_DIGITS] != key_id[:_ID_DIGITS]:
            raise ConfigurationError(f"key {path} is another key than its name says")
        return signer

    def remove(self, role: str, key_id: str) -> None:
        """Remove a key that no metadata names any more, if it is here."""
        _check_role(role)
        self._path(role, key_id).unlink(missing_ok=True)

    def _path(self, role: str, key_id: str) -> Path:
        digits = key_id[:_ID_DIGITS]
        if len(digits) != _ID_DIGITS or any(digit not in "0123456789abcdef" for digit in digits):
            raise ConfigurationError(f"{key_id[:80]!r} is not the id of a key")
        return self.path / f"{role}.{digits}.pem"


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise ConfigurationError(f"no role {role[:80]!r}; there are {', '.join(ROLES)}")
