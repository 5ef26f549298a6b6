from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models import ALL_MODELS, ModelBuilder, digits_cnn, example_inputs, mlp, run
from qat_starts import QatStart, uniform_grids

from quantization.affine import params_from_range
from quantization.compile import compile_inference
from quantization.errors import ConfigurationError, UnsupportedModelError
from quantization.graph import analyze, canonicalize
from quantization.qat import QatModel, Rows, natural_moves, pace, row_losses, train_locally
from quantization.qat_model import LearnedStep, RoundedActivation
from quantization.training_model import finish_state
from quantization.training_settings import TrainingSettings
from quantization.training_state import LayerState, TrainingGrid
from quantization.training_update import states_equal


@pytest.mark.parametrize("name", ALL_MODELS)
def test_float_model_equals_onnx_runtime(name: str) -> None:
    model = canonicalize(ALL_MODELS[name]())
    x = example_inputs(model, 3)
    expected = next(iter(run(model, x).values()))
    plan = analyze(model)
    qat = QatModel(model, plan, uniform_grids(plan, 8), {})
    np.testing.assert_allclose(qat.reference_logits(x), expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", ALL_MODELS)
def test_quantized_start_answers_as_the_compiled_model(name: str) -> None:
    start = QatStart(ALL_MODELS[name](), 8, rows=32)
    compiled = compile_inference(start.content, start.plan, start.policy)
    expected = next(iter(run(compiled.skeleton, start.inputs, compiled.files).values()))
    start.qat.load(start.state)
    actual = start.qat.logits(start.inputs)
    assert (
        actual.argmax(-1) == expected.argmax(-1)
    ).mean() > 0.8  # random weights: many answers are near ties
    assert np.abs(actual - expected).mean() < 0.04 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_codes_come_back_until_training_moves_them(bits: int) -> None:
    start = QatStart(digits_cnn(), bits)
    finished = finish_state(start.content, start.plan, start.policy, start.state, start.grids)
    for name, codes in start.codes.items():
        np.testing.assert_array_equal(finished[name].codes, codes.codes)
        np.testing.assert_array_equal(finished[name].scale, codes.scale)
        np.testing.assert_allclose(finished[name].bias_shift, 0, atol=1e-6)


def test_gradient_of_the_step_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(size=(3, 50)).astype(np.float32)).requires_grad_()
    step = torch.tensor([0.3, 0.5, 0.1]).requires_grad_()
    upstream = torch.from_numpy(rng.normal(size=(3, 50)).astype(np.float32))
    q = 3
    LearnedStep.apply(weight, step, q).backward(upstream)
    v = weight.detach().numpy() / step.detach().numpy()[:, None]
    slope = np.where(v <= -q, -q, np.where(v >= q, q, np.rint(v) - v))  # equation 3
    expected = (upstream.numpy() * slope).sum(1) / np.sqrt(50 * q)  # section 2.2
    np.testing.assert_allclose(step.grad, expected, rtol=1e-4)
    np.testing.assert_allclose(weight.grad, upstream.numpy() * (np.abs(v) <= q))  # equation 5


def test_training_towards_the_float_model_lowers_the_loss_and_moves_codes() -> None:
    start = QatStart(digits_cnn(), 2)
    settings = TrainingSettings(epochs=6, batch_size=8, weight_rate=0.01, bias_rate=0.5, measured_rows=64)
    result = train_locally(start.qat, start.state, start.rows(), settings, start.units, keeps_best=True)
    measure = TrainingSettings(epochs=0, measured_rows=64)
    again = train_locally(start.qat, result.state, start.rows(), measure, start.units)
    assert again.loss < 0.7 * result.loss
    finished = finish_state(start.content, start.plan, start.policy, result.state, start.grids)
    assert any((finished[name].codes != start.codes[name].codes).any() for name in finished)
    assert all(np.abs(layer.codes).max() <= 1 for layer in finished.values())


def test_best_state_is_never_worse_than_the_start() -> None:
    start = QatStart(mlp(), 3)
    wild = TrainingSettings(epochs=2, batch_size=4, weight_rate=2.0, bias_rate=100.0, measured_rows=64)
    result = train_locally(start.qat, start.state, start.rows(), wild, start.units, keeps_best=True)
    assert states_equal(result.state, start.state)


def test_views_are_trained_towards_the_float_models_answers_to_them() -> None:
    start = QatStart(digits_cnn(), 2)
    settings = TrainingSettings(epochs=6, batch_size=8, augmentations=("flip", "shift=0.125"), mixing=0.5)
    trained = train_locally(start.qat, start.state, start.rows(), settings, start.units).state
    unseen = np.ascontiguousarray(start.inputs[..., ::-1])  # as half of the views were
    measure = TrainingSettings(epochs=0, measured_rows=64)
    before, after = (
        train_locally(start.qat, state, Rows(unseen, None), measure, start.units).loss
        for state in (start.state, trained)
    )
    assert after < 0.8 * before


def test_loss_can_be_left_unmeasured() -> None:
    start = QatStart(mlp(), 3)
    result = train_locally(
        start.qat, start.state, start.rows(), TrainingSettings(measured_rows=0), start.units
    )
    assert (result.loss, result.measured) == (0.0, 0)


