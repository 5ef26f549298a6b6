"""Tokens, devices and revocations in the registry's database.

The rules:

1. Who gets a first certificate is decided in `server.enrolment_tokens`.
2. A name belongs to one key. It changes hands only by a token that was made for this very name, and then all earlier
   certificates of the name are revoked.
3. A renewal keeps the key and the name. A revoked device gets no certificate but by a new token for its name: tokens
   that were made before end with it.
4. Every change adds a row to the audit, with who made it, in the same transaction.
"""

from collections.abc import Callable

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from quantization.errors import ForbiddenError, NotFoundError, OverloadedError, UnauthenticatedError
from quantization.principal import Principal, Role
from server.certificates import Issued
from server.enrolment_tokens import NewToken, add_token, good_token, name_for, name_taken, void_tokens
from server.identity_records import Device, Revoked, TokenRecord, device_of, token_record_of
from server.identity_tables import CertificateRow, DeviceRow, EnrolmentTokenRow
from server.registry_part import RegistryPart

Sign = Callable[[Principal], Issued]
"""Signs a certificate for somebody; called inside a transaction, so it waits for nothing."""

MIN_RENEWAL_SECONDS = 600.0
"""A device gets one certificate in this time at most, by renewal."""


class IdentityRegistry(RegistryPart):
    """Facts about identities; shares its database with `server.registry.Registry`."""

    def new_token(self, *, valid_seconds: float, actor: str, device: str | None = None) -> NewToken:
        """Return a new token; its secret is not kept.

        Args:
            valid_seconds: How long it may be used, 30 days at most.
            actor: Who makes it.
            device: The name that it is for; None if the device may choose one that is free.

        Raises:
            ConfigurationError: The time is none.
            MalformedError: The name is none.
        """
        with self._writing() as session:
            token = add_token(session, valid_seconds=valid_seconds, device=device, now_seconds=self._clock())
            subject = f"token/{token.record.token_id}"
            self._audit(session, "token_created", subject, actor=actor, device=device or "")
        return token

    def enrol(self, secret: str, public_key: str, wanted: str, sign: Sign, *, peer: str = "") -> Issued:
        """Return a certificate for whoever has a good token; the token is then used.

        Args:
            secret: Of the token.
            public_key: Of the device, SubjectPublicKeyInfo in DER, hex; it has the private one.
            wanted: The name that it wants; empty where the token says it.
            sign: Makes the certificate.
            peer: Address of the device, for the audit.

        Raises:
            UnauthenticatedError: The token is unknown, expired, or used with another key.
            ForbiddenError: It is for another name, or the name is taken.
            MalformedError: No name was said, or it is none.
        """
        try:
            with self._writing() as session:
                token = good_token(session, secret, public_key, self._clock())
                name, row = name_for(session, token, wanted)
                device = row or DeviceRow(name=name)  # a new one is refused if another has come meanwhile
                return self._enrol(session, token, device, public_key=public_key, sign=sign, peer=peer)
        except IntegrityError as error:  # another token has taken the name meanwhile
            raise name_taken(wanted) from error

    def renew(self, name: str, serial: str, public_key: str, sign: Sign) -> Issued:
        """Return the next certificate of a device; the one that it has stays good until it expires.

        Args:
            name: Of the device, as its certificate proves it.
            serial: Of that certificate, hex.
            public_key: Of the device, which it has the private one of.
            sign: Makes the certificate.

        Raises:
            UnauthenticatedError: It, or its certificate, was revoked, or it was never enrolled.
            ForbiddenError: It has another key.
            OverloadedError: It has just got one.
        """
        with self._writing() as session:
            row = session.get(DeviceRow, name, with_for_update=True)
            shown = session.get(CertificateRow, serial)
            if row is None:
                raise UnauthenticatedError(
                    f"device '{name}' was never enrolled here; enrol it with a new token"
                )
            if row.revoked_at_seconds is not None or (
                shown is not None and shown.revoked_at_seconds is not None
            ):
                raise UnauthenticatedError(
                    f"device '{name}' was revoked; enrol it with a new token for its name"
                )
            if row.public_key != public_key:
                raise ForbiddenError(f"a renewal keeps the key of device '{name}'; enrol it with a new token")
            now = self._clock()
            wait = row.issued_at_seconds + MIN_RENEWAL_SECONDS - now
            if wait > 0:
                raise OverloadedError(f"device '{name}' has just got a certificate", wait)
            issued = sign(Principal(Role.DEVICE, name))
            self._add_certificate(session, issued)
            row.serial, row.issued_at_seconds = issued.serial, now
            row.not_after_seconds = issued.not_after_seconds
            self._audit(session, "device_renewed", _subject(name), actor=name, serial=issued.serial)
            return issued

    def revoke_device(self, name: str, *, actor: str, reason: str = "") -> Device:
        """Make all certificates of a device worthless; return it as it then stands.

        Raises:
            NotFoundError: There is no such device.
        """
        with self._writing() as session:
            row = session.get(DeviceRow, name, with_for_update=True)
            if row is None:
                raise NotFoundError(
                    f"no device '{name[:200]}' was enrolled; `devices list` names those that were"
                )
            if row.revoked_at_seconds is None:
                row.revoked_at_seconds = self._clock()
                self._revoke_certificates(session, Principal(Role.DEVICE, name), row.revoked_at_seconds)
                void_tokens(session, name, row.revoked_at_seconds)
                self._audit(session, "device_revoked", _subject(name), actor=actor, reason=reason)
            return device_of(row)

    def revoke_certificate(
        self, principal: Principal, serial: str, not_after_seconds: float, *, actor: str, reason: str = ""
    ) -> None:
        """Make one certificate worthless, such as an operator's, which need not be known here."""
        now = self._clock()
        with self._writing() as session:
            row = session.get(CertificateRow, serial, with_for_update=True) or CertificateRow(serial=serial)
            if row.revoked_at_seconds is not None:
                return
            row.principal, row.not_after_seconds = principal.uri, not_after_seconds
            row.revoked_at_seconds = now
            session.add(row)
            subject = f"{principal.role}/{principal.name}"
            self._audit(
                session, f"{principal.role}_revoked", subject, actor=actor, serial=serial, reason=reason
            )

    def revoked(self) -> Revoked:
        """Return whatever is good no more and has not expired."""
        now = self._clock()
        with self._reading() as session:
            serials = session.scalars(
                select(CertificateRow.serial).where(
                    CertificateRow.revoked_at_seconds.is_not(None), CertificateRow.not_after_seconds >= now
                )
            )
            names = session.scalars(
                select(DeviceRow.name).where(
                    DeviceRow.revoked_at_seconds.is_not(None), DeviceRow.not_after_seconds >= now
                )
            )
            return Revoked(frozenset(serials), frozenset(Principal(Role.DEVICE, name).uri for name in names))

    def device(self, name: str) -> Device:
        """Return a device.

        Raises:
            NotFoundError: There is none of that name.
        """
        with self._reading() as session:
            row = session.get(DeviceRow, name)
            if row is None:
                raise NotFoundError(
                    f"no device '{name[:200]}' was enrolled; `devices list` names those that were"
                )
            return device_of(row)

    def devices(self) -> tuple[Device, ...]:
        """Return all devices, by name."""
        with self._reading() as session:
            return tuple(
                device_of(row) for row in session.scalars(select(DeviceRow).order_by(DeviceRow.name))
            )

    def tokens(self) -> tuple[TokenRecord, ...]:
        """Return all tokens that are kept, oldest first."""
        query = select(EnrolmentTokenRow).order_by(
            EnrolmentTokenRow.created_at_seconds, EnrolmentTokenRow.token_id
        )
        with self._reading() as session:
            return tuple(token_record_of(row) for row in session.scalars(query))

    def _enrol(
        self,
        session: Session,
        token: EnrolmentTokenRow,
        device: DeviceRow,
        *,
        public_key: str,
        sign: Sign,
        peer: str,
    ) -> Issued:
        now, name = self._clock(), device.name
        issued = sign(Principal(Role.DEVICE, name))
        self._revoke_certificates(session, issued.principal, now)
        self._add_certificate(session, issued)
        device.serial, device.public_key = issued.serial, public_key
        device.enrolled_at_seconds = device.issued_at_seconds = now
        device.not_after_seconds, device.revoked_at_seconds = issued.not_after_seconds, None
        session.add(device)
        token.used_at_seconds, token.used_by, token.used_key = now, name, public_key
        detail = {"actor": f"token {token.token_id}", "serial": issued.serial, "peer": peer[:200]}
        self._audit(session, "device_enrolled", _subject(name), **detail)
        session.flush()
        return issued

    def _add_certificate(self, session: Session, issued: Issued) -> None:
        """Keep a certificate's number, and forget those of the same device that have expired."""
        uri = issued.principal.uri
        session.execute(
            delete(CertificateRow).where(
                CertificateRow.principal == uri, CertificateRow.not_after_seconds < self._clock()
            )
        )
        session.add(
            CertificateRow(serial=issued.serial, principal=uri, not_after_seconds=issued.not_after_seconds)
        )

    def _revoke_certificates(self, session: Session, principal: Principal, now: float) -> None:
        session.execute(
            update(CertificateRow)
            .where(CertificateRow.principal == principal.uri, CertificateRow.revoked_at_seconds.is_(None))
            .values(revoked_at_seconds=now)
        )


def _subject(name: str) -> str:
    return f"{Role.DEVICE}/{name}"
