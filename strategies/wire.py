"""Vectors and bytes inside Flower's records, written exactly and read with every length bounded.

An array travels as NumPy's own file format (version 1.0 header, little-endian, C order), which is what
Flower's `Array` holds, so any Flower tool can read it. Reading is stricter and faster than `Array.numpy()`:
the header must be, byte for byte, the one NumPy 2 writes for the type and length that the record states, and
the values are then used where they lie, without a copy.
"""

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from quantization.arrays import AnyArray
from quantization.errors import MalformedError

_NUMPY_STYPE = "numpy.ndarray"


@lru_cache(maxsize=256)
def _header(dtype: str, size: int) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": (size,)})
    return buffer.getvalue()


def encode_vector(values: AnyArray) -> Array:
    """Return a vector as a Flower array; its dtype must be little-endian or of one byte."""
    vector = np.ascontiguousarray(values).reshape(-1)
    data = b"".join(
        (_header(vector.dtype.str, vector.size), vector.data)
    )  # one copy, where + and tobytes make two
    return Array(dtype=str(vector.dtype), shape=(vector.size,), stype=_NUMPY_STYPE, data=data)


def decode_vector(
    array: Array | None, what: str, dtypes: tuple[str, ...], sizes: tuple[int, int]
) -> AnyArray:
    """Return the vector that `encode_vector` wrote, read-only, over the array's own bytes.

    Args:
        array: From a record; None where the record has no such key.
        what: How messages call it.
        dtypes: Element types to accept, as in `str(dtype)`.
        sizes: Least and greatest number of elements to accept.

    Raises:
        MalformedError: If it is missing, of another type or length, or its bytes disagree with what it
            states.
    """
    if not isinstance(array, Array):
        raise MalformedError(f"{what} is missing")
    if array.dtype not in dtypes:
        raise MalformedError(f"{what} has type {array.dtype[:20]!r}, expected {' or '.join(dtypes)}")
    if array.stype != _NUMPY_STYPE or len(array.shape) != 1:
        raise MalformedError(
            f"{what} must be one vector, not {array.stype[:20]!r} of shape {array.shape[:4]}"
        )
    least, most = sizes
    size = array.shape[0]
    if not least <= size <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise MalformedError(f"{what} has {size} elements, expected {expected}")
    dtype = np.dtype(array.dtype)
    header = _header(dtype.str, size)
    if len(array.data) != len(header) + size * dtype.itemsize or not array.data.startswith(header):
        raise MalformedError(f"{what} holds {len(array.data)} bytes that are not {size} elements of {dtype}")
    return np.frombuffer(array.data, dtype, size, len(header))


def encode_bytes(data: bytes) -> Array:
    """Return bytes as a Flower array, which Flower cuts into chunks where they are large."""
    return encode_vector(np.frombuffer(data, np.uint8))


def decode_bytes(array: Array | None, what: str, most: int) -> bytes:
    """Return the bytes that `encode_bytes` wrote.

    Raises:
        MalformedError: As `decode_vector`.
    """
    return decode_vector(array, what, ("uint8",), (0, most)).tobytes()


def array_record(content: RecordDict, key: str) -> Mapping[str, Array]:
    """Return the record of arrays under `key`.

    Raises:
        MalformedError: If there is none.
    """
    record = content.get(key)
    if not isinstance(record, ArrayRecord):
        raise MalformedError(f"record {key!r} is missing or holds no arrays")
    return cast("Mapping[str, Array]", record)


def config_record(content: RecordDict, key: str) -> Mapping[str, object]:
    """Return the record of settings under `key`.

    Raises:
        MalformedError: If there is none.
    """
    record = content.get(key)
    if not isinstance(record, ConfigRecord):
        raise MalformedError(f"record {key!r} is missing or holds no settings")
    return cast("Mapping[str, object]", record)


def read_int(record: Mapping[str, object], key: str, least: int, most: int) -> int:
    """Return the whole number under `key`, within [least, most].

    Raises:
        MalformedError: If it is missing, of another type, or outside.
    """
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise MalformedError(f"{key} must be a whole number from {least} to {most}, not {str(value)[:40]!r}")
    return value


def read_bool(record: Mapping[str, object], key: str) -> bool:
    """Return the truth value under `key`.

    Raises:
        MalformedError: If it is missing or of another type.
    """
    value = record.get(key)
    if not isinstance(value, bool):
        raise MalformedError(f"{key} must be true or false, not {str(value)[:40]!r}")
    return value


def read_text(record: Mapping[str, object], key: str, most: int) -> str:
    """Return the text of at most `most` characters under `key`.

    Raises:
        MalformedError: If it is missing, of another type, or longer.
    """
    value = record.get(key)
    if not isinstance(value, str) or len(value) > most:
        raise MalformedError(f"{key} must be a text of at most {most} characters, not {str(value)[:40]!r}")
    return value


def read_texts(record: Mapping[str, object], key: str, most_items: int, most: int) -> tuple[str, ...]:
    """Return the list of different texts under `key`.

    Raises:
        MalformedError: If it is missing, of another type, longer, or repeats an item.
    """
    value = record.get(key)
    if not isinstance(value, list) or len(value) > most_items:
        raise MalformedError(f"{key} must be a list of at most {most_items} texts, not {str(value)[:40]!r}")
    if not all(isinstance(item, str) and len(item) <= most for item in value):
        raise MalformedError(f"{key} must hold texts of at most {most} characters")
    if len(set(value)) != len(value):
        raise MalformedError(f"{key} names an item twice")
    return tuple(value)


def content_size_bytes(content: RecordDict) -> int:
    """Return about how many bytes a message's content takes: its arrays, settings and keys."""
    size = 0
    for key, record in content.items():
        size += len(key)
        if isinstance(record, ArrayRecord):
            size += sum(len(name) + len(array.data) for name, array in record.items())
        else:
            size += sum(len(name) + _value_size_bytes(value) for name, value in record.items())
    return size


def _value_size_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(_value_size_bytes(item) for item in value)
    return len(value) if isinstance(value, str | bytes) else 8
