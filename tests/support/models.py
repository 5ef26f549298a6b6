"""Small ONNX models of the shapes that Quantfleet must handle, with random weights, and ONNX Runtime around them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from quantization.calibration import Range
from quantization.graph import GraphPlan
from quantization.policy import Policy
from quantization.renormalization import ChannelCorrection
from quantization.skeleton import CompiledGraph


class ModelBuilder:
    """Appends operators to a float32 graph whose input is `x`; every method returns the name of its result."""

    def __init__(self, shape: Sequence[int | str], seed: int = 0, opset: int = 21) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = list(shape)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray[Any, Any]] = {}

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        index = len(self.nodes)
        names = [f"{op.lower()}_{index}" + (f"_{k}" if k else "") for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}_{index}", **attributes))
        return names[0]

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"const_{len(self.tensors)}"
        self.tensors[name] = np.asarray(value, dtype)
        return name

    def random(self, *shape: int, gain: float = 1.0, loc: float = 0.0) -> str:
        return self.constant(self.rng.normal(loc, gain, shape))

    def conv(
        self,
        x: str,
        i: int,
        o: int,
        k: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dims: int = 2,
        bias: bool = True,
    ) -> str:
        fan_in = i // groups * k**dims
        inputs = [x, self.random(o, i // groups, *[k] * dims, gain=(2 / fan_in) ** 0.5)]
        if bias:
            inputs.append(self.random(o, gain=0.1))
        pads = [k // 2] * (2 * dims)
        return self.add(
            "Conv", inputs, strides=[stride] * dims, pads=pads, group=groups, kernel_shape=[k] * dims
        )

    def batch_norm(self, x: str, channels: int) -> str:
        scale = self.constant(self.rng.uniform(0.5, 1.5, channels))
        variance = self.constant(self.rng.uniform(0.5, 2.0, channels))
        bias, mean = self.random(channels, gain=0.2), self.random(channels, gain=0.2)
        return self.add("BatchNormalization", [x, scale, bias, mean, variance])

    def relu6(self, x: str) -> str:
        return self.add("Clip", [x, self.constant(0.0), self.constant(6.0)])

    def gemm(self, x: str, i: int, o: int) -> str:
        return self.add("Gemm", [x, self.random(o, i, gain=i**-0.5), self.random(o, gain=0.1)], transB=1)

    def linear(self, x: str, i: int, o: int) -> str:
        return self.add(
            "Add", [self.add("MatMul", [x, self.random(i, o, gain=i**-0.5)]), self.random(o, gain=0.1)]
        )

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def model(self, *outputs: str) -> onnx.ModelProto:
        data = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        tensors = [numpy_helper.from_array(value, name) for name, value in self.tensors.items()]
        graph = helper.make_graph(self.nodes, "test", [data], results, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)

    def bytes(self, *outputs: str) -> bytes:
        return self.model(*outputs).SerializeToString()


def residual_cnn() -> bytes:
    """Conv-BN-ReLU, one residual block, one option-A shortcut (Slice, Pad), pooling, Gemm; input (N, 3, 12, 12)."""
    b = ModelBuilder(["N", 3, 12, 12])
    x = b.add("Relu", [b.batch_norm(b.conv("x", 3, 8, 3, bias=False), 8)])
    y = b.add("Relu", [b.batch_norm(b.conv(x, 8, 8, 3, bias=False), 8)])
    y = b.batch_norm(b.conv(y, 8, 8, 3, bias=False), 8)
    x = b.add("Relu", [b.add("Add", [y, x])])
    y = b.add("Relu", [b.batch_norm(b.conv(x, 8, 16, 3, stride=2, bias=False), 16)])
    y = b.batch_norm(b.conv(y, 16, 16, 3, bias=False), 16)
    x = option_a_shortcut(b, x, 4)
    x = b.add("Relu", [b.add("Add", [y, x])])
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x])])
    return b.bytes(b.gemm(x, 16, 10))


def option_a_shortcut(b: ModelBuilder, x: str, padding: int) -> str:
    """Every second row and column, zero channels on both sides."""
    big = np.iinfo(np.int64).max
    x = b.add("Slice", [x, b.ints(0, 0), b.ints(big, big), b.ints(2, 3), b.ints(2, 2)])
    return b.add("Pad", [x, b.ints(0, padding, 0, 0, 0, padding, 0, 0), b.constant(0.0)])


def resnet20(weights: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """The CIFAR-10 ResNet-20 with option-A shortcuts, from arrays with PyTorch's names; input (N, 3, 32, 32)."""
    b = ModelBuilder(["N", 3, 32, 32])

    def conv_bn(x: str, conv: str, bn: str, stride: int = 1) -> str:
        x = b.add("Conv", [x, b.constant(weights[f"{conv}.weight"])], strides=[stride] * 2, pads=[1] * 4)
        names = [b.constant(weights[f"{bn}.{k}"]) for k in ("weight", "bias", "running_mean", "running_var")]
        return b.add("BatchNormalization", [x, *names])

    x = b.add("Relu", [conv_bn("x", "conv1", "bn1")])
    for stage, channels in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            name, is_narrowing = f"layer{stage}.{block}", stage > 1 and block == 0
            y = b.add("Relu", [conv_bn(x, f"{name}.conv1", f"{name}.bn1", 2 if is_narrowing else 1)])
            y = conv_bn(y, f"{name}.conv2", f"{name}.bn2")
            x = option_a_shortcut(b, x, channels // 4) if is_narrowing else x
            x = b.add("Relu", [b.add("Add", [y, x])])
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x])])
    head = [b.constant(weights["linear.weight"]), b.constant(weights["linear.bias"])]
    return b.bytes(b.add("Gemm", [x, *head], transB=1))


