"""The affine map between real values and integer codes: r = S (q - Z).

Equation 1 of Jacob et al. 2018 (arXiv:1712.05877). Rules of this module:

1. Scales are float32 and all arithmetic on values is float32, in the order of ONNX QuantizeLinear and
   DequantizeLinear: codes and values equal those of ONNX Runtime, bit for bit.
2. Real 0.0 is always one of the codes, so padding and ReLU cost no error.
3. Every finite input has finite parameters: ranges end at +-1e38, and a scale is never denormal.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import CodeArray, FloatArray
from quantization.errors import ConfigurationError

MIN_BIT_WIDTH = 2
MAX_BIT_WIDTH = 8

_LARGEST_BOUND = 1e38  # a 2-bit grid reaches 4/3 of the range's width: this keeps it finite in float32
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # denormals may be flushed to zero on a device


@dataclass(frozen=True, slots=True, eq=False)  # eq=False: arrays have no single truth value
class AffineParams:
    """How real values map to integer codes.

    Attributes:
        scale: float32 step between codes, in units of the tensor; > 0; broadcasts against it:
            (C, 1, 1, 1) per output channel, () per tensor.
        zero_point: Code that stands for real 0.0; same shape as `scale`; uint8, or int8 where `is_signed`.
        bit_width: Bits per code, 2 to 8.
        is_signed: Codes are signed and symmetric, -(2^(b-1) - 1) to 2^(b-1) - 1, else 0 to 2^b - 1.
    """

    scale: NDArray[np.float32]
    zero_point: CodeArray
    bit_width: int = 8
    is_signed: bool = False

    def __post_init__(self) -> None:
        _check_bit_width(self.bit_width)
        if self.scale.dtype != np.float32 or not np.all((self.scale > 0) & np.isfinite(self.scale)):
            raise ConfigurationError(f"scale must be float32, finite and > 0, got {self.scale!r}")
        if self.zero_point.dtype != self.dtype or self.zero_point.shape != self.scale.shape:
            raise ConfigurationError(
                f"zero_point must be {self.dtype} of shape {self.scale.shape},"
                f" got {self.zero_point.dtype} of shape {self.zero_point.shape}"
            )
        if np.any(self.zero_point < self.qmin) or np.any(self.zero_point > self.qmax):
            raise ConfigurationError(f"zero_point must be in [{self.qmin}, {self.qmax}]")

    @property
    def dtype(self) -> np.dtype[np.int8] | np.dtype[np.uint8]:
        """Type of the codes."""
        return np.dtype(np.int8) if self.is_signed else np.dtype(np.uint8)

    @property
    def qmin(self) -> int:
        """Least code."""
        return -self.qmax if self.is_signed else 0

    @property
    def qmax(self) -> int:
        """Greatest code."""
        return (1 << (self.bit_width - 1)) - 1 if self.is_signed else (1 << self.bit_width) - 1


def params_from_range(lo: float, hi: float, bit_width: int = 8) -> AffineParams:
    """Return unsigned per-tensor parameters whose codes span [lo, hi], widened to hold 0.

    The zero point is the nearest code, so the grid may end up to half a step away from `lo` and `hi`.
    The range (0, 0) gets scale 1.

    Args:
        lo: Least value to represent, in units of the tensor.
        hi: Greatest value to represent.
        bit_width: Bits per code, 2 to 8.

    Raises:
        ConfigurationError: A bound is not finite, or lo > hi.
    """
    _check_bit_width(bit_width)
    if not (np.isfinite(lo) and np.isfinite(hi) and lo <= hi):
        raise ConfigurationError(f"a range needs finite bounds with lo <= hi, got [{lo}, {hi}]")
    scales, zero_points = range_grids(np.array([lo]), np.array([hi]), bit_width)
    return AffineParams(
        scale=scales[0].astype(np.float32).reshape(()),
        zero_point=zero_points[0].astype(np.uint8).reshape(()),
        bit_width=bit_width,
        is_signed=False,
    )


def range_grids(
    lo: NDArray[np.float64], hi: NDArray[np.float64], bit_width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scale and zero point of many ranges at once, as float64 that hold float32 and integer values.

    The arithmetic of `params_from_range`, for a search over candidate ranges.

    Args:
        lo: Least values, (N,).
        hi: Greatest values, (N,).
        bit_width: Bits per code, 2 to 8.
    """
    qmax = float(2**bit_width - 1)
    low = np.clip(np.asarray(lo, np.float64), -_LARGEST_BOUND, 0.0)
    high = np.clip(np.asarray(hi, np.float64), 0.0, _LARGEST_BOUND)
    scale = np.maximum((high - low) / qmax, _SMALLEST_SCALE)
    scale = np.where(high == low, 1.0, scale).astype(np.float32).astype(np.float64)
    zero_point = np.clip(np.rint(-low / scale), 0.0, qmax)
    return scale, zero_point


