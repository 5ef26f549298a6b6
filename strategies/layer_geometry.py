"""How layers read their inputs, as one int64 vector in a request.

Per layer: index of its tensor, columns, exponent, block (0: the full matrix), groups, spatial axes A (0: no
convolution); behind them, for a convolution, kernel (A), strides (A), pads (2 A), dilations (A).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from quantization.arrays import IntArray
from quantization.errors import MalformedError
from quantization.im2col import ConvWindow
from quantization.input_observation import LayerInput

MAX_AXES = 8
MAX_LENGTH = 1 << 16
"""Of a kernel, a stride, a pad or a dilation."""

LEAST_NUMBERS = 6
MOST_NUMBERS = LEAST_NUMBERS + 5 * MAX_AXES
"""Numbers of one layer."""


def encode_geometry(layers: Iterable[LayerInput], tensors: Sequence[str]) -> IntArray:
    """Return the vector of these layers, whose tensors are in the list."""
    return np.array([number for layer in layers for number in _numbers(layer, tensors)], np.int64)


def decode_geometry(vector: IntArray, names: Sequence[str], tensors: Sequence[str]) -> tuple[LayerInput, ...]:
    """Return the layers that `encode_geometry` wrote, under these names.

    Raises:
        MalformedError: If the vector is not of so many layers, or one of them cannot be.
    """
    numbers: list[int] = vector.tolist()
    layers = []
    for name in names:
        layer, numbers = _read_layer(name, numbers, tensors)
        layers.append(layer)
    if numbers:
        raise MalformedError("a layout with more geometry than layers")
    return tuple(layers)


def _numbers(layer: LayerInput, tensors: Sequence[str]) -> list[int]:
    window = layer.window
    axes = 0 if window is None else len(window.kernel)
    header = [tensors.index(layer.tensor), layer.columns, layer.exponent]
    header += [layer.block or 0, layer.groups, axes]
    if window is None:
        return header
    return [*header, *window.kernel, *window.strides, *window.pads, *window.dilations]


def _read_layer(name: str, numbers: list[int], tensors: Sequence[str]) -> tuple[LayerInput, list[int]]:
    """Return the layer that the numbers start with, and those behind it."""
    header, rest = numbers[:LEAST_NUMBERS], numbers[LEAST_NUMBERS:]
    if len(header) < LEAST_NUMBERS or not 0 <= header[0] < len(tensors):
        raise MalformedError(f"layer {name!r:.80} without a geometry")
    tensor, columns, exponent, block, groups, axes = header
    window = None
    if axes:
        window, rest = _read_window(name, groups, axes, rest)
    elif groups != 1:
        raise MalformedError(f"layer {name!r:.80}: {groups} groups of no convolution")
    return LayerInput(name, tensors[tensor], window, columns, exponent, block or None), rest


def _read_window(name: str, groups: int, axes: int, numbers: list[int]) -> tuple[ConvWindow, list[int]]:
    if not 0 < axes <= MAX_AXES or len(numbers) < 5 * axes:
        raise MalformedError(f"layer {name!r:.80}: a convolution over {axes} axes")
    taken, rest = numbers[: 5 * axes], numbers[5 * axes :]
    kernel, strides, pads, dilations = (
        tuple(part)
        for part in (taken[:axes], taken[axes : 2 * axes], taken[2 * axes : 4 * axes], taken[4 * axes :])
    )
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0 or max(taken) > MAX_LENGTH:
        raise MalformedError(f"layer {name!r:.80}: a convolution that is none")
    return ConvWindow(kernel, strides, pads, dilations, groups), rest
