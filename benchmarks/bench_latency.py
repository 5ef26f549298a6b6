"""How long does one inference take in int8, against ONNX Runtime's float model and its own quantized one?

One thread, batch 1, random weights (they do not change the time), three sessions of each model, interleaved: float32
ONNX Runtime; `onnxruntime.quantization.quantize_static` (QDQ, u8 activations, s8 weights per channel); and ours.
Medians, and ratios of medians taken in the same run. Exits with 1 if ours takes more than 1.05 times quantize_static's.

    python benchmarks/bench_latency.py [--smoke] [--json]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import models

from quantization.compile import compile_inference
from quantization.graph import analyze, canonicalize

BAR = 1.05
"""Ours may take this many times as long as quantize_static's model."""

MODELS: dict[str, Callable[[], bytes]] = {
    "resnet20": models.resnet20_random,
    "mobilenet_v2_96": lambda: models.mobilenet_v2(96, 1.0),
}


class Batches(CalibrationDataReader):  # type: ignore[misc] # published without types
    """The calibration inputs as quantize_static reads them."""

    def __init__(self, name: str, inputs: np.ndarray[Any, Any]) -> None:
        self._batches: Iterator[dict[str, np.ndarray[Any, Any]]] = iter([{name: x[None]} for x in inputs])

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Return the next feed, None behind the last."""
        return next(self._batches, None)


def quantized_by_onnxruntime(model: bytes, inputs: np.ndarray[Any, Any], folder: Path) -> bytes:
    """Return what quantize_static makes of the model, its recommended preprocessing included."""
    paths = [folder / f"{stem}.onnx" for stem in ("float", "prepared", "quantized")]
    paths[0].write_bytes(model)
    quant_pre_process(str(paths[0]), str(paths[1]))
    name = onnx.load_model_from_string(model).graph.input[0].name
    quantize_static(
        str(paths[1]),
        str(paths[2]),
        Batches(name, inputs),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return paths[2].read_bytes()


def quantized_by_us(model: bytes, inputs: np.ndarray[Any, Any]) -> ort.InferenceSession:
    """Return a session over the compiled artifact's graph, opened as a device opens it."""
    canonical = canonicalize(model)
    plan = analyze(canonical)
    policy = models.observed_policy(canonical, plan, inputs)
    graph = compile_inference(canonical, plan, policy)
    return models.open_session(graph.skeleton, graph.files)


def measure(
    sessions: dict[str, ort.InferenceSession], x: np.ndarray[Any, Any], seconds: float
) -> dict[str, float]:
    """Return the median time of one inference in milliseconds, by session, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    feeds = {name: {session.get_inputs()[0].name: x} for name, session in sessions.items()}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["ours"]) < 20:
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feeds[name])
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values[len(values) // 10 :]) for name, values in times.items()}


def bench(name: str, seconds: float) -> dict[str, float]:
    """Return medians and ratios of one model."""
    model = MODELS[name]()
    inputs = models.example_inputs(model, 4)
    with tempfile.TemporaryDirectory() as folder:
        theirs = quantized_by_onnxruntime(model, inputs, Path(folder))
    sessions = {
        "float32": models.open_session(model),
        "quantize_static": models.open_session(theirs),
        "ours": quantized_by_us(model, inputs),
    }
    medians = measure(sessions, inputs[:1], seconds)
    return {f"{key}_ms": value for key, value in medians.items()} | {
        "ours_over_float32": medians["ours"] / medians["float32"],
        "ours_over_quantize_static": medians["ours"] / medians["quantize_static"],
    }


def main() -> int:
    """Print medians and ratios; return 1 if one misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a second in all: checks that it runs")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    results = {name: bench(name, 0.3 if arguments.smoke else 10.0) for name in MODELS}
    if arguments.json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            print(name, "  ".join(f"{key} {value:.3f}" for key, value in result.items()))
    is_met = all(result["ours_over_quantize_static"] <= BAR for result in results.values())
    return 0 if is_met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