def symmetric_weight_params(weights: FloatArray, axis: int | None, bit_width: int = 8) -> AffineParams:
    """Return signed parameters whose greatest code stands for the greatest magnitude; zero point 0.

    A channel of zeros gets scale 1.

    Args:
        weights: Finite values, any shape.
        axis: Axis of the channels, one scale each, shaped to broadcast: axis 0 of OIHW gives (O, 1, 1, 1).
            None: one scale of shape () for all.
        bit_width: Bits per code, 2 to 8.

    Raises:
        ConfigurationError: A weight is not finite, or there is no such axis.
    """
    _check_bit_width(bit_width)
    if axis is not None and not -weights.ndim <= axis < weights.ndim:
        raise ConfigurationError(f"weights of shape {weights.shape} have no axis {axis}")
    magnitude = np.abs(np.asarray(weights, np.float32))
    kept = None if axis is None else axis % weights.ndim
    others = tuple(i for i in range(weights.ndim) if i != kept)
    peak = np.max(magnitude, axis=others, keepdims=axis is not None, initial=0.0)
    if not np.all(np.isfinite(peak)):
        raise ConfigurationError("weights must be finite: repair the model before quantizing it")
    scale = np.maximum(peak / np.float32(2 ** (bit_width - 1) - 1), np.float32(_SMALLEST_SCALE))
    scale = np.asarray(np.where(peak == 0, np.float32(1), scale), np.float32)
    return AffineParams(scale, np.zeros(scale.shape, np.int8), bit_width, is_signed=True)


def quantize(x: FloatArray, params: AffineParams) -> CodeArray:
    """Return the nearest code of each value, in [qmin, qmax], with the shape of `x`.

    Inverse of r = S(q - Z), equation 1 of Jacob et al. 2018 (arXiv:1712.05877). Ties round to even. Float32
    throughout, as ONNX QuantizeLinear. Infinities saturate; NaN becomes the least code.

    Args:
        x: Real values, any shape that `params.scale` broadcasts to.
        params: Scale and zero point.
    """
    zero_point = params.zero_point.astype(np.float32)
    with np.errstate(over="ignore"):
        codes = np.rint(np.asarray(x, np.float32) / params.scale)
    codes = np.asarray(np.fmin(np.fmax(codes, params.qmin - zero_point), params.qmax - zero_point))
    codes += zero_point
    return codes.astype(np.int8) if params.is_signed else codes.astype(np.uint8)


def dequantize(codes: CodeArray, params: AffineParams) -> NDArray[np.float32]:
    """Return the real value of each code, float32, with the shape of `codes`.

    Args:
        codes: Codes, any shape that `params.scale` broadcasts to.
        params: Scale and zero point.
    """
    centred = codes.astype(np.float32) - params.zero_point.astype(np.float32)
    return np.asarray(centred * params.scale, np.float32)


def fake_quantize(x: FloatArray, params: AffineParams) -> NDArray[np.float32]:
    """Return each value as its code represents it: `dequantize(quantize(x))`."""
    return dequantize(quantize(x, params), params)


def sqnr_db(x: FloatArray, y: FloatArray) -> float:
    """Return the signal-to-quantization-noise ratio of `y`, a quantized `x`, in decibels.

    +inf where the two are equal, -inf where `x` is all zero and `y` is not.
    """
    signal = float(np.sum(np.square(np.asarray(x, np.float64))))
    noise = float(np.sum(np.square(np.asarray(x, np.float64) - np.asarray(y, np.float64))))
    if noise == 0:
        return float("inf")
    return float("-inf") if signal == 0 else float(10 * np.log10(signal / noise))


def _check_bit_width(bit_width: int) -> None:
    if not MIN_BIT_WIDTH <= bit_width <= MAX_BIT_WIDTH:
        raise ConfigurationError(f"bit_width must be {MIN_BIT_WIDTH} to {MAX_BIT_WIDTH}, got {bit_width}")
