"""Named arrays as bytes: a NumPy archive (npz, stored, no pickle) whose keys are `<group>/<name>`, in sorted order."""

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from quantization.arrays import AnyArray
from quantization.errors import MalformedError

MAX_UNPACKED_BYTES = 1 << 30
"""Most that the arrays of one archive take together, by what its directory says."""

NPZ_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    OSError,
    EOFError,
    OverflowError,
    SyntaxError,  # a header is parsed as Python's literals
    RuntimeError,  # an encrypted member; and its subclasses NotImplementedError, RecursionError
    MemoryError,  # a header that promises more than there is
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)
"""What reading a damaged npz file raises."""


def pack_arrays(arrays: Mapping[str, AnyArray]) -> bytes:
    """Return the archive; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(sorted(arrays.items())))
    return buffer.getvalue()


def unpack_arrays(data: bytes) -> dict[str, dict[str, AnyArray]]:
    """Return the arrays by group, then by name.

    Raises:
        MalformedError: The bytes are something else.
    """
    groups: dict[str, dict[str, AnyArray]] = {}
    try:
        check_unpacked_size(data, MAX_UNPACKED_BYTES)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            for key in archive.files:
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = _array(archive[key])
    except NPZ_ERRORS as error:
        raise MalformedError(f"not an archive of arrays: {error}") from error
    return groups


def check_unpacked_size(data: bytes, most: int) -> None:
    """Refuse an archive that unpacks to more than `most` bytes.

    Raises:
        MalformedError: It does.
        Exception: One of `NPZ_ERRORS`; it is no archive.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > most:
        raise MalformedError(f"an archive that unpacks to {size} bytes; at most {most} are read")


def _array(value: object) -> AnyArray:
    if not isinstance(value, np.ndarray):  # NumPy gives the bytes of a member that is no array
        raise MalformedError("an archive with something else than arrays")
    return value
