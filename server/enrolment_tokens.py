"""One-time tokens: how they are made, and what one of them gives.

The rules:

1. Of a token's secret there is only a SHA-256; it has 32 random bytes, so nothing slower is needed. It is compared
   in constant time.
2. A token is good for one key: whoever uses it first has used it. The same key may ask again, because an answer can be
   lost, as long as the name is still that key's and is not revoked.
3. A token that was made for a name gives that name. Any other gives one that is free.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from quantization.errors import ConfigurationError, ForbiddenError, MalformedError, UnauthenticatedError
from quantization.principal import check_principal_name
from server.identity_records import TokenRecord
from server.identity_tables import TOKEN_ID_LENGTH, DeviceRow, EnrolmentTokenRow

MAX_TOKEN_SECONDS = 30 * 86400.0
KEPT_TOKEN_SECONDS = 30 * 86400.0
"""How long a token stays listed after its end."""

_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, repr=False)
class NewToken:
    """A token that was just made.

    Attributes:
        secret: What the device must say; it is nowhere else.
        record: What is kept of it.
    """

    secret: str
    record: TokenRecord


def add_token(session: Session, *, valid_seconds: float, device: str | None, now_seconds: float) -> NewToken:
    """Return a new token; of its secret a digest is stored. Those that ended long ago are forgotten.

    Raises:
        ConfigurationError: The time is none.
        MalformedError: The name is none.
    """
    if not 0 < valid_seconds <= MAX_TOKEN_SECONDS:
        raise ConfigurationError(
            f"a token is good for more than 0 and up to {MAX_TOKEN_SECONDS:.0f} s, not {valid_seconds:g} s"
        )
    if device is not None:
        check_principal_name(device)
    old = EnrolmentTokenRow.expires_at_seconds < now_seconds - KEPT_TOKEN_SECONDS
    session.execute(delete(EnrolmentTokenRow).where(old))
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    digest = _digest(secret)
    record = TokenRecord(
        digest[:TOKEN_ID_LENGTH], device, now_seconds, now_seconds + valid_seconds, None, None
    )
    session.add(
        EnrolmentTokenRow(
            token_id=record.token_id,
            secret_digest=digest,
            device=device,
            created_at_seconds=now_seconds,
            expires_at_seconds=record.expires_at_seconds,
        )
    )
    return NewToken(secret, record)


def good_token(session: Session, secret: str, public_key: str, now_seconds: float) -> EnrolmentTokenRow:
    """Return the token of a secret, locked; errors tell more to whoever knows the secret.

    Raises:
        UnauthenticatedError: It is unknown, expired, or used with another key.
    """
    digest = _digest(secret)
    token = session.get(EnrolmentTokenRow, digest[:TOKEN_ID_LENGTH], with_for_update=True)
    if token is None or not hmac.compare_digest(token.secret_digest, digest):
        raise UnauthenticatedError("the token is unknown; ask the operator for a new one")
    if token.used_key not in (None, public_key):
        raise UnauthenticatedError("the token was used already; ask the operator for a new one")
    if token.expires_at_seconds < now_seconds:
        raise UnauthenticatedError("the token has expired; ask the operator for a new one")
    return token


def name_for(session: Session, token: EnrolmentTokenRow, wanted: str) -> tuple[str, DeviceRow | None]:
    """Return the name that a token gives to the one who wants this name, or any (empty); and who has it, locked.

    Raises:
        UnauthenticatedError: The token was used, and the name is no longer its user's.
        ForbiddenError: The token is for another name, or the name is taken.
        MalformedError: A name must be said and was not, or is none.
    """
    given = token.used_by or token.device
    if given is not None and wanted not in ("", given):
        raise ForbiddenError(f"the token is for device '{given}', not for '{wanted[:200]}'")
    if given is None and not wanted:
        raise MalformedError(
            "the token is for no device in particular: say what this one is called (--device)"
        )
    name = given or check_principal_name(wanted)
    row = session.get(DeviceRow, name, with_for_update=True)
    if token.used_key is not None:
        if row is None or row.public_key != token.used_key or row.revoked_at_seconds is not None:
            raise UnauthenticatedError("the token was used already; ask the operator for a new one")
    elif row is not None and token.device is None:
        raise name_taken(name)
    return name, row


def void_tokens(session: Session, device: str, now_seconds: float) -> None:
    """End the tokens that were made for a device."""
    session.execute(
        update(EnrolmentTokenRow)
        .where(EnrolmentTokenRow.device == device, EnrolmentTokenRow.expires_at_seconds > now_seconds)
        .values(expires_at_seconds=now_seconds)
    )


def name_taken(name: str) -> ForbiddenError:
    """Return what to raise where a name has somebody already."""
    return ForbiddenError(
        f"there is a device '{name[:200]}' already; choose another name, or ask the operator for a token for this one"
    )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
