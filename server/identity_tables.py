"""The registry's tables of identities. A change here needs a revision in `server/migrations/versions`."""

from sqlalchemy import Double, String
from sqlalchemy.orm import Mapped, mapped_column

from quantization.principal import MAX_NAME_LENGTH
from server.tables import DIGEST_LENGTH, NAME_LENGTH, Base

TOKEN_ID_LENGTH = 16
SERIAL_LENGTH = 40
"""Hex digits of a certificate's serial number, which has 20 bytes at most."""
KEY_LENGTH = 500
"""Hex digits of a public key; one on P-384 has 240."""


class EnrolmentTokenRow(Base):
    """A token for one enrolment; of its secret there is only a digest."""

    __tablename__ = "enrolment_tokens"

    token_id: Mapped[str] = mapped_column(String(TOKEN_ID_LENGTH), primary_key=True)
    secret_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    device: Mapped[str | None] = mapped_column(String(MAX_NAME_LENGTH))
    created_at_seconds: Mapped[float] = mapped_column(Double)
    expires_at_seconds: Mapped[float] = mapped_column(Double)
    used_at_seconds: Mapped[float | None] = mapped_column(Double)
    used_by: Mapped[str | None] = mapped_column(String(MAX_NAME_LENGTH))
    used_key: Mapped[str | None] = mapped_column(String(KEY_LENGTH))


class DeviceRow(Base):
    """A device that was enrolled; the fields are those of `server.identity_registry.Device`."""

    __tablename__ = "devices"

    name: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), primary_key=True)
    serial: Mapped[str] = mapped_column(String(SERIAL_LENGTH))
    public_key: Mapped[str] = mapped_column(String(KEY_LENGTH))
    enrolled_at_seconds: Mapped[float] = mapped_column(Double)
    issued_at_seconds: Mapped[float] = mapped_column(Double)
    not_after_seconds: Mapped[float] = mapped_column(Double)
    revoked_at_seconds: Mapped[float | None] = mapped_column(Double, index=True)


class CertificateRow(Base):
    """A certificate that has not expired: of a device, or one of an operator that was revoked."""

    __tablename__ = "certificates"

    serial: Mapped[str] = mapped_column(String(SERIAL_LENGTH), primary_key=True)
    principal: Mapped[str] = mapped_column(String(NAME_LENGTH), index=True)
    not_after_seconds: Mapped[float] = mapped_column(Double)
    revoked_at_seconds: Mapped[float | None] = mapped_column(Double, index=True)
