"""A Unix socket that the owner of a device alone can open, or its group too, and that a crash does not block.

1. A socket that somebody listens on is not taken over.
2. What is no socket is never removed.
"""

import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quantization.errors import ConfigurationError

OWNER_MODE, GROUP_MODE = 0o600, 0o660
_MOST_BYTES = 107 if sys.platform.startswith("linux") else 103  # what `sun_path` holds, without its end
_umask_lock = threading.Lock()


def socket_address(path: Path) -> str:
    """Return the address of a socket as gRPC has it.

    Raises:
        ConfigurationError: If the path is too long for a socket.
    """
    absolute = str(path.expanduser().absolute())
    length = len(os.fsencode(absolute))
    if length > _MOST_BYTES:
        raise ConfigurationError(
            f"socket {absolute} has a path of {length} bytes; the system takes {_MOST_BYTES} at most. Give a shorter "
            "one with --socket"
        )
    return f"unix:{absolute}"


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more.

    Raises:
        ConfigurationError: If somebody does, or there is something else than a socket, or it cannot be removed.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"socket {path} cannot be made ({error.strerror})") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(
            f"{path} is there and is no socket; remove it or give another path with --socket"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except OSError as error:
            raise ConfigurationError(
                f"socket {path} is there and does not answer ({error}); give another path with --socket"
            ) from error
        else:
            raise ConfigurationError(
                f"another process listens on {path}; stop it or give another path with --socket"
            )
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"stale socket {path} cannot be removed ({error.strerror})") from error


@contextmanager
def private_files() -> Iterator[None]:
    """Let what the block creates belong to its owner alone; it holds for the whole process, so keep it short."""
    with _umask_lock:
        before = os.umask(0o777 & ~OWNER_MODE)
        try:
            yield
        finally:
            os.umask(before)


def allow(path: Path, mode: int) -> None:
    """Let the owner open a socket, or the group too.

    Args:
        path: Of the socket.
        mode: `OWNER_MODE` or `GROUP_MODE`.

    Raises:
        ConfigurationError: If that cannot be done.
    """
    try:
        path.chmod(mode)
    except OSError as error:
        raise ConfigurationError(f"socket {path} cannot be protected ({error.strerror})") from error


def remove_socket(path: Path) -> None:
    """Remove a socket of this process, if it is still there."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
