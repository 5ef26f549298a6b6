"""How long do rounding, allocation, packing and compiling take for a model of 200 layers and 25 million weights?

The model has the shape of ResNet-50, but is deeper and narrower, with random weights; its second moments are measured
on random images whose pixels are correlated. Layers are rounded on every entropy-coded grid (wide ones on every
second), allocated for a tenth of the float bytes, sized exactly, packed and compiled into what a device fetches.
`--smoke` takes a model of 32 layers; `--json` prints one object; exits 1 beyond 300 s or 4 GB.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantization.artifact import build_artifact
from quantization.bit_allocation import Budget, Candidate
from quantization.blob import content_digest
from quantization.calibration import Range
from quantization.canonical import canonicalize
from quantization.compile import compile_inference
from quantization.compile_observation import compile_observation
from quantization.draft import Draft, attribute
from quantization.graph import analyze
from quantization.graph_plan import GraphPlan
from quantization.im2col import ConvWindow, sample_columns
from quantization.layer_codes import LayerCodes, to_bytes, weight_rows
from quantization.layer_rounding import RoundedLayer
from quantization.measured_allocation import allocate_measured
from quantization.model_rounding import round_model
from quantization.policy import Policy
from quantization.scale_search import affordable_grids
from quantization.second_moments import SecondMoments, exponent_for
from quantization.stored_size import stored_size_bytes

MOST_SECONDS, MOST_BYTES = 300.0, 4 << 30
SIZE_RATIO = 10.0
WIDTH, BLOCKS = 40, (3, 23, 36, 3)
SMOKE_WIDTH, SMOKE_BLOCKS = 8, (2, 3, 2, 2)
IMAGES, SIDE, MAX_COLUMNS = 16, 96, 2048
FULL_MATRIX, BLOCK = 1024, 512
"""Most columns of a full matrix of second moments, and columns of a block where there are more."""


class Network:
    """Appends convolutions to a graph of float32 images."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:  # noqa: ANN401 - ONNX has no one type
        """Append an operator; return its result."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def weights(self, *shape: int, gain: float = 1.0) -> str:
        """Return a random tensor with heavy tails and rows of different sizes, as trained weights have."""
        name = f"weight_{len(self.tensors)}"
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        values = self.rng.standard_t(6, shape) * gain * (1.5 / fan_in) ** 0.5
        values *= np.exp(0.3 * self.rng.normal(size=(shape[0], *[1] * (len(shape) - 1))))
        self.tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, x: str, i: int, o: int, k: int, *, stride: int = 1, gain: float = 1.0) -> str:
        """Append a convolution with a bias."""
        inputs = [x, self.weights(o, i, k, k, gain=gain), self.weights(o)]
        return self.add("Conv", inputs, kernel_shape=[k, k], strides=[stride] * 2, pads=[k // 2] * 4)

    def bottleneck(self, x: str, i: int, middle: int, stride: int) -> str:
        """Append a residual block of three convolutions, whose output has four times `middle` channels."""
        y = self.add("Relu", [self.conv(x, i, middle, 1)])
        y = self.add("Relu", [self.conv(y, middle, middle, 3, stride=stride)])
        y = self.conv(y, middle, 4 * middle, 1, gain=0.3)
        is_same = stride == 1 and i == 4 * middle
        shortcut = x if is_same else self.conv(x, i, 4 * middle, 1, stride=stride)
        return self.add("Relu", [self.add("Add", [y, shortcut])])


def build_model(width: int, blocks: tuple[int, ...], seed: int) -> bytes:
    """Return a network of bottlenecks whose first stage has `width` channels inside."""
    net = Network(seed)
    x = net.add("Relu", [net.conv("x", 3, width, 7, stride=2)])
    x = net.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    channels = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            x = net.bottleneck(x, channels, width << stage, 2 if stage and not block else 1)
            channels = 4 * (width << stage)
    x = net.add("Flatten", [net.add("GlobalAveragePool", [x])])
    x = net.add("Gemm", [x, net.weights(1000, channels), net.weights(1000)], transB=1)
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
    graph = helper.make_graph(net.nodes, "scale", [data], [logits], net.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def correlated_images(count: int, seed: int) -> NDArray[np.float32]:
    """Return random images (N, 3, side, side) with a spectrum that falls as 1/f, as photos have."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    spectrum = np.fft.rfft2(rng.normal(size=(count, 3, SIDE, SIDE))) / np.maximum(frequency, 1 / SIDE)
    images = np.fft.irfft2(spectrum, (SIDE, SIDE))
    return np.asarray(images / images.std(), np.float32)