def resnet20_random() -> bytes:
    """The same shape with random weights."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray[Any, Any]] = {}

    def conv_bn(conv: str, bn: str, i: int, o: int) -> None:
        weights[f"{conv}.weight"] = rng.normal(0, (2 / (9 * i)) ** 0.5, (o, i, 3, 3))
        weights[f"{bn}.weight"], weights[f"{bn}.bias"] = rng.uniform(0.5, 1.0, o), rng.normal(0, 0.1, o)
        weights[f"{bn}.running_mean"], weights[f"{bn}.running_var"] = rng.normal(0, 0.1, o), np.ones(o)

    conv_bn("conv1", "bn1", 3, 16)
    width = 16
    for stage, channels in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            name = f"layer{stage}.{block}"
            conv_bn(f"{name}.conv1", f"{name}.bn1", width, channels)
            conv_bn(f"{name}.conv2", f"{name}.bn2", channels, channels)
            width = channels
    weights["linear.weight"], weights["linear.bias"] = rng.normal(0, 0.1, (10, 64)), rng.normal(0, 0.1, 10)
    return resnet20(weights)


def mobilenet_v2(size: int = 32, width: float = 0.25) -> bytes:
    """MobileNetV2: expansion, depthwise with ReLU6, linear projection, sums; input (N, 3, size, size)."""
    b = ModelBuilder(["N", 3, size, size])

    def scaled(channels: int) -> int:
        return max(8, int(channels * width + 4) // 8 * 8)

    i = scaled(32)
    x = b.relu6(b.batch_norm(b.conv("x", 3, i, 3, stride=2, bias=False), i))
    for t, c, n, s in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]:
        for k in range(n):
            o, stride, hidden = scaled(c), s if k == 0 else 1, i * t
            y = x if t == 1 else b.relu6(b.batch_norm(b.conv(x, i, hidden, 1, bias=False), hidden))
            y = b.relu6(
                b.batch_norm(b.conv(y, hidden, hidden, 3, stride=stride, groups=hidden, bias=False), hidden)
            )
            y = b.batch_norm(b.conv(y, hidden, o, 1, bias=False), o)
            x, i = (b.add("Add", [x, y]) if stride == 1 and i == o else y), o
    last = scaled(1280)
    x = b.relu6(b.batch_norm(b.conv(x, i, last, 1, bias=False), last))
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x])])
    return b.bytes(b.gemm(x, last, 10))


def ds_cnn() -> bytes:
    """DS-CNN on log-mels: a Conv, four depthwise-separable blocks, pooling, Gemm; input (N, 1, 32, 61)."""
    b = ModelBuilder(["N", 1, 32, 61])
    x = b.add("Relu", [b.batch_norm(b.conv("x", 1, 32, 3, stride=2, bias=False), 32)])
    for _ in range(4):
        x = b.add("Relu", [b.batch_norm(b.conv(x, 32, 32, 3, groups=32, bias=False), 32)])
        x = b.add("Relu", [b.batch_norm(b.conv(x, 32, 32, 1, bias=False), 32)])
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x])])
    return b.bytes(b.gemm(x, 32, 10))


def har_cnn() -> bytes:
    """A 1-D CNN with BatchNormalization on its input, mean over time (ReduceMean), Gemm; input (N, 6, 128)."""
    b = ModelBuilder(["N", 6, 128])
    x = b.batch_norm("x", 6)
    for i, o in ((6, 32), (32, 64), (64, 64)):
        x = b.add("Relu", [b.batch_norm(b.conv(x, i, o, 5, stride=2, dims=1), o)])
    x = b.add("ReduceMean", [x, b.ints(2)], keepdims=0)
    return b.bytes(b.gemm(x, 64, 6))


def digits_cnn() -> bytes:
    """Four Convs of 16, 32, 32 and 64 channels, MaxPool, two Gemms; input (N, 1, 8, 8)."""
    b = ModelBuilder(["N", 1, 8, 8])
    x = b.add("Relu", [b.conv("x", 1, 16, 3)])
    x = b.add("Relu", [b.conv(x, 16, 32, 3)])
    x = b.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = b.add("Relu", [b.conv(x, 32, 32, 3)])
    x = b.add("Relu", [b.conv(x, 32, 64, 3)])
    x = b.add("Reshape", [x, b.ints(0, -1)])
    x = b.add("Relu", [b.gemm(x, 64 * 16, 32)])
    return b.bytes(b.gemm(x, 32, 10))


def mlp() -> bytes:
    """MatMul and Add on rows, ReLU between; input (N, 20)."""
    b = ModelBuilder(["N", 20])
    x = b.add("Relu", [b.linear("x", 20, 32)])
    x = b.add("Relu", [b.linear(x, 32, 16)])
    return b.bytes(b.linear(x, 16, 4))


def branches() -> bytes:
    """Concat of a 3x3 and a grouped branch, AveragePool; input (N, 4, 8, 8)."""
    b = ModelBuilder(["N", 4, 8, 8])
    x = b.add("Relu", [b.conv("x", 4, 8, 3)])
    left = b.add("Relu", [b.conv(x, 8, 8, 3)])
    right = b.add("Relu", [b.conv(x, 8, 12, 3, groups=4)])
    x = b.add("Concat", [left, right], axis=1)
    x = b.add("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = b.add("Flatten", [b.add("GlobalAveragePool", [b.add("Relu", [b.conv(x, 20, 8, 1)])])])
    return b.bytes(b.gemm(x, 8, 3))


def encoder_block(b: ModelBuilder, x: str, width: int, heads: int) -> str:
    """Attention and a GELU MLP of twice the width, each behind LayerNormalization and added to its input."""

    def split_heads(y: str, perm: list[int]) -> str:
        return b.add("Transpose", [b.add("Reshape", [y, b.ints(0, 0, heads, width // heads)])], perm=perm)

    y = layer_norm(b, x, width)
    q, k, v = (b.linear(y, width, width) for _ in range(3))
    scores = b.add("MatMul", [split_heads(q, [0, 2, 1, 3]), split_heads(k, [0, 2, 3, 1])])
    weights = b.add("Softmax", [b.add("Mul", [scores, b.constant((width / heads) ** -0.5)])], axis=-1)
    y = b.add("MatMul", [weights, split_heads(v, [0, 2, 1, 3])])
    y = b.add("Reshape", [b.add("Transpose", [y], perm=[0, 2, 1, 3]), b.ints(0, 0, width)])
    x = b.add("Add", [x, b.linear(y, width, width)])
    y = b.add("Gelu", [b.linear(layer_norm(b, x, width), width, 2 * width)])
    return b.add("Add", [x, b.linear(y, 2 * width, width)])


def layer_norm(b: ModelBuilder, y: str, width: int) -> str:
    scale = b.constant(b.rng.uniform(0.5, 1.5, width))
    return b.add("LayerNormalization", [y, scale, b.random(width, gain=0.1)])


def transformer(tokens: int = 16, width: int = 32, heads: int = 4) -> bytes:
    """Patch embedding, one attention block with GELU MLP, mean over tokens, Gemm; 4x4 patches are tokens."""
    side = int(tokens**0.5) * 4
    b = ModelBuilder(["N", 3, side, side])
    patches = [b.random(width, 3, 4, 4, gain=0.15), b.random(width, gain=0.1)]
    x = b.add("Conv", ["x", *patches], strides=[4, 4], kernel_shape=[4, 4])
    x = b.add("Transpose", [b.add("Reshape", [x, b.ints(0, width, -1)])], perm=[0, 2, 1])
    x = b.add("Add", [x, b.random(1, tokens, width, gain=0.2)])
    x = encoder_block(b, x, width, heads)
    x = b.add("ReduceMean", [layer_norm(b, x, width), b.ints(1)], keepdims=0)
    return b.bytes(b.gemm(x, width, 5))


def text_encoder(length: int = 12, width: int = 32, heads: int = 4, vocabulary: int = 16) -> bytes:
    """Embedding of token numbers, two attention blocks, the first token, Gemm; input (N, length), whole numbers."""
    b = ModelBuilder(["N", length])
    table = b.random(vocabulary, width)
    x = b.add("Gather", [table, b.add("Cast", ["x"], to=TensorProto.INT64)])
    x = b.add("Add", [x, b.random(1, length, width, gain=0.2)])
    for _ in range(2):
        x = encoder_block(b, x, width, heads)
    x = b.add("Gather", [layer_norm(b, x, width), b.constant(0, np.int64)], axis=1)
    return b.bytes(b.gemm(x, width, 5))


ALL_MODELS = {
    "residual_cnn": residual_cnn,
    "resnet20": resnet20_random,
    "mobilenet_v2": mobilenet_v2,
    "ds_cnn": ds_cnn,
    "har_cnn": har_cnn,
    "digits_cnn": digits_cnn,
    "mlp": mlp,
    "branches": branches,
    "transformer": transformer,
    "text_encoder": text_encoder,
}


def example_inputs(model: bytes, batch: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Normal values of the shape that a model takes."""
    dims = onnx.ModelProto.FromString(model).graph.input[0].type.tensor_type.shape.dim
    shape = [batch, *(d.dim_value for d in dims[1:])]
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


