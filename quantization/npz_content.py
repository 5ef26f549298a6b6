"""Named arrays as bytes: a NumPy archive (npz, stored, no pickle) whose keys are `<group>/<name>`, in sorted order."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np

from quantization.arrays import AnyArray
from quantization.errors import MalformedError

MAX_UNPACKED_BYTES = 1 << 30
"""Most that the arrays of one archive take together, by what its directory says."""


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
    for key, array in read_arrays(io.BytesIO(data), MAX_UNPACKED_BYTES).items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = array
    return groups


def read_arrays(file: BinaryIO, most_bytes: int, names: Sequence[str] | None = None) -> dict[str, AnyArray]:
    """Return the arrays of an npz file, or those of some names, with nothing unpickled and nothing large unpacked.

    Args:
        file: Of any content, read from its start.
        most_bytes: Most that all its members together unpack to, by what its directory says.
        names: Of arrays that must be there; None for all that are.

    Raises:
        MalformedError: It is no archive, is damaged, unpacks to more, lacks a name, or has something else than arrays.
    """
    try:
        arrays = _read(file, most_bytes, names)
    except MalformedError:
        raise
    except Exception as error:  # zipfile, its decompressors and NumPy each have errors of their own
        raise MalformedError(f"not an archive of arrays: {error}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives the bytes of a member that is no array
            raise MalformedError(f"an archive whose {name!r} is no array")
    return arrays


def _read(file: BinaryIO, most_bytes: int, names: Sequence[str] | None) -> dict[str, AnyArray]:
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > most_bytes:
        raise MalformedError(f"an archive that unpacks to {size} bytes; at most {most_bytes} are read")
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        wanted = stored.files if names is None else names
        missing = next((name for name in wanted if name not in stored.files), None)
        if missing is not None:
            there = ", ".join(sorted(stored.files)[:8]) or "none"
            raise MalformedError(f"an archive that has no array {missing!r}, only: {there}")
        return {name: stored[name] for name in wanted}