def observed(
    model: bytes, plan: GraphPlan, draft: Draft, images: NDArray[np.float32]
) -> tuple[dict[str, SecondMoments], dict[str, Range]]:
    """Return second moments of every layer's input and the range of every site."""
    proto = onnx.load_model_from_string(model)
    wanted = sorted({layer.input for layer in plan.layers} | {site.name for site in plan.sites})
    shown = [*(value.name for value in proto.graph.output), plan.input_name]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in shown)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [name for name in wanted if name != plan.input_name]
    found = session.run(names, {plan.input_name: images})
    values = dict(zip(names, found, strict=True)) | {plan.input_name: images}
    nodes = {node.name: node for node in draft.nodes}
    moments = {}
    for layer in plan.layers:
        node, kernel = nodes[layer.name], draft.tensors[layer.weight].shape[2:]
        window = None
        if layer.op == "Conv":
            steps = tuple(attribute(node, "strides", [1, 1])), tuple(attribute(node, "pads", [0] * 4))
            window = ConvWindow(tuple(kernel), *steps, (1, 1), layer.groups)
        columns = sample_columns(values[layer.input], window, MAX_COLUMNS)
        exponent = exponent_for(2 * float(np.square(columns).mean(1).max()))
        block = BLOCK if columns.shape[2] > FULL_MATRIX else None
        empty = SecondMoments.empty(columns.shape[2], exponent, groups=layer.groups, block=block)
        moments[layer.name] = empty.add_columns(columns)
    ranges = {
        s.name: Range(min(float(values[s.name].min()), 0.0), max(float(values[s.name].max()), 0.1))
        for s in plan.sites
    }
    return moments, ranges


def allocated(
    rounded: Mapping[str, list[RoundedLayer]], weight_count: int, seed: int
) -> tuple[dict[str, RoundedLayer], float]:
    """Return the chosen rounding of each layer, and how many times smaller than float32 all of them are."""
    rng = np.random.default_rng(seed)
    gains = {name: float(rng.lognormal(0, 1)) for name in rounded}
    candidates = {
        name: [Candidate(r.bit_width, r.size_bytes, gains[name] * r.loss) for r in of_layer]
        for name, of_layer in rounded.items()
    }
    budget = Budget(size_bytes=int(4 * weight_count / SIZE_RATIO))
    found, _ = allocate_measured(
        candidates, budget, lambda name, index: stored_size_bytes(rounded[name][index].codes)
    )
    chosen = {name: rounded[name][index] for name, index in found.choice.items()}
    return chosen, 4 * weight_count / found.size_bytes


class Clock:
    """Seconds on the wall and of CPUs, and peak memory, of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.cpu_seconds[name] = time.process_time() - cpu_start
        self.peak_bytes[name] = peak_rss_bytes()


def peak_rss_bytes() -> int:
    """Return the most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(width: int, blocks: tuple[int, ...], workers: int, seed: int) -> dict[str, Any]:
    """Return facts, seconds by step and peak memory."""
    clock = Clock()
    with clock.step("build the model"):
        model = canonicalize(build_model(width, blocks, seed))
        plan, draft = analyze(model), Draft.from_model(onnx.load_model_from_string(model))
    with clock.step("measure second moments"):
        moments, ranges = observed(model, plan, draft, correlated_images(IMAGES, seed))
    weights = {
        layer.name: weight_rows(draft.tensors[layer.weight], layer.weight_axis) for layer in plan.layers
    }
    count = sum(rows.size for rows in weights.values())
    with clock.step("round"):
        grids = {name: affordable_grids(rows.size) for name, rows in weights.items()}
        rounded = round_model(
            weights,
            moments,
            grids,
            is_centred={layer.name: layer.bias is not None for layer in plan.layers},
            workers=workers,
        )
    with clock.step("allocate"):
        chosen, ratio = allocated(rounded, count, seed)
    with clock.step("compile and pack"):
        codes = {name: LayerCodes(r.codes, r.scale, r.bias_shift) for name, r in chosen.items()}
        widths = {name: r.bit_width for name, r in chosen.items()}
        digests = content_digest(model), content_digest(to_bytes(codes))
        policy = Policy(digests[0], "x86-vnni", 1, ranges, widths, {}, "minmax", digests[1])
        inference = compile_inference(model, plan, policy, codes)
        observation = compile_observation(model, plan, policy, None, codes)
        artifact = build_artifact(inference, observation, policy, plan)
    return {
        "layers": len(plan.layers),
        "weights": count,
        "size_ratio": ratio,
        "artifact_bytes": sum(map(len, artifact.blobs.values())),
        "seconds": clock.seconds,
        "total_seconds": sum(clock.seconds.values()),
        "cpu_seconds": clock.cpu_seconds,
        "total_cpu_seconds": sum(clock.cpu_seconds.values()),
        "peak_bytes": clock.peak_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "load_average": os.getloadavg()[0],
        "workers": workers,
    }


def main() -> int:
    """Print seconds by step and peak memory; exit 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    shape = (SMOKE_WIDTH, SMOKE_BLOCKS) if arguments.smoke else (WIDTH, BLOCKS)
    facts = measure(*shape, arguments.workers, arguments.seed)
    if arguments.json:
        print(json.dumps(facts))
    else:
        print(f"{facts['layers']} layers, {facts['weights']:,} weights, {facts['size_ratio']:.2f} x smaller")
        for name, seconds in facts["seconds"].items():
            cpu, peak = facts["cpu_seconds"][name], facts["peak_bytes"][name] / 2**30
            print(f"{name:24} {seconds:8.1f} s {cpu:8.1f} s of CPUs   peak {peak:5.2f} GiB")
        print(f"{'in all':24} {facts['total_seconds']:8.1f} s {facts['total_cpu_seconds']:8.1f} s of CPUs")
        print(f"load average {facts['load_average']:.1f}; {arguments.workers} workers")
    is_met = facts["total_seconds"] <= MOST_SECONDS and facts["peak_rss_bytes"] <= MOST_BYTES
    return 0 if is_met and facts["size_ratio"] >= SIZE_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