def test_rates_of_steps_and_biases_follow_the_loss_of_the_start() -> None:
    assert [pace(loss) for loss in (0.0, 0.045, 0.5, 5.0)] == [0.0, pytest.approx(0.3), 1.0, 1.0]
    start = QatStart(digits_cnn(), 4)
    paced, whole = (
        train_locally(
            start.qat, start.state, start.rows(), TrainingSettings(measured_rows=measured), start.units
        )
        for measured in (64, 0)
    )
    assert paced.loss < 0.5
    for part in ("step", "bias"):
        near, far = (
            sum(
                np.square(getattr(layer, part) - getattr(start.state[name], part)).sum()
                for name, layer in result.state.items()
            )
            for result in (paced, whole)
        )
        assert 0 < near < 0.7 * far


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 6.0)])
def test_activations_are_rounded_as_torch_does(low: float, high: float) -> None:
    params = params_from_range(low, high)
    scale, zero_point = float(params.scale), int(params.zero_point)
    values = torch.linspace(2 * low - 1, 2 * high, 5000).requires_grad_()
    expected = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)
    actual = RoundedActivation.apply(values, scale, -zero_point, 255 - zero_point)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected.sum(), values)
    (found,) = torch.autograd.grad(actual.sum(), values)
    assert (found == wanted).all()


def test_training_is_deterministic() -> None:
    start = QatStart(digits_cnn(), 3)
    labels = np.arange(64) % 3 - 1
    settings = TrainingSettings(epochs=1, augmentations=("noise=0.1",), mixing=0.5, seed=5)
    a, b, c = (
        train_locally(start.qat, start.state, start.rows(labels), chosen, start.units).state
        for chosen in (settings, settings, replace(settings, seed=6))
    )
    assert states_equal(a, b)
    assert not states_equal(a, c)


def test_unlabelled_rows_are_trained_towards_the_reference_alone() -> None:
    rng = np.random.default_rng(0)
    logits, reference = (torch.from_numpy(rng.normal(size=(4, 3))) for _ in range(2))
    settings = TrainingSettings(temperature=1.0, label_weight=1.0, distillation_weight=0.0)
    prior = torch.zeros(3)
    losses = row_losses(logits, reference, torch.tensor([-1, 0, 2, -1]), prior, settings)
    p, q = reference.log_softmax(-1), logits.log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    expected[1], expected[2] = -q[1, 0], -q[2, 2]
    torch.testing.assert_close(losses, expected)


def test_steps_that_are_not_learned_stay() -> None:
    start = QatStart(mlp(), 4)
    fixed = {name: TrainingGrid(grid.greatest_code, learns_step=False) for name, grid in start.grids.items()}
    model = QatModel(start.content, start.plan, fixed, start.activations)
    trained = train_locally(model, start.state, start.rows(), TrainingSettings(), start.units).state
    for name, layer in trained.items():
        np.testing.assert_array_equal(layer.step, start.state[name].step)


def test_unknown_operator_is_named() -> None:
    b = ModelBuilder(["N", 3, 8, 8])
    x = b.add("Relu", [b.conv("x", 3, 4, 3)])
    x = b.add("LpNormalization", [x], axis=1)
    model = canonicalize(b.bytes(b.gemm(b.add("Flatten", [x]), 256, 3)))
    plan = analyze(model)
    with pytest.raises(UnsupportedModelError, match="LpNormalization"):
        QatModel(model, plan, uniform_grids(plan, 4), {})


@pytest.mark.parametrize("part", ["weight", "step", "bias", "absent"])
def test_state_of_another_model_is_refused(part: str) -> None:
    start = QatStart(mlp(), 4)
    name = next(iter(start.state))
    held = start.state[name]
    parts: dict[str, Any] = {"weight": held.weight, "step": held.step, "bias": held.bias}
    if part == "weight":
        parts["weight"] = held.weight[:, 1:]
    if part == "bias":
        parts["bias"] = held.bias[:0]
    if part == "step":
        parts = {key: value[1:] for key, value in parts.items()}
    changed = dict(start.state) | {name: LayerState(**parts)}
    if part == "absent":
        del changed[name]
    with pytest.raises(ConfigurationError, match="does not hold"):
        start.qat.load(changed)


def test_device_without_rows_cannot_train() -> None:
    start = QatStart(mlp(), 4)
    with pytest.raises(ConfigurationError, match="without inputs"):
        train_locally(
            start.qat,
            start.state,
            Rows(start.inputs[:0], None),
            TrainingSettings(),
            start.units,
        )


def test_movement_that_a_bias_could_make_is_taken_out_of_the_weights() -> None:
    start = QatStart(mlp(), 4)
    start.qat.load(start.state)
    weight, step = next(iter(start.qat.weights.values())), next(iter(start.qat.steps.values()))
    before, old = weight.detach().clone(), step.detach().clone()
    weight.grad = torch.full_like(weight, 3.0)
    with natural_moves(start.qat), torch.no_grad():
        assert weight.grad.abs().max() < 1e-6
        weight += 0.25
        weight[:, 0] += 1.0
        step -= 5.0
    moved = ((weight - before) / old[:, None]).detach()
    columns = weight.shape[1]
    np.testing.assert_allclose(moved[:, 0], 1 - 1 / columns, rtol=1e-3)
    np.testing.assert_allclose(moved[:, 1:], -1 / columns, rtol=1e-3)
    np.testing.assert_allclose(step.detach(), old * np.exp(-5), rtol=1e-4)
