"""Write tests/golden/histogram.npz: values, and the arrays that their histograms are.

Run from the repository's root: `python tests/golden/make_histogram.py`. The arrays are computed here from
their definition with exact fractions, not by the code that they test.
"""

import io
import math
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CASES: dict[str, tuple[list[float], list[float] | None]] = {
    "empty": ([], None),
    "only_nonfinite": ([math.nan, math.inf, -math.inf], None),
    "zeros": ([0.0, -0.0, 0.0], None),
    "constant": ([1.5, 1.5], None),
    "both_signs": ([-1.0, -0.3, -1e-30, 0.0, 1e-30, 0.3, 0.3, 1.7], None),
    "denormal": ([1e-45, -1e-45, 3e-39], None),
    "huge": ([3e38, -3e38, 1e-20, -1e-20, math.nan], None),
    "far_from_zero": ([1000.0, 1000.001, 1000.25], None),
    "weighted": ([-2.0, 0.5, 3.25, 100.0], [1.0, 0.25, 2.5, 0.001]),
}


def histogram(values: list[float], weights: list[float] | None) -> NDArray[np.int64]:
    """Return the histogram's numbers as docs/formats/histogram.md defines them."""
    steps = [256] * len(values) if weights is None else [round(weight * 256) for weight in weights]
    pairs = [(float(np.float32(v)) + 0.0, s) for v, s in zip(values, steps, strict=True) if s > 0]
    finite = [(Fraction(v), s) for v, s in pairs if math.isfinite(v)]
    nonfinite_count = len(pairs) - len(finite)
    if not finite:
        bounds = np.array([np.inf, -np.inf], np.float32).view(np.uint32).tolist()
        return np.array([1, -126, 0, 0, nonfinite_count, *bounds], np.int64)
    low, high = min(v for v, _ in finite), max(v for v, _ in finite)
    for exponent in range(-126, 128):
        width = Fraction(2) ** exponent
        first, last = low // width, high // width
        if last - first < 2048 and first > -(2**20) and last < 2**20:
            break
    counts = [0] * (last - first + 1)
    for value, step in finite:
        counts[value // width - first] += step
    bounds = np.array([float(low), float(high)], np.float32).view(np.uint32).tolist()
    return np.array([1, exponent, first, len(finite), nonfinite_count, *bounds, *counts], np.int64)


def main() -> None:
    """Write the archive, with the same bytes each time."""
    with zipfile.ZipFile(Path(__file__).with_name("histogram.npz"), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (values, weights) in CASES.items():
            arrays = {"values": np.array(values, np.float32), "histogram": histogram(values, weights)}
            if weights is not None:
                arrays["weights"] = np.array(weights, np.float64)
            for kind, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                archive.writestr(
                    zipfile.ZipInfo(f"{name}/{kind}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED
                )


if __name__ == "__main__":
    main()
