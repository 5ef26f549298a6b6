"""Rounded weights: what rounding or training made of a model's layers, as one content that a policy names by digest.

A policy without such content means round to nearest. The content is a NumPy archive (npz, stored, no pickle) with, per
layer, `codes/<layer>` int8 (O, K), `scale/<layer>` float32 (O,) and `bias_shift/<layer>` float64 (O,). Equal weights
give equal bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import FloatArray
from quantization.errors import ConfigurationError, MalformedError
from quantization.npz_content import pack_arrays, unpack_arrays
from quantization.packing import needed_bit_width

_GROUPS = ("codes", "scale", "bias_shift")


@dataclass(frozen=True, slots=True, eq=False)
class LayerCodes:
    """Stored weights of one layer: w_ok = scale_o * code_ok, and what its bias gains.

    Attributes:
        codes: (O, K), int8, -127 to 127: one row per output channel, flattened as `weight_rows` does.
        scale: (O,), float32, > 0, before any channel correction.
        bias_shift: (O,), float64: added to the float bias before any channel correction; zero for a layer without.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias_shift: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse what no layer can be stored as."""
        rows = self.codes.shape[:1]
        if self.codes.ndim != 2 or self.scale.shape != rows or self.bias_shift.shape != rows:
            raise ConfigurationError(
                f"codes {self.codes.shape} with scales {self.scale.shape} and bias shifts {self.bias_shift.shape}"
            )
        if self.codes.dtype != np.int8 or (self.codes == -128).any():
            raise ConfigurationError("weight codes must be int8 from -127 to 127")
        is_usable = np.isfinite(self.scale).all() and (self.scale > 0).all()
        if not (is_usable and np.isfinite(self.bias_shift).all()):
            raise ConfigurationError("weight scales must be positive and finite, bias shifts finite")

    @property
    def bit_width(self) -> int:
        """Fewest bits that hold every code, 2 to 8."""
        return needed_bit_width(self.codes)


RoundedWeights = Mapping[str, LayerCodes]
"""By layer; a layer that is absent is rounded to nearest."""


def weight_rows(weight: FloatArray, weight_axis: int) -> FloatArray:
    """Return a weight as (O, K): its output channels first, everything else flattened."""
    return np.moveaxis(weight, weight_axis, 0).reshape(weight.shape[weight_axis], -1)


def weight_from_rows(rows: NDArray[np.int8], shape: tuple[int, ...], weight_axis: int) -> NDArray[np.int8]:
    """Return (O, K) rows as a weight of `shape`: the inverse of `weight_rows`."""
    moved = (shape[weight_axis], *shape[:weight_axis], *shape[weight_axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, weight_axis))


def to_bytes(layers: Mapping[str, LayerCodes]) -> bytes:
    """Return the content that `from_bytes` reads."""
    arrays = {f"{group}/{name}": getattr(layer, group) for name, layer in layers.items() for group in _GROUPS}
    return pack_arrays(arrays)


def from_bytes(data: bytes) -> dict[str, LayerCodes]:
    """Return the layers that `to_bytes` wrote.

    Raises:
        MalformedError: The bytes are something else.
    """
    groups = unpack_arrays(data)
    try:
        return {
            name: LayerCodes(*(groups[group][name] for group in _GROUPS)) for name in groups.get("codes", {})
        }
    except (KeyError, ConfigurationError) as error:
        raise MalformedError(f"not a blob of rounded weights: {error}") from error
