"""What a compiled graph must compute on a device, worked out without one."""

import numpy as np

from quantization.affine import AffineParams, params_from_range
from quantization.arrays import AnyArray
from quantization.compile import CompiledGraph
from quantization.graph import GraphPlan
from quantization.self_testing import SelfTest, known_inputs
from quantization.simulate import load_graph, simulate_graph

_USUAL_INPUTS = params_from_range(-2.0, 2.0)
"""Grid of the inputs of a model whose input is not quantized."""


def make_self_test(compiled: CompiledGraph, plan: GraphPlan, model_digest: str) -> SelfTest:
    """Return the test that a device with this graph passes; the same graph gives the same test.

    Takes as long as the simulation of 4 inputs: 0.1 s for ResNet-20.

    Args:
        compiled: The inference graph.
        plan: What it was compiled from.
        model_digest: SHA-256 of the canonical model, hex.
    """
    constants = load_graph(compiled).constants

    def grid(tensor: str) -> AffineParams | None:
        if f"{tensor}:scale" not in constants:
            return None
        scale, zero_point = (np.asarray(constants[f"{tensor}:{part}"]) for part in ("scale", "zero_point"))
        return AffineParams(scale, zero_point)

    input_params = grid(plan.input_name) or _USUAL_INPUTS
    inputs = known_inputs(model_digest, plan.input_shape, input_params)
    outputs: AnyArray = simulate_graph(compiled, inputs)[plan.output_names[0]]
    return SelfTest.of_outputs(input_params, outputs, grid(plan.output_names[0]))
