"""Models with rounded weights, as training starts from them."""

import numpy as np
import onnx
from models import example_inputs, observed_policy

from quantization.compile import site_params
from quantization.graph import GraphPlan, analyze, canonicalize
from quantization.layer_codes import LayerCodes
from quantization.policy import Policy
from quantization.qat import QatModel, Rows
from quantization.training_model import start_state
from quantization.training_state import TrainingGrid


def uniform_grids(plan: GraphPlan, bits: int) -> dict[str, TrainingGrid]:
    return {layer.name: TrainingGrid((1 << (bits - 1)) - 1) for layer in plan.layers}


class QatStart:
    """A model with weights of some bits, rounded to nearest, as training starts."""

    def __init__(self, model: bytes, bits: int, rows: int = 64) -> None:
        self.content = canonicalize(model)
        self.plan = analyze(self.content)
        self.nodes = list(onnx.load_model_from_string(self.content).graph.node)
        self.inputs = example_inputs(model, rows)
        self.policy: Policy = observed_policy(self.content, self.plan, self.inputs, bits=bits)
        self.grids = uniform_grids(self.plan, bits)
        self.activations = {site.name: site_params(site, self.policy) for site in self.plan.sites}
        self.qat = QatModel(self.content, self.plan, self.grids, self.activations)
        self.codes = _nearest(self.qat)
        self.state = start_state(self.content, self.plan, self.policy, self.codes, self.grids)
        self.units = {
            layer.name: float(self.activations[layer.output_site].scale) if layer.output_site else 1.0
            for layer in self.plan.layers
        }

    def rows(self, labels: np.ndarray | None = None) -> Rows:
        return Rows(self.inputs, labels)


def _nearest(model: QatModel) -> dict[str, LayerCodes]:
    codes = {}
    for name, layer in model.original.items():
        ratio = np.rint(layer.weight / layer.step[:, None]).astype(np.int8)
        codes[name] = LayerCodes(ratio, layer.step, np.zeros(len(layer.step)))
    return codes
