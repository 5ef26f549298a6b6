"""The folder with the authority's, the server's and the operators' keys and certificates.

    ca.key ca.crt                 the authority; whoever has the key can name anybody
    server.key server.crt         what the server shows
    operators/<name>/             operator.key, operator.crt, ca.crt: to be taken to where the operator works
    operators/<name>/earlier/     <serial>.crt: certificates from before a renewal that have not expired

The rules:

1. Keys have mode 600 and the folder 700, from the moment they are there. Files appear whole.
2. A key is there before the certificate that names it. A certificate that is renewed keeps its key, so that no moment
   has two that do not belong together.
3. An operator's certificate that was renewed stays good where the operator works until it expires, so it is kept here:
   whoever revokes the operator revokes all of them.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from quantization.errors import ConfigurationError, NotFoundError
from quantization.principal import Principal, Role
from server.certificates import DEFAULT_LIFETIMES, Authority, CertificateLifetimes, Issued
from server.pem import hosts_of, key_to_pem, new_key, parse_certificate, parse_key, principal_of, serial_of
from server.private_files import PRIVATE, PUBLIC, put_file, read_private

SERVER_NAME = "server"
RENEW_AFTER = 2 / 3
"""Part of a certificate's lifetime after which it is renewed."""

_MAX_BYTES = 64 << 10


