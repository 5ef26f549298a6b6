"""Columns of im2col at sampled positions: what each output value of a layer is computed from, numpy alone."""

from dataclasses import dataclass

import numpy as np

from quantization.arrays import FloatArray, IntArray
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
    return sample_with_examples(x, window, max_columns)[0]


def sample_with_examples(
    x: FloatArray, window: ConvWindow | None, max_columns: int
) -> tuple[FloatArray, IntArray]:
    """Return what `sample_columns` returns, and which example of the batch each column is from, (P,)."""
    if window is None:
        sampled = _sampled(x.shape[:-1], max_columns)
        return x.reshape(-1, x.shape[-1])[sampled][None], _examples(sampled, x.shape[:-1])
    padded, lengths = _padded(x, window)
    reaches = ((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    outputs = ((n - r) // s + 1 for n, r, s in zip(lengths[1:], reaches, window.strides, strict=True))
    positions = (x.shape[0], *outputs)
    sampled = _sampled(positions, max_columns)
    example, *places = np.unravel_index(np.arange(sampled.start, sampled.stop, sampled.step), positions)
    corners = (example, *(place * s for place, s in zip(places, window.strides, strict=True)))
    first = np.ravel_multi_index(corners, lengths)
    columns = np.empty((x.shape[1], int(np.prod(window.kernel)), first.size), x.dtype)  # (C, taps, P)
    for index, tap in enumerate(np.ndindex(*window.kernel)):
        shift = (0, *(t * d for t, d in zip(tap, window.dilations, strict=True)))
        columns[:, index] = padded[:, first + np.ravel_multi_index(shift, lengths)]
    result: FloatArray = columns.reshape(window.groups, -1, first.size)  # K as in a row of the weight
    return np.swapaxes(result, 1, 2), _examples(sampled, positions)


def sampling_step(positions: int, max_positions: int, row_lengths: tuple[int, ...]) -> int:
    """Return 1 where all positions may be taken, else the least prime that suffices and divides no row."""
    least = -(-positions // max_positions)
    if least <= 1:
        return 1
    step = least
    while any(step % d == 0 for d in range(2, int(step**0.5) + 1)) or any(n % step == 0 for n in row_lengths):
        step += 1
    return step


def _sampled(positions: tuple[int, ...], max_columns: int) -> slice:
    """Return which of the flattened positions (batch, *rows) are sampled."""
    count = int(np.prod(positions))
    return slice(0, count, sampling_step(count, max_columns, positions[1:]))


def _examples(sampled: slice, positions: tuple[int, ...]) -> IntArray:
    per_example = int(np.prod(positions[1:], dtype=np.int64))
    return np.arange(sampled.start, sampled.stop, sampled.step) // max(per_example, 1)


def _padded(x: FloatArray, window: ConvWindow) -> tuple[FloatArray, tuple[int, ...]]:
    """Return the padded input with the batch and all positions in one axis, (C, N * positions), and their lengths.

    Raises:
        MalformedError: If `x` does not fit the geometry.
    """
    axes = len(window.kernel)
    if x.ndim != axes + 2 or x.shape[1] % window.groups:
        raise MalformedError(f"input of shape {x.shape} for a convolution with {window}")
    pads = zip(window.pads[:axes], window.pads[axes:], strict=True)
    lengths = [n + before + behind for n, (before, behind) in zip(x.shape[2:], pads, strict=True)]
    reaches = ((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    if any(length < reach for length, reach in zip(lengths, reaches, strict=True)):
        raise MalformedError(f"input of shape {x.shape} is smaller than the kernel of {window}")
    padded: FloatArray = np.zeros((x.shape[1], x.shape[0], *lengths), x.dtype)
    inside = [slice(pad, pad + n) for pad, n in zip(window.pads[:axes], x.shape[2:], strict=True)]
    padded[(slice(None), slice(None), *inside)] = np.moveaxis(x, 1, 0)
    return padded.reshape(x.shape[1], -1), (x.shape[0], *lengths)
