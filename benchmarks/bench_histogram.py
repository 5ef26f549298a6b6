"""How fast is the histogram of 10^7 float32, beside what others do with the same array?

One process, repetitions by turns, the best of each; all but torch, which may use every CPU, use one thread.
`--smoke` takes 10^6 values and one repetition; `--json` prints one object.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantization.histogram import DyadicHistogram

BINS = 2048
CPUS = os.cpu_count() or 1
OURS = "quantfleet"
LIMIT = "reading once (limit)"
TARGET_RATIOS = {"numpy": 3.0, "torch": 1.8, "onnxruntime": 3.0}


def contenders(values: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name; each call makes one histogram of `values`."""
    import torch  # noqa: PLC0415 - peers load only where they are measured
    from onnxruntime.quantization.calibrate import HistogramCollector  # noqa: PLC0415
    from torch.ao.quantization import HistogramObserver  # noqa: PLC0415

    tensor = torch.from_numpy(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves to another package one day
        observer = HistogramObserver(bins=BINS)

    def collect() -> object:
        collector = HistogramCollector("percentile", False, BINS, 128, 99.99, "same")
        with contextlib.redirect_stdout(io.StringIO()):
            collector.collect({"site": values})
        return collector

    return {
        OURS: functools.partial(DyadicHistogram.from_values, values),
        "numpy": functools.partial(np.histogram, values, BINS),
        "torch": functools.partial(observer, tensor),
        "onnxruntime": collect,
        LIMIT: functools.partial(np.max, values),
    }


def measure(size: int, repetitions: int, seed: int) -> dict[str, float]:
    """Return the best seconds of each contender on normal values."""
    values = np.random.default_rng(seed).standard_normal(size, np.float32)
    calls = contenders(values)
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():  # warms up; an observer of torch only learns the range in its first call
        call()
    for _ in range(repetitions):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> int:
    """Print seconds, rates and ratios; exit 1 where a ratio misses its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    size, repetitions = (10**6, 1) if arguments.smoke else (10**7, 11)
    seconds = measure(size, repetitions, arguments.seed)
    ratios = {name: seconds[name] / seconds[OURS] for name in TARGET_RATIOS}
    if arguments.json:
        result = {"values": size, "cpus": CPUS, "seconds": seconds, "ratios": ratios}
        print(json.dumps(result))
    else:
        print(f"{size:,} float32, {BINS} bins, {CPUS} CPUs, best of {repetitions}")
        for name, taken in seconds.items():
            target = f"  target {TARGET_RATIOS[name]}" if name in TARGET_RATIOS else ""
            ratio, rate = taken / seconds[OURS], size / taken / 1e6
            print(f"{name:22} {taken * 1e3:8.2f} ms {rate:7.0f} M/s {ratio:6.2f} x{target}")
    is_met = all(ratios[name] >= target for name, target in TARGET_RATIOS.items())
    return 0 if is_met or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
