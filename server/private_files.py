"""Files that appear whole or not at all, and private ones that only their owner reads."""

import os
import tempfile
from pathlib import Path

from quantization.errors import ConfigurationError

PRIVATE, PUBLIC = 0o600, 0o644


def put_file(path: Path, data: bytes, mode: int) -> None:
    """Put a file in the place of another: all at once, and for good when this returns.

    Args:
        path: Of the file; folders that are missing are made, for their owner alone.
        data: Its content.
        mode: `PRIVATE` or `PUBLIC`; it never had another one.

    Raises:
        ConfigurationError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # its mode is 600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written ({error.strerror}); choose a folder that this user may write"
        ) from error


def read_private(path: Path, limit: int) -> bytes:
    """Return a file that only its owner reads.

    Raises:
        ConfigurationError: Others may read it, it is larger than `limit` bytes, or it cannot be read.
        FileNotFoundError: It is not there.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & 0o077:
                raise ConfigurationError(f"{path} is open to others (mode {mode & 0o777:o}); chmod 600 it")
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror})") from error
    if len(data) > limit:
        raise ConfigurationError(f"{path} is larger than {limit} bytes, so it is not what belongs there")
    return data


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
