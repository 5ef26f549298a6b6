"""Every operation by which a device changes its disk, one method each.

Whatever a device must not lose goes through these few methods, so that a test can stop a device behind each of them.
"""

import contextlib
import os
import threading
from pathlib import Path

from quantization.errors import ConfigurationError

TEMPORARY = ".tmp"
"""How the names of files end that are not whole yet."""


class Disk:
    """The file system as it is."""

    def make_folder(self, path: Path) -> None:
        """Create the folder and those above it, where they are not there."""
        path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file from its start."""
        with path.open("wb") as file:
            file.write(data)

    def write_private(self, path: Path, data: bytes) -> None:
        """Write a file from its start that its owner alone may read, from the moment it is there."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(data)

    def append(self, path: Path, data: bytes | memoryview) -> None:
        """Write behind the end of a file, which is created if need be."""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)

    def sync(self, path: Path) -> None:
        """Make the content of a file, or the names in a folder, survive a power cut."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        """Put a file in the place of another, all at once."""
        path.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)


def replace_file(disk: Disk, path: Path, data: bytes, *, is_private: bool = False) -> None:
    """Put `data` in the place of a file: all at once, and for good when this returns.

    Processes and threads may do so with the same file at the same time: one of them is the last.

    Args:
        disk: Does it.
        path: Of the file.
        data: Its new content.
        is_private: Whether its owner alone may read it.

    Raises:
        ConfigurationError: If it cannot be written; the file is as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY}")
    try:
        (disk.write_private if is_private else disk.write)(temporary, data)
        disk.sync(temporary)
        disk.rename(temporary, path)
        disk.sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> ConfigurationError:
    """Return what to raise where a file cannot be written."""
    return ConfigurationError(
        f"{path} cannot be written ({error.strerror}); free some space or choose a writable folder"
    )
