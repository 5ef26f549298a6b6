"""Who somebody is, as a certificate says it: a role and a name, in one URI.

Such as `quantfleet://device/press-7`, `quantfleet://operator/ana`, `quantfleet://server/fleet`. Nothing here knows
certificates.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from quantization.errors import MalformedError

SCHEME = "quantfleet"

MAX_NAME_LENGTH = 128

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_LENGTH - 1}}}")


class Role(StrEnum):
    """What somebody may do."""

    DEVICE = "device"
    """Fetch updates, report what it counted."""
    OPERATOR = "operator"
    """Publish, pause, promote and roll back."""
    SERVER = "server"
    """Answer the two others."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody with a role.

    Attributes:
        role: What it may do.
        name: Unique among those of its role: 1 to 128 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.
    """

    role: Role
    name: str

    def __post_init__(self) -> None:
        """Refuse what is no name."""
        check_principal_name(self.name, str(self.role))

    @property
    def uri(self) -> str:
        """The URI, as certificates carry it."""
        return f"{SCHEME}://{self.role}/{self.name}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Return who a URI names; the inverse of `uri`.

        Raises:
            MalformedError: It is not of that form.
        """
        scheme, _, rest = uri.partition("://")
        role, _, name = rest.partition("/")
        if scheme != SCHEME or role not in set(Role):
            raise MalformedError(f"{uri[:200]!r} names nobody; expected {SCHEME}://device/NAME or the like")
        return cls(Role(role), name)


def check_principal_name(name: str, what: str = "device") -> str:
    """Return a name that is one.

    Args:
        name: What somebody calls itself.
        what: What it is a name of, for the error.

    Raises:
        MalformedError: It is none.
    """
    if not _NAME.fullmatch(name):
        raise MalformedError(
            f"{name[:200]!r} is not the name of a {what}: 1 to {MAX_NAME_LENGTH} of A-Z a-z 0-9 . _ -, starting with "
            "a letter or digit"
        )
    return name
