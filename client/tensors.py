"""Arrays on the wire: float32, little-endian, with their shape."""

import math

import numpy as np

from client.sessions import Float32Array
from protos.quantfleet.v1.inference_pb2 import Tensor
from quantization.arrays import AnyArray
from quantization.errors import InvalidDataError

MAX_DIMENSIONS = 16


def tensor_to_proto(array: AnyArray) -> Tensor:
    """Return an array as a message.

    Raises:
        InvalidDataError: If it is none of real numbers.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        kind = getattr(array, "dtype", "no element type")
        raise InvalidDataError(f"a model takes a float32 array, not {type(array).__name__} of {kind}")
    return Tensor(shape=array.shape, data=np.ascontiguousarray(array, "<f4").tobytes())


def tensor_from_proto(tensor: Tensor) -> Float32Array:
    """Return the array of a message, without a copy; it cannot be written to.

    Raises:
        InvalidDataError: If the shape and the bytes do not fit together, or there are no values.
    """
    shape = tuple(tensor.shape)
    if not 1 <= len(shape) <= MAX_DIMENSIONS or 0 in shape:
        raise InvalidDataError(
            f"a tensor has 1 to {MAX_DIMENSIONS} dimensions of 1 or more, not {shape!r:.80}"
        )
    wanted = 4 * math.prod(shape)
    if len(tensor.data) != wanted:
        raise InvalidDataError(
            f"a float32 tensor of shape {shape!r:.80} has {wanted} bytes, not {len(tensor.data)}"
        )
    return np.frombuffer(tensor.data, "<f4").reshape(shape)