class PkiFolder:
    """The folder, which need not be there yet."""

    def __init__(self, path: Path | str, lifetimes: CertificateLifetimes = DEFAULT_LIFETIMES) -> None:
        self.path = Path(path)
        self._lifetimes = lifetimes

    @property
    def is_made(self) -> bool:
        """Whether there is an authority."""
        return (self.path / "ca.crt").exists()

    def create(self, *, now_seconds: float) -> Authority:
        """Return a new authority, once it is stored.

        Raises:
            ConfigurationError: There is one already, or the folder cannot be written.
        """
        if self.is_made:
            raise ConfigurationError(f"{self.path} holds an authority already; every device trusts that one")
        authority = Authority.create(now_seconds=now_seconds, lifetimes=self._lifetimes)
        self._put("ca.key", authority.key_pem, PRIVATE)
        self._put("ca.crt", authority.certificate_pem, PUBLIC)
        return authority

    def authority(self) -> Authority:
        """Return the authority.

        Raises:
            NotFoundError: There is none.
            ConfigurationError: It is damaged, or others may read its key.
        """
        key, certificate = self._read_private("ca.key"), self._read("ca.crt")
        try:
            return Authority.parse(key, certificate, self._lifetimes)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{self.path / 'ca.key'} or ca.crt: {error}; restore the folder"
            ) from error

    def authority_pem(self) -> bytes:
        """Return the authority's certificate; errors are those of `authority`."""
        return self._read("ca.crt")

    def authority_expires_at_seconds(self) -> float:
        """Return when the authority's certificate ends, in seconds since 1970 (UTC); errors as above."""
        return self._parse("ca.crt").not_valid_after_utc.timestamp()

    def issue_server(self, hosts: Sequence[str], *, now_seconds: float) -> Issued:
        """Return a new certificate of the server, once it is stored; its key is made where it is not there.

        Args:
            hosts: DNS names and IP addresses that devices reach it by.
            now_seconds: Seconds since 1970 (UTC).

        Raises:
            NotFoundError: There is no authority.
            ConfigurationError: A host is none, or the folder cannot be written.
        """
        authority = self.authority()
        key = self._key(self.path / "server.key")
        issued = authority.issue_server(SERVER_NAME, hosts, key.public_key(), now_seconds=now_seconds)
        self._put("server.crt", issued.certificate_pem, PUBLIC)
        return issued

    def server_pair(self) -> tuple[bytes, bytes]:
        """Return the server's key and certificate; errors are those of `authority`."""
        return self._read_private("server.key"), self._read("server.crt")

    def server_certificate(self) -> x509.Certificate:
        """Return the server's certificate; errors are those of `authority`."""
        return self._parse("server.crt")

    def refresh(self, *, now_seconds: float) -> tuple[str, ...]:
        """Renew what is here and whose lifetime is mostly over; return the URIs of those that were renewed.

        Raises:
            NotFoundError: There is no authority.
            ConfigurationError: Something is damaged, or the folder cannot be written.
        """
        renewed = []
        if (self.path / "server.crt").exists() and _is_due(self._parse("server.crt"), now_seconds):
            hosts = hosts_of(self._parse("server.crt"))
            renewed.append(self.issue_server(hosts, now_seconds=now_seconds).principal.uri)
        for name in self.operators():
            file = f"operators/{name}/operator.crt"
            if _is_due(self._parse(file), now_seconds):
                renewed.append(self._sign_operator(name, now_seconds).principal.uri)
        return tuple(renewed)

    def issue_operator(self, name: str, *, now_seconds: float) -> Path:
        """Return the folder of a new operator, once it is stored.

        Raises:
            MalformedError: The name is none.
            NotFoundError: There is no authority.
            ConfigurationError: There is an operator of that name, or the folder cannot be written.
        """
        principal = Principal(Role.OPERATOR, name)
        folder = self.operator_folder(principal.name)
        if (folder / "operator.crt").exists():
            raise ConfigurationError(
                f"{folder} holds operator '{name}' already; `keys revoke {name}` first, or choose another name"
            )
        self._sign_operator(name, now_seconds)
        return folder

    def operator_folder(self, name: str) -> Path:
        """Return where an operator's files are, or would be."""
        return self.path / "operators" / Principal(Role.OPERATOR, name).name

    def operators(self) -> tuple[str, ...]:
        """Return the names of the operators whose files are here, in order."""
        found = (self.path / "operators").glob("*/operator.crt")
        return tuple(sorted(path.parent.name for path in found))

    def operator_certificate(self, name: str) -> x509.Certificate:
        """Return an operator's certificate.

        Raises:
            NotFoundError: It is not here.
            ConfigurationError: It is damaged, or somebody else's.
        """
        return self._of_operator(name, "operator.crt")

    def operator_certificates(self, name: str) -> tuple[x509.Certificate, ...]:
        """Return an operator's certificate and those from before its renewals; errors are those of one of them."""
        earlier = sorted((self.operator_folder(name) / "earlier").glob("*.crt"))
        kept = (self._of_operator(name, f"earlier/{path.name}") for path in earlier)
        return (self.operator_certificate(name), *kept)

    def remove_operator(self, name: str) -> None:
        """Remove an operator's files, if they are here."""
        shutil.rmtree(self.operator_folder(name), ignore_errors=True)

    def _sign_operator(self, name: str, now_seconds: float) -> Issued:
        authority, folder = self.authority(), self.operator_folder(name)
        key = self._key(folder / "operator.key")
        principal = Principal(Role.OPERATOR, name)
        issued = authority.issue(principal, key.public_key(), now_seconds=now_seconds)
        self._keep_earlier(name, now_seconds)
        put_file(folder / "ca.crt", authority.certificate_pem, PUBLIC)
        put_file(folder / "operator.crt", issued.certificate_pem, PUBLIC)
        return issued

    def _keep_earlier(self, name: str, now_seconds: float) -> None:
        """Keep the certificate that is about to be replaced, and forget those that have expired."""
        folder = self.operator_folder(name)
        if not (folder / "operator.crt").exists():
            return
        current = self.operator_certificate(name)
        put_file(folder / "earlier" / f"{serial_of(current)}.crt", current.public_bytes(Encoding.PEM), PUBLIC)
        for certificate in self.operator_certificates(name)[1:]:
            if certificate.not_valid_after_utc.timestamp() < now_seconds:
                (folder / "earlier" / f"{serial_of(certificate)}.crt").unlink(missing_ok=True)

    def _of_operator(self, name: str, file: str) -> x509.Certificate:
        path = f"operators/{Principal(Role.OPERATOR, name).name}/{file}"
        certificate = self._parse(path)
        if principal_of(certificate) != Principal(Role.OPERATOR, name):
            raise ConfigurationError(f"{self.path / path} names {principal_of(certificate).uri}")
        return certificate

    def _key(self, path: Path) -> EllipticCurvePrivateKey:
        try:
            return parse_key(read_private(path, _MAX_BYTES))
        except FileNotFoundError:
            key = new_key()
            put_file(path, key_to_pem(key), PRIVATE)
            return key
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from error

    def _put(self, name: str, data: bytes, mode: int) -> None:
        put_file(self.path / name, data, mode)

    def _parse(self, name: str) -> x509.Certificate:
        try:
            return parse_certificate(self._read(name))
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.path / name}: {error}; restore it") from error

    def _read_private(self, name: str) -> bytes:
        try:
            return read_private(self.path / name, _MAX_BYTES)
        except FileNotFoundError as error:
            raise self._missing(name) from error

    def _read(self, name: str) -> bytes:
        path = self.path / name
        try:
            with path.open("rb") as file:
                return file.read(_MAX_BYTES)
        except FileNotFoundError as error:
            raise self._missing(name) from error
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read ({error.strerror})") from error

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"{self.path / name} is missing; make it with `quantfleet-server keys init`")


def _is_due(certificate: x509.Certificate, now_seconds: float) -> bool:
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return now_seconds >= start + RENEW_AFTER * (end - start)
