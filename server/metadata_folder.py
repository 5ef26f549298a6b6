"""The folder with the files of signed metadata, as The Update Framework names them.

The rules:

1. Files are named `<version>.<role>.json`, and `timestamp.json`. A file appears whole, and is there for good.
2. One process at a time changes the folder: it holds the lock of the file `<folder>.lock` beside it.
3. Of snapshot and targets the newest `KEPT_VERSIONS` are kept: whoever fetches has just been told of one of the newest.
   Every root stays, because a device goes from one to the next.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantization.errors import ConfigurationError, NotFoundError
from server.keys import ROLES
from server.private_files import PUBLIC, put_file

KEPT_VERSIONS = 16


class MetadataFolder:
    """Signed files as bytes; the folder need not be there yet."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def is_made(self) -> bool:
        """Whether a repository was made here to its end."""
        return (self.path / "timestamp.json").exists()

    def read(self, role: str, version: int = 0) -> bytes:
        """Return one signed file.

        Args:
            role: One of the four roles.
            version: Of the file; 0 for the newest. Of timestamp there is the newest alone.

        Raises:
            NotFoundError: There is none.
        """
        if role not in ROLES or version < 0:
            raise NotFoundError(f"no metadata of role {role[:80]!r}, version {version}")
        path = self.path / _name(role, version or self.newest(role))
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"no metadata {path.name} in {self.path}") from error

    def newest(self, role: str) -> int:
        """Return the newest version of a role's numbered files; 0 where there is none."""
        return max(self._versions(role), default=0)

    def put(self, role: str, version: int, data: bytes) -> None:
        """Put a file in place, all at once and for good.

        Raises:
            ConfigurationError: It cannot be written.
        """
        put_file(self.path / _name(role, version), data, PUBLIC)

    def forget_old(self) -> None:
        """Remove files of snapshot and targets that nobody asks for any more."""
        for role in ("snapshot", "targets"):
            for version in sorted(self._versions(role))[:-KEPT_VERSIONS]:
                (self.path / _name(role, version)).unlink(missing_ok=True)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep other processes, and threads, from changing the folder while the block runs."""
        path = self.path.with_name(f"{self.path.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _versions(self, role: str) -> list[int]:
        names = (path.name.split(".") for path in self.path.glob(f"*.{role}.json"))
        return [int(name[0]) for name in names if len(name) == 3 and name[0].isdigit()]


def _name(role: str, version: int) -> str:
    return "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"
