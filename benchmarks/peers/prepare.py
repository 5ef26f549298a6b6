"""Write what the peers are measured on: the model, calibration images of a fleet, and the test images.

Runs in the project's own environment, so that all tools get the same arrays. The calibration images are rows that the
devices of a Quantfleet fleet hold: 50 devices of two classes each, the same number of each device's rows, put together.

    QUANTFLEET_DATA=... python benchmarks/peers/prepare.py --out benchmarks/peers/.work
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from simulation.partition import partition
from simulation.tasks import load_task

DEVICES = 50


def main() -> int:
    """Write model.onnx, test.npz, and one calibration file for each seed and number of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--rows", type=int, nargs="+", default=[20, 80], help="of each device")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        task = load_task("cifar10", seed)
        parts = partition(task, DEVICES, "classes:2", seed)
        for count in options.rows:
            rows = np.concatenate([part[:: max(1, len(part) // count)][:count] for part in parts])
            np.save(
                options.out / f"calibration-{count * DEVICES}-{seed}.npy", task.to_input(task.field_x[rows])
            )
        if seed == 0:
            np.savez(options.out / "test.npz", x=task.to_input(task.test_x), y=task.test_y)
            (options.out / "model.onnx").write_bytes(task.model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
