"""The text that an operator hands to a device: a secret that is good for one enrolment, and whom to trust.

    qft1.<secret: 43 of A-Z a-z 0-9 _ ->.<fingerprint: 64 hex digits>

The fingerprint is the SHA-256 of the DER of the certificate of the fleet's authority. So a device recognises the
server before it says the secret, and trusts nobody on first use.
"""

import re
from dataclasses import dataclass
from typing import Self

from quantization.errors import MalformedError

_PREFIX = "qft1"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, repr=False)
class EnrolmentToken:
    """A token.

    Attributes:
        secret: 32 random bytes in URL-safe base64, known to the operator and the device alone.
        fingerprint: SHA-256 of the authority's certificate (DER), hex.
    """

    secret: str
    fingerprint: str

    def __post_init__(self) -> None:
        """Refuse what is no token; the error does not repeat the secret."""
        if not _SECRET.fullmatch(self.secret) or not _FINGERPRINT.fullmatch(self.fingerprint):
            raise MalformedError(
                f"not an enrolment token: expected {_PREFIX}.<43 characters>.<64 hex digits>, as "
                "`quantfleet-server devices token` prints it"
            )

    def __repr__(self) -> str:
        return f"EnrolmentToken(fingerprint={self.fingerprint!r})"

    @property
    def text(self) -> str:
        """The token as one word."""
        return f"{_PREFIX}.{self.secret}.{self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the token that a word stands for; the inverse of `text`.

        Raises:
            MalformedError: It is none, or one of another version.
        """
        prefix, _, rest = text.strip().partition(".")
        secret, _, fingerprint = rest.partition(".")
        return cls(secret if prefix == _PREFIX else "", fingerprint)
