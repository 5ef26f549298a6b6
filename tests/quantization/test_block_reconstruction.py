"""Blocks of real graphs, and weights that are drawn to their codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import ALL_MODELS, digits_cnn, mlp, residual_cnn
from qat_starts import QatStart

from quantization.block_reconstruction import FREE, BlockReconstruction
from quantization.errors import ConfigurationError
from quantization.qat import natural_moves, train_locally
from quantization.training_settings import LEARNED_ROUNDING, TrainingSettings
from quantization.training_state import LayerState


def _blocks(start: QatStart) -> BlockReconstruction:
    return BlockReconstruction(start.qat, torch.from_numpy(start.inputs))


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_layer_belongs_to_one_block(name: str) -> None:
    start = QatStart(ALL_MODELS[name](), 4, rows=4)
    blocks = _blocks(start).blocks
    names = [layer for block in blocks for layer in block.layers]
    assert names == [layer.name for layer in start.plan.layers]
    assert blocks[0].depth == 0
    assert len({block.output for block in blocks}) == len(blocks)


def test_blocks_of_a_residual_network_end_behind_its_sums() -> None:
    start = QatStart(residual_cnn(), 4, rows=4)
    sums = [index for index, node in enumerate(start.nodes) if node.op_type == "Add"]
    ends = {block.output for block in _blocks(start).blocks}
    for index in sums:
        behind = start.nodes[index + 1]
        assert (behind.output[0] if behind.op_type == "Relu" else start.nodes[index].output[0]) in ends
    inside = {node.output[0] for node in start.nodes if node.op_type == "Conv"} & ends
    assert not inside


def test_float_weights_leave_the_error_of_rounded_activations_alone() -> None:
    start = QatStart(digits_cnn(), 8)
    start.qat.load(start.qat.original)
    errors = _blocks(start).errors(torch.from_numpy(start.inputs))
    assert float(errors.detach().max()) < 1e-3


def test_no_gradient_passes_from_block_to_block() -> None:
    start = QatStart(digits_cnn(), 3)
    start.qat.load(start.state)
    blocks = _blocks(start)
    blocks.errors(torch.from_numpy(start.inputs))[-1].backward()
    moved = {
        name
        for name, (weight, *_) in start.qat.parameters_by_layer()
        if weight.grad is not None and bool(weight.grad.any())
    }
    assert moved == set(blocks.blocks[-1].layers)


def _placed(start: QatStart, from_code: float) -> None:
    """Load weights that are all as far above their codes, in steps."""
    state = {}
    for name, layer in start.state.items():
        ratio = np.rint(layer.weight / layer.step[:, None]) + from_code
        state[name] = LayerState((ratio * layer.step[:, None]).astype(np.float32), layer.step, layer.bias)
    start.qat.load(state)


def test_penalty_is_nought_before_its_time_and_on_codes() -> None:
    start = QatStart(digits_cnn(), 3)
    blocks = _blocks(start)
    _placed(start, 0.4)
    assert float(blocks.penalty(FREE).detach()) == 0
    assert 0 < float(blocks.penalty(1.0).detach()) <= len(start.state)
    _placed(start, 0.0)
    assert float(blocks.penalty(1.0).detach()) == pytest.approx(0, abs=1e-3)


def test_blocks_are_drawn_to_their_codes_from_the_input_on() -> None:
    start = QatStart(digits_cnn(), 3)
    blocks = _blocks(start)
    _placed(start, 0.4)
    blocks.penalty(0.5).backward()
    pulls = [
        float((weight.grad * step.detach()[:, None]).sum())
        for _, (weight, step, *_) in start.qat.parameters_by_layer()
    ]
    assert all(pull > 0 for pull in pulls)  # descent goes to the code below
    assert pulls == sorted(pulls, reverse=True)
    assert pulls[0] > 10 * pulls[-1]


def test_rounding_is_learned() -> None:
    start = QatStart(digits_cnn(), 2)
    settings = replace(LEARNED_ROUNDING, epochs=40, weight_rate=0.03, batch_size=16, measured_rows=64)
    result = train_locally(start.qat, start.state, start.rows(), settings, start.units)
    away = []
    for layer in result.state.values():
        ratio = layer.weight / layer.step[:, None]
        away.append(np.abs(ratio - np.rint(ratio)).ravel())
    assert (np.concatenate(away) > 0.1).mean() < 0.1  # nearly all are on their codes
    measure = TrainingSettings(epochs=0, measured_rows=64)
    again = train_locally(start.qat, result.state, start.rows(), measure, start.units)
    assert again.loss < 0.85 * result.loss


def test_steps_take_weights_on_their_codes_along() -> None:
    start = QatStart(digits_cnn(), 3)
    _placed(start, 0.0)
    codes = {name: layer.weight / layer.step[:, None] for name, layer in start.qat.state().items()}
    with natural_moves(start.qat, learns_rounding=True), torch.no_grad():
        for _, (_, step, *_) in start.qat.parameters_by_layer():
            step.add_(0.1)
    for name, layer in start.qat.state().items():
        np.testing.assert_allclose(layer.step, start.state[name].step * np.exp(np.float32(0.1)), rtol=1e-6)
        np.testing.assert_allclose(layer.weight / layer.step[:, None], codes[name], atol=1e-5)


def test_a_step_s_gradient_is_that_of_its_row_growing() -> None:
    start = QatStart(digits_cnn(), 3)
    start.qat.load(start.state)
    blocks, inputs = _blocks(start), torch.from_numpy(start.inputs)
    blocks.errors(inputs).sum().backward()
    for _, (weight, step, *_) in start.qat.parameters_by_layer():
        assert weight.grad is not None
        assert step.grad is not None
        torch.testing.assert_close(step.grad * step, (weight.grad * weight).sum(1), rtol=1e-3, atol=1e-6)


def test_learned_rounding_is_the_same_every_time() -> None:
    start = QatStart(mlp(), 3)
    settings = replace(LEARNED_ROUNDING, epochs=1)
    once, twice = (
        train_locally(start.qat, start.state, start.rows(), settings, start.units).state for _ in range(2)
    )
    for name, layer in once.items():
        np.testing.assert_array_equal(layer.weight, twice[name].weight)


@pytest.mark.parametrize(("first", "last"), [(-0.1, 1.0), (0.6, 0.5), (0.0, 1.1), (float("nan"), 1.0)])
def test_hardening_that_goes_nowhere_is_refused(first: float, last: float) -> None:
    with pytest.raises(ConfigurationError, match="hardening"):
        TrainingSettings(hardening_from=first, hardening_to=last)
