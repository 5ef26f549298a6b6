"""Columns of im2col at sampled positions: what each output value of a layer is computed from, numpy alone."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from quantization.arrays import AnyArray, FloatArray
from quantization.errors import MalformedError


@dataclass(frozen=True, slots=True)
class ConvWindow:
    """Geometry of a convolution over any number of spatial axes.

    Attributes:
        kernel: Length of the kernel along each spatial axis.
        strides: Steps between outputs.
        pads: Zeros before each axis, then behind each axis: ONNX order.
        dilations: Steps between taps.
        groups: Groups of channels.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        axes = len(self.kernel)
        if not axes == len(self.strides) == len(self.dilations) == len(self.pads) // 2:
            raise MalformedError(f"convolution geometry {self} with different numbers of axes")


def sample_columns(x: FloatArray, window: ConvWindow | None, max_columns: int) -> FloatArray:
    """Return the columns behind at most `max_columns` outputs, (G, P, K), in the type of `x`.

    Positions are every step-th of the flattened (batch, *spatial) outputs, with the least prime step that suffices
    and divides no axis, so that samples drift over the rows and columns of an image.

    Args:
        x: Input of the layer: (N, C, *spatial) for a convolution, (..., K) for Gemm and MatMul.
        window: The convolution; None for Gemm and MatMul.
        max_columns: Most positions P per call; memory is G * P * K values, and a padded copy of `x`.

    Raises:
        MalformedError: If `x` does not fit the geometry.
    """
    if window is None:
        rows = x.reshape(-1, x.shape[-1])
        return rows[:: sampling_step(rows.shape[0], max_columns, x.shape[1:-1])][None]
    axes = len(window.kernel)
    if x.ndim != axes + 2 or x.shape[1] % window.groups:
        raise MalformedError(f"input of shape {x.shape} for a convolution with {window}")
    windows = _windows(x, window)
    positions = windows.shape[1:-axes]
    step = sampling_step(int(np.prod(positions)), max_columns, positions[1:])
    indices = np.unravel_index(np.arange(0, int(np.prod(positions)), step), positions)
    columns: AnyArray = windows[(slice(None), *indices)]  # type: ignore[arg-type]  # (C, P, *kernel)
    grouped: AnyArray = columns.reshape(window.groups, -1, *columns.shape[1:])
    ordered: AnyArray = np.moveaxis(grouped, 2, 1)  # (G, P, C / G, *kernel): as a row of the weight
    result: FloatArray = np.ascontiguousarray(ordered).reshape(window.groups, ordered.shape[1], -1)
    return result


def sampling_step(positions: int, max_positions: int, row_lengths: tuple[int, ...]) -> int:
    """Return 1 where all positions may be taken, else the least prime that suffices and divides no row."""
    least = -(-positions // max_positions)
    if least <= 1:
        return 1
    step = least
    while any(step % d == 0 for d in range(2, int(step**0.5) + 1)) or any(n % step == 0 for n in row_lengths):
        step += 1
    return step


def _windows(x: FloatArray, window: ConvWindow) -> FloatArray:
    """Return a view (C, N, *outputs, *kernel) of the padded input."""
    axes = len(window.kernel)
    pads = list(zip(window.pads[:axes], window.pads[axes:], strict=True))
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    reach = tuple((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    if any(length < r for length, r in zip(padded.shape[2:], reach, strict=True)):
        raise MalformedError(f"input of shape {x.shape} is smaller than the kernel of {window}")
    views = sliding_window_view(padded, reach, axis=tuple(range(2, axes + 2)))
    steps = tuple(slice(None, None, s) for s in window.strides)
    taps = tuple(slice(None, None, d) for d in window.dilations)
    return np.moveaxis(views[(slice(None), slice(None), *steps, *taps)], 1, 0)
