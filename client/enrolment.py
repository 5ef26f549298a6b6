"""How a device gets its identity, keeps it, and renews it.

The rules:

1. The private key is made here and never leaves; it is on the disk before the server hears of its public half, so
   that a device that dies in between asks again with the same key, for which the token is still good.
2. `service.json` is written last and removed first: a device that is killed at any moment has a whole identity or
   none. An old identity stays until the server has given a new one.
3. A renewal replaces one file, all at once.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from client.credentials import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    ROOT,
    SERVICE,
    ClientCredentials,
    check_address,
    check_private,
    identity_folder,
    parse_key,
)
from client.disk import Disk, replace_file, unwritable
from client.enrolment_calls import CALL_SECONDS, Enrolled, enrol, renewed_certificate
from client.folder_lock import Access, FolderLock
from client.supernode_key import PRIVATE_KEY, PUBLIC_KEY, supernode_keys
from quantization.enrolment_token import EnrolmentToken
from quantization.errors import ConfigurationError, NotFoundError
from quantization.principal import check_principal_name

PENDING_KEY = "enrolment.key"
"""The key of an enrolment that has not ended."""

_MAX_KEY_BYTES = 16 << 10
_DISK = Disk()


def enroll(
    state: Path | str,
    address: str,
    token: str,
    device: str | None = None,
    *,
    again: bool = False,
    disk: Disk = _DISK,
    clock: Callable[[], float] = time.time,
    timeout_seconds: float = CALL_SECONDS,
) -> ClientCredentials:
    """Return the identity that a token gives, once it is in the state folder for good.

    Args:
        state: The state folder, made if need be.
        address: Host and port of the enrolment service.
        token: From the operator, as `quantfleet-server devices token` prints it.
        device: What the device wants to be called; None where the token says it.
        again: Replace an identity that is still good; one that has expired is replaced anyway.
        disk: Does whatever changes the folder.
        clock: Seconds since 1970 (UTC).
        timeout_seconds: For each of three connections.

    Raises:
        ConfigurationError: There is an identity already, or the folder cannot be written.
        MalformedError: The token or the name is none, or what the server gave cannot be used.
        UnreachableError: The server does not answer; it can be tried again with the same token.
        UnauthenticatedError: The server is another one than the token's, or the token is not good.
        ForbiddenError: The token is for another name, or the name is taken.
    """
    wanted = EnrolmentToken.parse(token)
    check_address(address)
    name = "" if device is None else check_principal_name(device)
    with _locked(identity_folder(state), disk) as folder:
        if not again:
            _refuse_enrolled(folder, clock())
        key = _pending_key(folder, disk)
        given = enrol(address, wanted, key, name, timeout_seconds=timeout_seconds)
        _keep(folder, given, key, disk)
        return ClientCredentials.read(folder)


def renew(
    state: Path | str, *, disk: Disk = _DISK, timeout_seconds: float = CALL_SECONDS
) -> ClientCredentials:
    """Return the identity with a new certificate, once that is in the state folder for good.

    Raises:
        NotFoundError: There is no identity.
        ConfigurationError: It is damaged, or the folder cannot be written; the old certificate stays.
        UnreachableError: The server does not answer, or the device has just got a certificate.
        UnauthenticatedError: The device was revoked.
        MalformedError: What the server gave cannot be used.
    """
    with _locked(identity_folder(state), disk) as folder:
        certificate = renewed_certificate(ClientCredentials.read(folder), timeout_seconds=timeout_seconds)
        replace_file(disk, folder / CERTIFICATE, certificate)
        return ClientCredentials.read(folder)


def _keep(folder: Path, given: Enrolled, key: EllipticCurvePrivateKey, disk: Disk) -> None:
    """Make this the identity; there is none while its parts are written."""
    private, public = supernode_keys(_pem(key))
    try:
        disk.remove(folder / SERVICE)
        disk.sync(folder)
        replace_file(disk, folder / KEY, _pem(key), is_private=True)
        disk.remove(folder / PENDING_KEY)
    except OSError as error:
        raise unwritable(folder / KEY, error) from error
    replace_file(disk, folder / PRIVATE_KEY, private, is_private=True)
    replace_file(disk, folder / PUBLIC_KEY, public)
    replace_file(disk, folder / AUTHORITY, given.authority_pem)
    replace_file(disk, folder / ROOT, given.root)
    replace_file(disk, folder / CERTIFICATE, given.certificate_pem)
    replace_file(disk, folder / SERVICE, given.service.to_bytes())


def _pending_key(folder: Path, disk: Disk) -> EllipticCurvePrivateKey:
    """Return the key to enrol, which is on the disk: that of an attempt before, if one was cut off, else a new one."""
    pending = folder / PENDING_KEY
    candidates = [pending] if (folder / SERVICE).exists() else [pending, folder / KEY]
    for path in candidates:
        if path.exists():
            check_private(path)
            with path.open("rb") as file:
                key = parse_key(file.read(_MAX_KEY_BYTES))
            break
    else:
        path, key = folder, generate_private_key(SECP256R1())
    if path != pending:
        replace_file(disk, pending, _pem(key), is_private=True)
    return key


def _refuse_enrolled(folder: Path, now_seconds: float) -> None:
    try:
        known = ClientCredentials.read(folder)
    except NotFoundError:
        return
    if now_seconds < known.expires_at_seconds:
        raise ConfigurationError(
            f"{folder} holds the identity of device '{known.device}' already; enrol it again (--again) only with a new "
            "token for its name"
        )


@contextmanager
def _locked(folder: Path, disk: Disk) -> Iterator[Path]:
    """Yield the folder, open to its owner alone and to one process at a time."""
    try:
        if not folder.is_dir():
            disk.make_folder(folder)
        folder.chmod(0o700)
    except OSError as error:
        raise unwritable(folder, error) from error
    lock = FolderLock(folder, Access.OWNER)
    try:
        yield folder
    finally:
        lock.close()


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
