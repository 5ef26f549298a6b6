"""Which keys and certificates a server has, and until when: what `quantfleet-server keys show` prints."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from quantization.errors import ConfigurationError, NotFoundError
from server.home_folder import HomeFolder
from server.keys import ROLES
from server.pem import hosts_of, parse_certificate, serial_of


@dataclass(frozen=True, slots=True)
class KeyLine:
    """One role's metadata, or one certificate.

    Attributes:
        kind: "metadata" or "certificate".
        name: Of the role, or whom the certificate names.
        detail: Version and keys of a role; fingerprint, hosts or serial number of a certificate.
        expires_at_seconds: In seconds since 1970 (UTC).
    """

    kind: str
    name: str
    detail: str
    expires_at_seconds: float

    def to_json(self) -> dict[str, str | float]:
        """Return the line as an object."""
        return asdict(self)

    def cells(self, now_seconds: float) -> tuple[str, str, str, str]:
        """Return the line as cells of a table."""
        end = datetime.fromtimestamp(self.expires_at_seconds, UTC)
        days = (self.expires_at_seconds - now_seconds) / 86400
        rest = f"{days:.0f} days" if days > 0 else "EXPIRED"
        return self.kind, self.name, f"{end:%Y-%m-%d} ({rest})", self.detail


def key_report(home: HomeFolder) -> tuple[KeyLine, ...]:
    """Return a line for each role and certificate.

    Raises:
        NotFoundError: There are none; make them with `keys init`.
        ConfigurationError: One is damaged.
    """
    return (*_roles(home), *_certificates(home))


def _roles(home: HomeFolder) -> list[KeyLine]:
    root = _signed(home, "root")
    lines = []
    for role in ROLES:
        signed = _signed(home, role)
        keys = root.roles[role]
        ids = ", ".join(sorted(key[:16] for key in keys.keyids))
        detail = f"version {signed.version}, {keys.threshold} of {len(keys.keyids)} keys: {ids}"
        lines.append(KeyLine("metadata", role, detail, signed.expires.timestamp()))
    return lines


def _signed(home: HomeFolder, role: str) -> Any:  # noqa: ANN401 - whatever the role's file holds
    try:
        return Metadata[Any].from_bytes(home.metadata.read(role)).signed
    except NotFoundError as error:
        raise NotFoundError(f"{error}; make it with `quantfleet-server keys init`") from error
    except RepositoryError as error:
        raise ConfigurationError(
            f"{role} in {home.metadata.path} is damaged ({error}); restore it"
        ) from error


def _certificates(home: HomeFolder) -> list[KeyLine]:
    pki = home.pki()
    authority, server = parse_certificate(pki.authority_pem()), pki.server_certificate()
    lines = [
        _line("authority", f"fingerprint {pki.authority().fingerprint}", authority),
        _line("server", ", ".join(hosts_of(server)), server),
    ]
    for name in pki.operators():
        certificate = pki.operator_certificate(name)
        lines.append(_line(f"operator {name}", f"serial {serial_of(certificate)}", certificate))
    return lines


def _line(name: str, detail: str, certificate: x509.Certificate) -> KeyLine:
    return KeyLine("certificate", name, detail, certificate.not_valid_after_utc.timestamp())
