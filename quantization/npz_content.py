"""Named arrays as bytes: a NumPy archive (npz, stored, no pickle) whose keys are `<group>/<name>`, in sorted order."""

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from quantization.arrays import AnyArray
from quantization.errors import MalformedError


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
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            for key in archive.files:
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = archive[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise MalformedError(f"not an archive of arrays: {error}") from error
    return groups
