"""Reading npz files from outside: bounded, never unpickled, and one clear line for what is refused.

What a file declares is checked before memory is taken for it: an array of a declared shape must have as many
bytes as its shape and type need, no array is an object, and all of them fit `MAX_TOTAL_BYTES`.
"""

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from quantization.arrays import AnyArray
from quantization.errors import InvalidDataError

MAX_TOTAL_BYTES = 4 << 30
"""All arrays of a file, unpacked."""

MAX_ARRAYS = 256
_MAX_HEADER_BYTES = 10_000
_KINDS = "biufUS"
"""Booleans, integers, floats and text."""

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
)


def read_npz(
    path: Path, required: Collection[str], optional: Collection[str] = (), *, is_strict: bool = True
) -> Mapping[str, AnyArray]:
    """Return the arrays of an npz file by name.

    Args:
        path: The file.
        required: Names that must be there.
        optional: Names that may be there.
        is_strict: Refuse any other name; if not, other arrays are not read.

    Raises:
        InvalidDataError: Names the file, the array, what was expected and what is there, and the remedy.
    """
    names = _members(path)
    missing = [name for name in required if name not in names]
    if missing:
        raise InvalidDataError(
            f"{path} has no array {missing[0]!r}, only {_listed(names)}; save it with numpy.savez({missing[0]}=...)"
        )
    known = (*required, *optional)
    unknown = [name for name in names if name not in known]
    if unknown and is_strict:
        raise InvalidDataError(
            f"{path} has an unknown array {unknown[0]!r}; known: {_listed(known)}; rename it or leave it out"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _read_array(archive, path, name) for name in names if name in known}
    except InvalidDataError:
        raise
    except _UNREADABLE as error:
        raise InvalidDataError(f"{path} is damaged ({_reason(error)}); save or copy it again") from error
    except MemoryError as error:
        raise InvalidDataError(f"{path} does not fit into memory; give fewer rows") from error


def _members(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in a file, none of which was read."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except FileNotFoundError as error:
        raise InvalidDataError(f"{path} does not exist; give the path of an npz file") from error
    except IsADirectoryError as error:
        raise InvalidDataError(f"{path} is a folder; give the path of an npz file") from error
    except PermissionError as error:
        raise InvalidDataError(f"{path} may not be read; check its permissions") from error
    except _UNREADABLE as error:
        raise InvalidDataError(
            f"{path} is not an npz file ({_reason(error)}); save it with numpy.savez or numpy.savez_compressed"
        ) from error
    names = tuple(info.filename.removesuffix(".npy") for info in infos)
    if len(names) > MAX_ARRAYS or len(set(names)) != len(names):
        raise InvalidDataError(
            f"{path} has {len(names)} entries, {len(set(names))} of them with different names; "
            f"give at most {MAX_ARRAYS}, each once"
        )
    total = sum(info.file_size for info in infos)
    if total > MAX_TOTAL_BYTES:
        raise InvalidDataError(
            f"{path} unpacks to {total} bytes; at most {MAX_TOTAL_BYTES} are read; give fewer rows"
        )
    return names


def _read_array(archive: zipfile.ZipFile, path: Path, name: str) -> AnyArray:
    infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    with archive.open(infos[name]) as stream:
        shape, is_fortran, dtype = _read_header(stream, path, name)
        body_bytes = infos[name].file_size - stream.tell()
        if dtype.hasobject:
            raise InvalidDataError(
                f"{path}: array {name!r} holds pickled Python objects, which are never loaded; "
                "save it as a plain array of numbers"
            )
        if dtype.kind not in _KINDS or dtype.itemsize == 0:
            raise InvalidDataError(
                f"{path}: array {name!r} is of type {dtype}; save it as a plain array of numbers"
            )
        count = 1
        for length in shape:
            count *= length
        if count * dtype.itemsize != body_bytes:
            raise InvalidDataError(
                f"{path}: array {name!r} declares shape {shape} of {dtype}, {count * dtype.itemsize} bytes, "
                f"and has {body_bytes}; save it again"
            )
        content = stream.read()
    flat = np.frombuffer(content, dtype, count)
    array: AnyArray = flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)
    return array


def _read_header(
    stream: IO[bytes], path: Path, name: str
) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Return what an array declares: shape, whether its first axis varies fastest, type."""
    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            header = npy.read_array_header_1_0(stream, max_header_size=_MAX_HEADER_BYTES)
        elif version == (2, 0):
            header = npy.read_array_header_2_0(stream, max_header_size=_MAX_HEADER_BYTES)
        else:
            raise InvalidDataError(
                f"{path}: array {name!r} is in npy version {version[0]}.{version[1]}; save it with numpy.savez"
            )
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise InvalidDataError(
            f"{path}: entry {name!r} is not a numpy array; save it with numpy.savez"
        ) from error
    shape, is_fortran, dtype = header
    if any(length < 0 for length in shape) or len(shape) > 32:
        raise InvalidDataError(f"{path}: array {name!r} declares shape {shape}; save it again")
    return shape, is_fortran, dtype


def _listed(names: Collection[str]) -> str:
    return ", ".join(repr(name) for name in list(names)[:12]) or "nothing"


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
