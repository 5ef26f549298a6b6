"""Post-training quantization by brevitas: int8 activations, weights at few bits by channel, uniform.

The steps and their order are those of brevitas's own example for ImageNet. Accuracy is that of its fake-quantized
model.

    .venv-brevitas/bin/python brevitas_ptq.py --setting gptq-w4 --seeds 3
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import brevitas.nn as qnn
import numpy as np
import peer
import torch
from brevitas.graph.quantize import preprocess_for_quantize
from brevitas_examples.imagenet_classification.ptq.ptq_common import (
    apply_act_equalization,
    apply_bias_correction,
    apply_gpfq,
    apply_gptq,
    apply_qronos,
    calibrate,
    calibrate_bn,
    quantize_model,
)

CALIBRATION_BATCH = 50


@dataclass(frozen=True)
class Setting:
    """One way to quantize.

    Attributes:
        bits: Of every weight.
        rounding: "nearest", "gptq", "gpfq" or "qronos".
        scales: How weight scales are found: "stats" (the greatest magnitude), "mse" or "hqo".
        act_order: Whether columns are rounded by falling diagonal of the Hessian.
        equalize: Iterations of cross-layer equalization.
        act_equalize: Whether activations are equalized into the weights (as SmoothQuant does).
        bias_correction: Whether biases are corrected at the end.
        norm_correction: Whether BatchNormalization stays, and gets the statistics of the quantized network.
        backend: "fx" or "layerwise" placement of quantizers.
    """

    bits: int
    rounding: str = "gptq"
    scales: str = "stats"
    act_order: bool = False
    equalize: int = 0
    act_equalize: bool = False
    bias_correction: bool = True
    norm_correction: bool = False
    backend: str = "fx"


SETTINGS = {
    f"{name}-w{bits}": Setting(bits, **options)
    for bits in (8, 4, 3, 2)
    for name, options in {
        "nearest": {"rounding": "nearest"},
        "gptq": {},
        "gptq-order": {"act_order": True},
        "gptq-mse": {"scales": "mse"},
        "gptq-mse-order": {"scales": "mse", "act_order": True},
        "gptq-order-norm": {"act_order": True, "norm_correction": True, "bias_correction": False},
        "gptq-equalized": {"equalize": 20},
        "gptq-act-equalized": {"act_equalize": True},
        "gpfq": {"rounding": "gpfq"},
        "gpfq-mse-order": {"rounding": "gpfq", "scales": "mse", "act_order": True},
        "qronos": {"rounding": "qronos", "act_order": True},
        "qronos-mse": {"rounding": "qronos", "scales": "mse", "act_order": True},
    }.items()
}


def float_network() -> torch.nn.Module:
    """Return the reference ResNet-20, from the same file as Quantfleet's."""
    source = Path(__file__).resolve().parents[2] / "simulation" / "tasks" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks", source)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.ResNet20()
    weights = np.load(Path(os.environ["QUANTFLEET_DATA"]) / "resnet20_cifar10.npz")
    network.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files}, strict=False)
    return network.eval()


Batches = Sequence[tuple[torch.Tensor, None]]


def quantized(
    network: torch.nn.Module, setting: Setting, batches: Batches, watch: peer.Stopwatch
) -> torch.nn.Module:
    """Return the quantized network; everything that brevitas does is counted."""
    with watch.part("prepare"), torch.no_grad():
        model = preprocess_for_quantize(
            network, equalize_iters=setting.equalize, merge_bn=not setting.norm_correction
        )
        if setting.act_equalize:
            apply_act_equalization(model, batches, layerwise=setting.backend == "layerwise")
        model = quantize_model(
            model,
            backend=setting.backend,
            weight_bit_width=setting.bits,
            act_bit_width=8,
            bias_bit_width=None,
            weight_quant_granularity="per_channel",
            act_quant_percentile=99.999,
            act_quant_type="sym",
            scale_factor_type="float_scale",
            quant_format="int",
            layerwise_first_last_bit_width=setting.bits,
            weight_param_method=setting.scales,
        )
        for module in model.modules():  # the shortcut slices tensors, which brevitas's own kind cannot
            if isinstance(module, qnn.QuantReLU | qnn.QuantIdentity):
                module.return_quant_tensor = False
        model.eval()
        model(batches[0][0])
    with watch.part("calibrate"):
        calibrate(batches, model)
    with watch.part("round"):
        if setting.rounding == "gptq":
            apply_gptq(batches, model, act_order=setting.act_order)
        elif setting.rounding == "gpfq":
            apply_gpfq(batches, model, act_order=setting.act_order)
        elif setting.rounding == "qronos":
            apply_qronos(model, batches, act_order=setting.act_order)
    if setting.norm_correction:
        with watch.part("norms"):
            calibrate_bn(batches, model)
    if setting.bias_correction:
        with watch.part("correct"):
            apply_bias_correction(batches, model)
    return model.eval()


def stored_layers(model: torch.nn.Module, bits: int) -> dict[str, peer.StoredLayer]:
    """Return the weights of all layers as integers."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, qnn.QuantConv2d | qnn.QuantLinear):
            weight = module.quant_weight()
            codes = weight.int().numpy().astype(np.int16)
            layers[name] = peer.StoredLayer(codes, bits, weight.scale.numel())
    return layers


def measure(name: str, options: argparse.Namespace, seed: int) -> None:
    """Quantize once and print the line."""
    setting, network = SETTINGS[name], float_network()
    images = torch.from_numpy(peer.calibration_images(options, seed))
    batches = [(part, None) for part in images.split(CALIBRATION_BATCH)]
    watch = peer.Stopwatch()
    model = quantized(network, setting, batches, watch)

    def infer(x: np.ndarray) -> np.ndarray:
        out = model(torch.from_numpy(x))
        return (out if isinstance(out, torch.Tensor) else out.value).numpy()

    with torch.no_grad():
        accuracy = peer.test_accuracy(options, infer)
        layers = stored_layers(model, setting.bits)
    peer.report("brevitas", name, options, seed=seed, watch=watch, accuracy=accuracy, layers=layers)


def main() -> int:
    """Measure the settings that were asked for."""
    options = peer.arguments(__doc__, SETTINGS)
    torch.set_num_threads(options.threads)
    for name in options.setting:
        for seed in range(options.seeds):
            measure(name, options, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
