"""How fast do packed codes of 2 to 8 bits expand to int8, beside copying the int8 codes?

What a device does with each weight when it loads a model. The copy is `np.copyto` between two arrays that exist, the
least that writing so many bytes takes; "fresh" copies into a new array, as expanding has to. Time is the thread's own,
which a busy machine hardly changes, per byte written. Decoding a blob is measured apart, on codes as an entropy-coded
grid leaves them. One thread, repetitions by turns, the best of each. `--smoke` takes 2^18 codes; `--json` prints one
object; exits 1 where a width needs more than twice the copy.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.packing import pack, unpack

WIDTHS = range(2, 9)
MOST_RATIO = 2.0
COPY, FRESH = "copyto", "copy to a fresh array"


def best_seconds(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Return the best seconds of each call."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repetitions):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            best[name] = min(best[name], time.thread_time() - start)
    return best


def random_codes(count: int, bit_width: int, seed: int) -> NDArray[np.int8]:
    """Return codes that use all of the bits."""
    half = 1 << (bit_width - 1)
    return np.random.default_rng(seed).integers(-half, half, count).astype(np.int8)


def measure(count: int, repetitions: int, seed: int) -> dict[str, dict[str, float]]:
    """Return nanoseconds per code of expanding each width, of packing it, and of decoding an entropy-coded blob."""
    codes = random_codes(count, 8, seed)
    target = np.empty_like(codes)
    expanding: dict[str, Callable[[], object]] = {COPY: partial(np.copyto, target, codes), FRESH: codes.copy}
    packing: dict[str, Callable[[], object]] = {}
    for bit_width in WIDTHS:
        narrow = random_codes(count, bit_width, seed)
        expanding[f"{bit_width} bits"] = partial(unpack, pack(narrow, bit_width), bit_width, count)
        packing[f"{bit_width} bits"] = partial(pack, narrow, bit_width)
    normal = np.rint(np.random.default_rng(seed).normal(size=min(count, 1 << 20)) * 2).astype(np.int8)
    stored = encode_blob(normal.tobytes(), is_codes=True)
    decoding = {
        "decode, digest included": partial(decode_blob_content, stored, content_digest(normal.tobytes()))
    }
    found = {
        "expand": (best_seconds(expanding, repetitions), count),
        "pack": (best_seconds(packing, max(1, repetitions // 4)), count),
        "zstd": (best_seconds(decoding, repetitions), normal.size),
    }
    return {
        kind: {name: seconds / size * 1e9 for name, seconds in of_kind.items()}
        for kind, (of_kind, size) in found.items()
    }


def main() -> int:
    """Print nanoseconds per byte and ratios to the copy; exit 1 where a ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count, repetitions = (1 << 18, 3) if arguments.smoke else (25_000_000, 15)
    found = measure(count, repetitions, arguments.seed)
    ratios = {name: taken / found["expand"][COPY] for name, taken in found["expand"].items()}
    load = os.getloadavg()[0]
    if arguments.json:
        print(json.dumps({"codes": count, "nanoseconds": found, "ratios": ratios, "load_average": load}))
    else:
        print(f"{count:,} codes, best of {repetitions}, load average {load:.1f}")
        for name, taken in found["expand"].items():
            packed = f"   pack {found['pack'][name]:6.2f} ns" if name in found["pack"] else ""
            print(f"{name:24} {taken:6.3f} ns/byte {ratios[name]:6.2f} x copyto{packed}")
        for name, taken in found["zstd"].items():
            print(f"{name:24} {taken:6.3f} ns/byte")
    widths = [ratios[f"{bit_width} bits"] for bit_width in WIDTHS]
    return 0 if max(widths) <= MOST_RATIO or arguments.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
