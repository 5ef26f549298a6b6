"""Operators of ONNX (operator set 21) as functions of torch tensors, in float32.

Shapes and axes are int64 tensors like any other; the batch stays free.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional

from quantization.draft import attribute
from quantization.errors import UnsupportedModelError

Operation = Callable[..., Any]
"""Tensors in, one per input and None where it is left out; a tensor, or a tuple with one per output, out."""


def operation(node: onnx.NodeProto) -> Operation:
    """Return what a node computes.

    Raises:
        UnsupportedModelError: If training does not know its operator.
    """
    if node.op_type in _PLAIN:
        return _PLAIN[node.op_type]
    if node.op_type not in _MADE:
        known = ", ".join(sorted([*_PLAIN, *_MADE]))
        raise UnsupportedModelError(
            f"operator {node.op_type} ({node.name}) cannot be trained; rounding works without training, and these "
            f"can be trained: {known}"
        )
    return _MADE[node.op_type](node)


def _ints(values: Tensor | None) -> list[int] | None:
    return None if values is None else [int(v) for v in values.reshape(-1).tolist()]


@dataclass(frozen=True, slots=True)
class _Window:
    """How a convolution or pooling moves over its spatial axes."""

    strides: list[int]
    dilations: list[int]
    pads: list[int]
    auto_pad: str

    @classmethod
    def of(cls, node: onnx.NodeProto, axes: int) -> "_Window":
        ones = [1] * axes
        return cls(
            list(attribute(node, "strides", ones)),
            list(attribute(node, "dilations", ones)),
            list(attribute(node, "pads", [])),
            attribute(node, "auto_pad", "NOTSET"),
        )

    def padding(self, lengths: Iterable[int], kernel: Iterable[int]) -> tuple[list[int], list[int]]:
        """Return the zeros before and after each spatial axis."""
        axes = len(self.strides)
        if self.auto_pad in {"NOTSET", "VALID"}:
            both = self.pads if self.auto_pad == "NOTSET" and self.pads else [0] * (2 * axes)
            return both[:axes], both[axes:]
        less, more = [], []
        for n, k, s, d in zip(lengths, kernel, self.strides, self.dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            less.append(total // 2)
            more.append(total - total // 2)
        return (less, more) if self.auto_pad == "SAME_UPPER" else (more, less)


def _conv(node: onnx.NodeProto) -> Operation:
    groups = int(attribute(node, "group", 1))

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        axes = x.ndim - 2
        window = _Window.of(node, axes)
        before, after = window.padding(x.shape[2:], weight.shape[2:])
        if before != after:
            x, before = functional.pad(x, _torch_pads(before, after)), [0] * axes
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
        return convolve(x, weight, bias, window.strides, before, window.dilations, groups)

    return run


def _torch_pads(before: Iterable[int], after: Iterable[int]) -> list[int]:
    """Return pads as torch takes them: the last axis first."""
    pairs = list(zip(before, after, strict=True))
    return [length for pair in reversed(pairs) for length in pair]


def _pool(node: onnx.NodeProto, *, is_max: bool) -> Operation:
    if attribute(node, "ceil_mode", 0) or len(node.output) > 1:
        raise UnsupportedModelError(f"{node.op_type} {node.name} with ceil_mode or indices cannot be trained")
    kernel = list(attribute(node, "kernel_shape", []))
    axes = len(kernel)
    window = _Window.of(node, axes)
    strides, dilations = window.strides, window.dilations
    counts_pads = bool(attribute(node, "count_include_pad", 0))

    def run(x: Tensor) -> Tensor:
        before, after = window.padding(x.shape[2:], kernel)
        widths = _torch_pads(before, after)
        if is_max:
            pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[axes - 1]
            padded = functional.pad(x, widths, value=-torch.inf) if any(widths) else x
            return pool(padded, kernel, strides, 0, dilations)
        average = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[axes - 1]
        if not any(widths):
            return average(x, kernel, strides)
        mean = average(functional.pad(x, widths), kernel, strides)
        if counts_pads:
            return mean
        share = average(functional.pad(torch.ones_like(x[:1, :1]), widths), kernel, strides)
        return mean / share

    return run


def _gemm(node: onnx.NodeProto) -> Operation:
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    flips_a, flips_b = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = (a.T if flips_a else a) @ (b.T if flips_b else b)
        scaled = product if alpha == 1.0 else alpha * product
        return scaled if c is None else scaled + (c if beta == 1.0 else beta * c)

    return run


def _normalisation(node: onnx.NodeProto) -> Operation:
    epsilon = float(attribute(node, "epsilon", 1e-5))

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)

    return run


def _layer_norm(node: onnx.NodeProto) -> Operation:
    axis, epsilon = int(attribute(node, "axis", -1)), float(attribute(node, "epsilon", 1e-5))

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis % x.ndim :]
        whole = functional.layer_norm(x, shape, eps=epsilon) * scale
        return whole if bias is None else whole + bias

    return run


def _flatten(node: onnx.NodeProto) -> Operation:
    axis = int(attribute(node, "axis", 1))

    def run(x: Tensor) -> Tensor:
        rows = int(np.prod(x.shape[: axis % (x.ndim + 1)], dtype=np.int64))
        return x.reshape(rows, -1)

    return run


def _reshape(node: onnx.NodeProto) -> Operation:
    keeps_zero = bool(attribute(node, "allowzero", 0))

    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = _ints(shape) or []
        return x.reshape([x.shape[i] if n == 0 and not keeps_zero else n for i, n in enumerate(wanted)])

    return run


def _transpose(node: onnx.NodeProto) -> Operation:
    perm = attribute(node, "perm", None)
    return lambda x: x.permute(list(perm) if perm else list(range(x.ndim))[::-1])


def _concat(node: onnx.NodeProto) -> Operation:
    axis = int(attribute(node, "axis", 0))
    return lambda *parts: torch.cat(parts, axis)


def _pad(node: onnx.NodeProto) -> Operation:
    mode = attribute(node, "mode", "constant")
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}

    def run(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        widths, chosen = _ints(pads) or [], _ints(axes) or list(range(x.ndim))
        before, after = [0] * x.ndim, [0] * x.ndim
        for k, axis in enumerate(chosen):
            before[axis], after[axis] = widths[k], widths[k + len(chosen)]
        if mode == "constant":
            fill = 0.0 if value is None else float(value)
            return functional.pad(x, _torch_pads(before, after), value=fill)
        inner = _torch_pads(before[2:], after[2:])
        return functional.pad(x, inner, mode=names[mode])

    return run


def _slice(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    begins, stops = _ints(starts) or [], _ints(ends) or []
    chosen, strides = _ints(axes) or list(range(len(begins))), _ints(steps) or [1] * len(begins)
    for axis, begin, stop, stride in zip(chosen, begins, stops, strides, strict=True):
        picked = range(x.shape[axis])[begin:stop:stride]
        if stride > 0:
            key = [slice(None)] * (axis % x.ndim) + [
                slice(picked.start, max(picked.stop, picked.start), stride)
            ]
            x = x[tuple(key)]
        else:
            x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
    return x


def _softmax(node: onnx.NodeProto, *, is_log: bool) -> Operation:
    axis = int(attribute(node, "axis", -1))
    return partial(functional.log_softmax if is_log else functional.softmax, dim=axis)


def _gelu(node: onnx.NodeProto) -> Operation:
    return partial(functional.gelu, approximate=attribute(node, "approximate", "none"))


def _reduce(node: onnx.NodeProto) -> Operation:
    keeps, does_nothing = (
        bool(attribute(node, "keepdims", 1)),
        bool(attribute(node, "noop_with_empty_axes", 0)),
    )
    reductions: dict[str, Operation] = {
        "ReduceMean": torch.mean,
        "ReduceSum": torch.sum,
        "ReduceMax": torch.amax,
        "ReduceMin": torch.amin,
    }
    reduction = reductions[node.op_type]

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = _ints(axes)
        if not chosen and does_nothing:
            return x
        result: Tensor = reduction(x, dim=chosen or list(range(x.ndim)), keepdim=keeps)
        return result

    return run


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _ints(axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    chosen = _ints(axes) or []
    for axis in sorted(a % (x.ndim + len(chosen)) for a in chosen):
        x = x.unsqueeze(axis)
    return x


def _gather(node: onnx.NodeProto) -> Operation:
    axis = int(attribute(node, "axis", 0))

    def run(x: Tensor, indices: Tensor) -> Tensor:
        at = axis % x.ndim
        flat = x.index_select(at, indices.reshape(-1).long() % x.shape[at])
        return flat.reshape(*x.shape[:at], *indices.shape, *x.shape[at + 1 :])

    return run


def _split(node: onnx.NodeProto) -> Operation:
    axis, parts = int(attribute(node, "axis", 0)), len(node.output)

    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        if sizes is not None:
            return torch.split(x, _ints(sizes) or [], axis)
        return torch.split(x, -(-x.shape[axis] // parts), axis)

    return run


def _cast(node: onnx.NodeProto) -> Operation:
    kind = torch.from_numpy(np.zeros(0, helper.tensor_dtype_to_np_dtype(int(attribute(node, "to", 1))))).dtype
    return lambda x: x.to(kind)


def _shape(node: onnx.NodeProto) -> Operation:
    start, end = int(attribute(node, "start", 0)), attribute(node, "end", None)
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, low, high)


def _leaky(node: onnx.NodeProto) -> Operation:
    return partial(functional.leaky_relu, negative_slope=float(attribute(node, "alpha", 0.01)))


def _hard_sigmoid(node: onnx.NodeProto) -> Operation:
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x * torch.ones(_ints(shape) or [], dtype=x.dtype)


_PLAIN: Mapping[str, Operation] = {
    "Relu": functional.relu,
    "Clip": _clip,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": lambda a, b: torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc"),
    "Pow": torch.pow,
    "MatMul": torch.matmul,
    "Identity": lambda x: x,
    "Dropout": lambda x, *_: x,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "HardSwish": functional.hardswish,
    "Softplus": functional.softplus,
    "Equal": torch.eq,
    "Where": torch.where,
    "GlobalAveragePool": lambda x: x.mean(list(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(list(range(2, x.ndim)), keepdim=True),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
}
"""Operators without attributes that matter."""

_MADE: Mapping[str, Callable[[onnx.NodeProto], Operation]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "BatchNormalization": _normalisation,
    "LayerNormalization": _layer_norm,
    "AveragePool": partial(_pool, is_max=False),
    "MaxPool": partial(_pool, is_max=True),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Pad": _pad,
    "Softmax": partial(_softmax, is_log=False),
    "LogSoftmax": partial(_softmax, is_log=True),
    "Gelu": _gelu,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "Gather": _gather,
    "Split": _split,
    "Cast": _cast,
    "Shape": _shape,
    "LeakyRelu": _leaky,
    "HardSigmoid": _hard_sigmoid,
}
"""Operators with attributes, by what makes them of their node."""
