"""Who may use a state folder: one owner, and any number of guests beside it.

    lock      held alone by the owner: the process that serves from the folder and decides what serves
    guests    shared by every guest; held alone while blobs are removed

A guest (a ClientApp that answers one message, a self-test) reads, and adds blobs. What it reads is not removed
while it is there. Locks are the kernel's: they end with the process, however it ends. A guest may be the owner for a
moment, where there is none; whoever wants to be it for good waits that moment.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from quantization.errors import ConfigurationError

_PATIENCE_SECONDS, _POLL_SECONDS = 1.0, 0.02


class Access(StrEnum):
    """How a process uses a state folder."""

    OWNER = "owner"
    GUEST = "guest"


class FolderLock:
    """The locks of one process on one folder, until `close`.

    Attributes:
        access: What was asked for.
    """

    def __init__(self, folder: Path, access: Access) -> None:
        """Take the lock.

        Raises:
            ConfigurationError: If the folder has no lock and none can be made, or it has another owner.
        """
        self.access = access
        self._folder = folder
        self._owner: int | None = None
        self._guests = _open(folder / "guests")
        try:
            if access is Access.OWNER:
                self._owner = self._take_ownership(_PATIENCE_SECONDS)
            else:
                fcntl.flock(self._guests, fcntl.LOCK_SH)
        except BaseException:
            os.close(self._guests)
            raise

    def close(self) -> None:
        """Give up the locks; nothing happens when that has been done."""
        for descriptor in (self._owner, self._guests):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._owner, self._guests = None, -1

    @contextmanager
    def owning(self) -> Iterator[bool]:
        """Yield whether this process is the owner; a guest becomes it for the block where there is none."""
        if self._owner is not None:
            yield True
            return
        try:
            self._owner = self._take_ownership()
        except ConfigurationError:
            yield False
            return
        try:
            yield True
        finally:
            os.close(self._owner)
            self._owner = None

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Yield whether no guest is there, and keep guests out for the block; for the owner."""
        try:
            fcntl.flock(self._guests, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._guests, fcntl.LOCK_UN)

    def _take_ownership(self, patience_seconds: float = 0.0) -> int:
        descriptor = _open(self._folder / "lock")
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise ConfigurationError(
                        f"state folder {self._folder} is in use by another process; stop it or choose another folder"
                    ) from error
                time.sleep(_POLL_SECONDS)
            else:
                return descriptor


def _open(path: Path) -> int:
    """Return a descriptor of a lock file, which a folder that cannot be written must have already."""
    try:
        # for owner and group alone: whoever can open a lock can hold it, and keep a device from starting
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise ConfigurationError(
                f"state folder {path.parent} cannot be written ({error.strerror}); choose a writable folder"
            ) from error
