"""What lies under the root of a store, and since when: on any file system that fsspec can reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Names that file systems have for the time of the last change."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a store.

    Attributes:
        path: As its file system names it.
        size_bytes: Of its content.
        changed_at_seconds: When it was last written, or touched, since 1970 (UTC); None where nobody knows.
    """

    path: str
    size_bytes: int
    changed_at_seconds: float | None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]


def stored_files(files: Any, root: str) -> tuple[StoredFile, ...]:  # noqa: ANN401 - fsspec has no types
    """Return all files under a root; lists the whole store.

    Args:
        files: An fsspec file system.
        root: Where to begin, as the file system names it.
    """
    entries: dict[str, dict[str, Any]] = files.find(root, detail=True)
    return tuple(
        StoredFile(path, int(entry.get("size") or 0), _changed_at(entry)) for path, entry in entries.items()
    )


def _changed_at(entry: Mapping[str, Any]) -> float | None:
    found = next((entry[name] for name in _TIMES if entry.get(name) is not None), None)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found.timestamp() if isinstance(found, datetime) else found
