"""What the registry knows of tokens, devices and revoked certificates."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from server.identity_tables import DeviceRow, EnrolmentTokenRow


@dataclass(frozen=True, slots=True)
class Device:
    """A device that was enrolled.

    Attributes:
        name: Its name.
        serial: Serial number of its newest certificate, hex.
        public_key: Its public key, SubjectPublicKeyInfo in DER, hex.
        enrolled_at_seconds: When it was enrolled last, in seconds since 1970 (UTC).
        issued_at_seconds: When its newest certificate was issued.
        not_after_seconds: When that expires.
        revoked_at_seconds: When it was revoked; None if it is good.
    """

    name: str
    serial: str
    public_key: str
    enrolled_at_seconds: float
    issued_at_seconds: float
    not_after_seconds: float
    revoked_at_seconds: float | None

    def status(self, now_seconds: float) -> str:
        """Return "revoked", "expired" or "enrolled"."""
        if self.revoked_at_seconds is not None:
            return "revoked"
        return "expired" if self.not_after_seconds < now_seconds else "enrolled"

    def openssh_key(self) -> str:
        """Return the public key as OpenSSH and Flower's SuperLink read it, with the name as its comment."""
        key = load_der_public_key(bytes.fromhex(self.public_key))
        return f"{key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()} {self.name}"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token, without its secret.

    Attributes:
        token_id: Its name in the registry and the audit, 16 hex digits.
        device: The name that it is for; None if the device may choose one that is free.
        created_at_seconds: When it was made, in seconds since 1970 (UTC).
        expires_at_seconds: When it ends.
        used_at_seconds: When it was used; None if it was not.
        used_by: The device that used it; None if none did.
    """

    token_id: str
    device: str | None
    created_at_seconds: float
    expires_at_seconds: float
    used_at_seconds: float | None
    used_by: str | None


@dataclass(frozen=True, slots=True)
class Revoked:
    """Whatever is good no more and has not expired.

    Attributes:
        serials: Serial numbers of certificates, hex.
        principals: URIs of devices; no certificate of theirs is good, whatever its number.
    """

    serials: frozenset[str] = frozenset()
    principals: frozenset[str] = frozenset()

    def holds(self, serial: str, uri: str) -> bool:
        """Return whether the certificate, or whom it names, was revoked."""
        return serial in self.serials or uri in self.principals


def device_of(row: DeviceRow) -> Device:
    """Return what a row says."""
    return Device(
        row.name,
        row.serial,
        row.public_key,
        row.enrolled_at_seconds,
        row.issued_at_seconds,
        row.not_after_seconds,
        row.revoked_at_seconds,
    )


def token_record_of(row: EnrolmentTokenRow) -> TokenRecord:
    """Return what a row says, but for the secret's digest."""
    return TokenRecord(
        row.token_id,
        row.device,
        row.created_at_seconds,
        row.expires_at_seconds,
        row.used_at_seconds,
        row.used_by,
    )
