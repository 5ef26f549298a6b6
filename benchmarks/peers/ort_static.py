"""Post-training quantization by ONNX Runtime: `quantize_static` with int8 or int4 weights by channel.

Int8 activations. Accuracy is that of the quantized model in ONNX Runtime.

    .venv-onnx/bin/python ort_static.py
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import peer
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

CALIBRATION_BATCH = 50


@dataclass(frozen=True)
class Setting:
    """One way to quantize.

    Attributes:
        weight_type: Int8 or int4, by channel, symmetric.
        method: How ranges of activations are found.
    """

    weight_type: QuantType
    method: CalibrationMethod = CalibrationMethod.MinMax


SETTINGS = {
    "minmax-w8": Setting(QuantType.QInt8),
    "entropy-w8": Setting(QuantType.QInt8, CalibrationMethod.Entropy),
    "percentile-w8": Setting(QuantType.QInt8, CalibrationMethod.Percentile),
    "minmax-w4": Setting(QuantType.QInt4),
    "percentile-w4": Setting(QuantType.QInt4, CalibrationMethod.Percentile),
}


class Reader(CalibrationDataReader):
    """Calibration images in batches, as ONNX Runtime asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        parts = np.split(images, len(images) // CALIBRATION_BATCH)
        self._batches: Iterator[np.ndarray] = iter(parts)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


def measure(name: str, options: argparse.Namespace, seed: int) -> None:
    """Quantize once and print the line."""
    setting, watch = SETTINGS[name], peer.Stopwatch()
    reader = Reader(peer.calibration_images(options, seed))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "quantized.onnx"
        with watch.part("quantize"):
            quantize_static(
                str(options.work / "model.onnx"),
                str(target),
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=setting.weight_type,
                calibrate_method=setting.method,
            )
        model = onnx.load(target)
    accuracy = peer.test_accuracy(options, peer.session(model.SerializeToString(), options.threads))
    peer.report(
        "onnxruntime",
        name,
        options,
        seed=seed,
        watch=watch,
        accuracy=accuracy,
        layers=peer.stored_initializers(model),
    )


def main() -> int:
    """Measure the settings that were asked for."""
    options = peer.arguments(__doc__, SETTINGS)
    for name in options.setting:
        for seed in range(options.seeds):
            measure(name, options, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
