"""Exact integer convolution of any number of axes, grouped or depthwise, in NumPy."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from quantization.arrays import CodeArray


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """How a convolution moves over its spatial axes.

    Attributes:
        strides: Per axis.
        dilations: Per axis.
        pads: Zeros before each axis, then after each axis, as in ONNX; empty where `auto_pad` decides.
        auto_pad: "NOTSET", "VALID", "SAME_UPPER" or "SAME_LOWER".
        groups: Groups of channels.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    groups: int


def accumulate_conv(x: NDArray[np.int32], weight: CodeArray, geometry: ConvGeometry) -> NDArray[np.int32]:
    """Return the convolution of integers, exact as long as the sums fit int32.

    Sums are taken in float64, where they are exact, one example at a time: memory is one example's columns.

    Args:
        x: (N, C, ...), zero point subtracted.
        weight: (O, C/groups, ...).
        geometry: Strides, dilations, padding and groups.
    """
    axes = x.ndim - 2
    padded = np.pad(x, ((0, 0), (0, 0), *_padding(x.shape[2:], weight.shape[2:], geometry)))
    window = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], geometry.dilations, strict=True))
    groups, per_group = geometry.groups, weight.shape[0] // geometry.groups
    kernels = weight.reshape(groups, per_group, -1).astype(np.float64)
    steps = (slice(None), *(slice(None, None, s) for s in geometry.strides))
    taps = tuple(slice(None, None, d) for d in geometry.dilations)
    results = []
    for example in padded:
        windows = sliding_window_view(example, window, axis=tuple(range(1, axes + 1)))[(*steps, *taps)]
        positions = windows.shape[1 : axes + 1]
        columns = np.moveaxis(windows, range(1, axes + 1), range(-axes, 0)).reshape(
            groups, -1, int(np.prod(positions))
        )
        results.append((kernels @ columns.astype(np.float64)).reshape(-1, *positions))
    return np.stack(results).astype(np.int32)


def _padding(
    lengths: tuple[int, ...], kernel: tuple[int, ...], geometry: ConvGeometry
) -> list[tuple[int, int]]:
    axes = len(lengths)
    if geometry.auto_pad == "NOTSET":
        pads = geometry.pads or (0,) * (2 * axes)
        return [(pads[axis], pads[axis + axes]) for axis in range(axes)]
    if geometry.auto_pad == "VALID":
        return [(0, 0)] * axes
    result = []
    for n, k, s, d in zip(lengths, kernel, geometry.strides, geometry.dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        result.append((small, large) if geometry.auto_pad == "SAME_UPPER" else (large, small))
    return result
