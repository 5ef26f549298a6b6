"""What all peers share: their data, what their weights weigh, and the line of JSON that they print.

Needs numpy and zstandard alone; it runs in every peer's environment.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zstandard

WORK = Path(__file__).parent / ".work"
SCALE_BYTES = 4
ZSTD_LEVEL = 19
BATCH = 250


@dataclass(frozen=True)
class StoredLayer:
    """Weights of a layer as integers.

    Attributes:
        codes: Integers, the first axis being output channels.
        bit_width: Bits of each.
        scales: How many scales it has, each stored in four bytes.
        zero_points: How many zero points it has, each stored at the codes' bit width; 0 where symmetric.
    """

    codes: np.ndarray
    bit_width: int
    scales: int
    zero_points: int = 0

    def size_bytes(self) -> int:
        """Return the bytes of packed codes, scales and zero points."""
        return len(self._packed()) + self._side_bytes()

    def compressed_bytes(self) -> int:
        """Return the same with the codes as zstd makes them smallest: packed, one code a byte, or left packed."""
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        packed = self._packed()
        single = self.codes.astype(np.int16).astype(np.uint8).tobytes()
        parts = (len(packed), len(compressor.compress(packed)), len(compressor.compress(single)))
        return min(parts) + self._side_bytes()

    def _packed(self) -> bytes:
        low = -(1 << (self.bit_width - 1)) if self.codes.min() < 0 else 0
        values = (self.codes.astype(np.int64) - low).ravel()
        if values.min() < 0 or values.max() >= 1 << self.bit_width:
            message = f"codes {self.codes.min()}..{self.codes.max()} do not fit {self.bit_width} bits"
            raise ValueError(message)
        bits = (values[:, None] >> np.arange(self.bit_width)) & 1
        return np.packbits(bits.astype(np.uint8).ravel()).tobytes()

    def _side_bytes(self) -> int:
        return self.scales * SCALE_BYTES + -(-self.zero_points * self.bit_width // 8)


@dataclass
class Stopwatch:
    """Time of the calls that it wraps.

    Attributes:
        seconds: By the clock on the wall.
        cpu_seconds: Of all cores; what to compare on a machine that is shared.
        parts: Seconds by the wall, by name of the call.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        seconds = time.perf_counter() - start
        self.parts[name] = round(seconds, 2)
        self.seconds += seconds
        self.cpu_seconds += time.process_time() - cpu_start


def arguments(description: str | None, settings: Mapping[str, object]) -> argparse.Namespace:
    """Return the options that every peer has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", choices=sorted(settings), action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=1, help="sets of calibration images, 0 to N - 1")
    parser.add_argument("--images", type=int, default=1000, help="calibration images: 1000 or 4000")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--work", type=Path, default=WORK, help="folder that prepare.py wrote")
    options = parser.parse_args()
    options.setting = options.setting or sorted(settings)
    return options


def calibration_images(options: argparse.Namespace, seed: int) -> np.ndarray:
    """Return float32 inputs (images, 3, 32, 32)."""
    return np.load(options.work / f"calibration-{options.images}-{seed}.npy")


def test_accuracy(options: argparse.Namespace, infer: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the share of the 5,000 test images that `infer`, inputs to logits, gets right."""
    test = np.load(options.work / "test.npz")
    x, y = test["x"], test["y"]
    hits = sum(
        int((infer(x[i : i + BATCH]).argmax(1) == y[i : i + BATCH]).sum()) for i in range(0, len(y), BATCH)
    )
    return hits / len(y)


def session(model: bytes, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return inputs to logits through ONNX Runtime, where the peer's environment has it."""
    import onnxruntime  # noqa: PLC0415 - not every environment has it

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    opened = onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])
    return lambda x: opened.run(None, {"input": x})[0]


def stored_initializers(model: object) -> dict[str, StoredLayer]:
    """Return the integer weights of a QDQ model: inputs of DequantizeLinear with two axes or more."""
    import onnx.numpy_helper  # noqa: PLC0415

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors:
            continue
        tensor = tensors[node.input[0]]
        if len(tensor.dims) < 2:
            continue
        codes = onnx.numpy_helper.to_array(tensor).astype(np.int16)
        scales = onnx.numpy_helper.to_array(tensors[node.input[1]]).size
        zeros = onnx.numpy_helper.to_array(tensors[node.input[2]]) if len(node.input) > 2 else np.zeros(1)
        bits = 4 if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else 8
        layers[node.input[0]] = StoredLayer(codes, bits, scales, zeros.size if zeros.any() else 0)
    return layers


def report(
    package: str,
    setting: str,
    options: argparse.Namespace,
    *,
    seed: int,
    watch: Stopwatch,
    accuracy: float,
    layers: Mapping[str, StoredLayer],
) -> None:
    """Print one line of JSON."""
    weights = sum(layer.codes.size for layer in layers.values())
    size = sum(layer.size_bytes() for layer in layers.values())
    compressed = sum(layer.compressed_bytes() for layer in layers.values())
    line = {
        "tool": package,
        "version": version(package),
        "setting": setting,
        "seed": seed,
        "images": options.images,
        "accuracy": round(accuracy, 4),
        "weight_bytes": size,
        "size_ratio": round(4 * weights / size, 2),
        "zstd_weight_bytes": compressed,
        "zstd_size_ratio": round(4 * weights / compressed, 2),
        "seconds": round(watch.seconds, 2),
        "cpu_seconds": round(watch.cpu_seconds, 2),
        "parts_seconds": watch.parts,
        "threads": options.threads,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
