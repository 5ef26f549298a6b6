"""Post-training quantization by NNCF on ONNX: int8 only, since NNCF has no fewer bits for convolutions.

Accuracy is that of the quantized model in ONNX Runtime.

    .venv-onnx/bin/python nncf_ptq.py
"""

import argparse
import sys
from dataclasses import dataclass

import nncf
import onnx
import peer

CALIBRATION_BATCH = 50


@dataclass(frozen=True)
class Setting:
    """One way to quantize.

    Attributes:
        preset: Symmetric activations ("performance"), or asymmetric where they may be negative ("mixed").
        fast_bias: Whether biases are corrected by the fast method, else by the exact one.
    """

    preset: str
    fast_bias: bool


SETTINGS = {
    "mixed-w8": Setting("mixed", fast_bias=True),
    "performance-w8": Setting("performance", fast_bias=True),
    "mixed-exact-bias-w8": Setting("mixed", fast_bias=False),
}


def measure(name: str, options: argparse.Namespace, seed: int) -> None:
    """Quantize once and print the line."""
    setting, watch = SETTINGS[name], peer.Stopwatch()
    images = peer.calibration_images(options, seed)
    batches = [images[i : i + CALIBRATION_BATCH] for i in range(0, len(images), CALIBRATION_BATCH)]
    model = onnx.load(options.work / "model.onnx")
    with watch.part("quantize"):
        quantized = nncf.quantize(
            model,
            nncf.Dataset(batches, lambda batch: {"input": batch}),
            preset=nncf.QuantizationPreset(setting.preset),
            subset_size=len(batches),
            fast_bias_correction=setting.fast_bias,
        )
    accuracy = peer.test_accuracy(options, peer.session(quantized.SerializeToString(), options.threads))
    peer.report(
        "nncf",
        name,
        options,
        seed=seed,
        watch=watch,
        accuracy=accuracy,
        layers=peer.stored_initializers(quantized),
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
