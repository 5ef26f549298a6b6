"""Names under which The Update Framework signs the manifests of targets.

A name is `<model digest>/<device class>/<version>`: 64 hex digits, a device class's name, and a decimal number from 1
on. Whoever signs it says that this content may be this version for that class, and no other.
"""

import re
from dataclasses import dataclass

from quantization.errors import MalformedError

_NAME = re.compile(r"([0-9a-f]{64})/([a-z0-9][a-z0-9._-]{0,62})/([1-9][0-9]{0,9})")


@dataclass(frozen=True, slots=True)
class TargetName:
    """What a signed name says.

    Attributes:
        model_digest: SHA-256 of the canonical float model, hex.
        device_class: Name of the device class.
        version: Version of the target, 1 to 9,999,999,999.
    """

    model_digest: str
    device_class: str
    version: int

    def __post_init__(self) -> None:
        """Refuse parts that make no name; none can be a path that leaves its folder."""
        if _NAME.fullmatch(str(self)) is None:
            raise MalformedError(f"{str(self)[:200]!r} is not <model digest>/<device class>/<version>")

    def __str__(self) -> str:
        """Return the name as it is signed."""
        return f"{self.model_digest}/{self.device_class}/{self.version}"

    @classmethod
    def parse(cls, name: str) -> "TargetName":
        """Return the parts of a signed name.

        Raises:
            MalformedError: If it is not one.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise MalformedError(f"{name[:200]!r} is not <model digest>/<device class>/<version>")
        return cls(found[1], found[2], int(found[3]))
