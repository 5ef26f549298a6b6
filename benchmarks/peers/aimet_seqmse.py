"""Post-training quantization by AIMET (the ONNX edition): plain, with sequential MSE, and with AdaRound.

Int8 activations, symmetric weights by channel, uniform. Accuracy is that of its simulation in ONNX Runtime.

    .venv-aimet/bin/python aimet_seqmse.py --setting seqmse-w4 --seeds 3
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import aimet_onnx
import numpy as np
import onnx
import onnx.numpy_helper
import peer
from aimet_onnx.common import quantsim_config
from aimet_onnx.cross_layer_equalization import equalize_model

CALIBRATION_BATCH = 50
PER_CHANNEL = Path(quantsim_config.__file__).parent / "default_config_per_channel.json"


@dataclass(frozen=True)
class Setting:
    """One way to quantize.

    Attributes:
        bits: Of every weight.
        method: "plain", "seqmse" or "adaround".
        scheme: How ranges are found: "min_max" (the only one with "seqmse") or "tf_enhanced" (least square error).
        equalize: Whether layers are equalized across first.
        iterations: Of AdaRound for each layer.
    """

    bits: int
    method: str = "plain"
    scheme: str = "min_max"
    equalize: bool = False
    iterations: int = 0


SETTINGS = {
    f"{name}-w{bits}": Setting(bits, **options)
    for bits in (8, 4, 3, 2)
    for name, options in {
        "plain": {},
        "plain-sqnr": {"scheme": "tf_enhanced"},
        "equalized": {"equalize": True},
        "seqmse": {"method": "seqmse"},
        "adaround-1k": {"method": "adaround", "scheme": "tf_enhanced", "iterations": 1000},
        "adaround-15k": {"method": "adaround", "scheme": "tf_enhanced", "iterations": 15000},
    }.items()
}

Simulation = aimet_onnx.QuantizationSimModel


def quantized(
    model: onnx.ModelProto, setting: Setting, images: np.ndarray, watch: peer.Stopwatch, threads: int
) -> Simulation:
    """Return the simulation of the quantized model; everything that AIMET does is counted."""
    batches = [{"input": images[i : i + CALIBRATION_BATCH]} for i in range(0, len(images), CALIBRATION_BATCH)]
    with watch.part("prepare"):
        if setting.equalize:
            equalize_model(model)
        simulation = Simulation(
            model,
            param_type=f"int{setting.bits}",
            activation_type="int8",
            quant_scheme=setting.scheme,
            config_file=str(PER_CHANNEL),
            session_options_kwargs={"intra_op_num_threads": threads},
        )
    with watch.part("round"):
        if setting.method == "seqmse":
            aimet_onnx.apply_seq_mse(simulation, batches)
        elif setting.method == "adaround":
            aimet_onnx.apply_adaround(simulation, batches, setting.iterations)
    with watch.part("calibrate"):
        simulation.compute_encodings(batches)
    return simulation


def stored_layers(simulation: Simulation, bits: int) -> dict[str, peer.StoredLayer]:
    """Return the weights of all layers as integers."""
    layers = {}
    tensors = {tensor.name: tensor for tensor in simulation.model.model.graph.initializer}
    for name in simulation.param_names:
        quantizer = simulation.qc_quantize_op_dict[name]
        weight = onnx.numpy_helper.to_array(tensors[name])
        if not quantizer.enabled or weight.ndim < 2:
            continue
        scale = np.asarray(quantizer._get_scale(), np.float64)  # noqa: SLF001 - there is no public way to it
        rounded = quantizer.quantize_dequantize(weight).reshape(len(weight), -1)
        codes = np.rint(rounded / scale.reshape(-1, 1)).astype(np.int16)
        layers[name] = peer.StoredLayer(codes, bits, scale.size)
    return layers


def measure(name: str, options: argparse.Namespace, seed: int) -> None:
    """Quantize once and print the line."""
    setting = SETTINGS[name]
    model = onnx.load(options.work / "model.onnx")
    watch = peer.Stopwatch()
    simulation = quantized(model, setting, peer.calibration_images(options, seed), watch, options.threads)
    accuracy = peer.test_accuracy(options, lambda x: simulation.session.run(None, {"input": x})[0])
    peer.report(
        "aimet-onnx",
        name,
        options,
        seed=seed,
        watch=watch,
        accuracy=accuracy,
        layers=stored_layers(simulation, setting.bits),
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