Arrays = dict[str, np.ndarray[Any, Any]]


def open_session(
    skeleton: bytes, files: Mapping[str, np.ndarray[Any, Any]] | None = None, optimized: Path | None = None
) -> ort.InferenceSession:
    """A session on one thread, as a device opens it: tensors from memory, no onnx package."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    buffers = [np.ascontiguousarray(content).tobytes() for content in (files or {}).values()]
    if files:
        lengths = [len(buffer) for buffer in buffers]
        options.add_external_initializers_from_files_in_memory(list(files), buffers, lengths)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(skeleton, options, providers=["CPUExecutionProvider"])


def run(
    skeleton: bytes, x: np.ndarray[Any, Any], files: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> Arrays:
    """Outputs by name."""
    session = open_session(skeleton, files)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def run_exposed(model: bytes, x: np.ndarray[Any, Any], tensors: Iterable[str]) -> Arrays:
    """Values of tensors inside a float model, its outputs and its input."""
    proto = onnx.load_model_from_string(model)
    shown = {value.name for value in proto.graph.output} | {proto.graph.input[0].name}
    new = [name for name in dict.fromkeys(tensors) if name not in shown]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)
    return run(proto.SerializeToString(), x) | {proto.graph.input[0].name: x}


def observed_policy(
    model: bytes,
    plan: GraphPlan,
    x: np.ndarray[Any, Any],
    *,
    bits: int = 8,
    corrections: Mapping[str, ChannelCorrection] | None = None,
    generation: int = 0,
) -> Policy:
    """A policy with the ranges that the float model shows on `x`."""
    values = run_exposed(model, x, [site.name for site in plan.sites])
    ranges = {
        site.name: Range(min(0.0, float(values[site.name].min())), max(0.0, float(values[site.name].max())))
        for site in plan.sites
    }
    widths = {layer.name: bits for layer in plan.layers}
    digest = sha256(model).hexdigest()
    return Policy(digest, "test", generation, ranges, widths, corrections or {}, "minmax")


def fused_ops(compiled: CompiledGraph, folder: Path) -> Counter[str]:
    """How many operators of each kind ONNX Runtime runs for a compiled graph."""
    path = folder / "optimized.onnx"
    open_session(compiled.skeleton, compiled.files, path)
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
