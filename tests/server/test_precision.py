"""Options of layers, and the choice among them."""

from dataclasses import replace

import models
import numpy as np
import pytest
from artifacts import example

from quantization.bit_allocation import Budget
from quantization.compile_taps import input_layout
from quantization.errors import ConfigurationError
from quantization.graph import canonicalize
from quantization.layer_codes import weight_rows
from quantization.policy import Policy
from quantization.renormalization import ChannelCorrection
from quantization.rounding import damped
from quantization.second_moments import SecondMoments
from server.candidate import PlannedModel, overrides_of, weight_contents
from server.precision import (
    LayerLatency,
    allocate,
    codes_of,
    exact_bytes,
    float_option,
    fp32_weight_bytes,
    grids_for,
    output_loss,
    round_options,
    with_float_options,
)
from server.precision_settings import PrecisionSettings

GOAL = PrecisionSettings(size_ratio=8.0)


@pytest.fixture(scope="module")
def model() -> PlannedModel:
    return PlannedModel.of(canonicalize(models.digits_cnn()))


def moments_of(model: PlannedModel, seed: int = 0) -> dict[str, SecondMoments]:
    rng = np.random.default_rng(seed)
    found = {}
    for layer in input_layout(model.content, model.plan):
        mixing = rng.normal(0, 0.3, (layer.columns, layer.columns)) + np.eye(layer.columns)
        columns = np.abs(rng.normal(0, 1, (layer.groups, 400, layer.columns)) @ mixing)
        found[layer.name] = replace(layer, exponent=8).empty().add_columns(columns)
    return found


def policy_of(model: PlannedModel, corrections: dict[str, ChannelCorrection] | None = None) -> Policy:
    widths = {layer.name: 8 for layer in model.plan.layers}
    return Policy(model.digest, "arm", 0, {}, widths, corrections or {}, "mse")


def test_more_bytes_never_cost_more_loss_and_every_budget_is_kept(model: PlannedModel) -> None:
    policy = policy_of(model)
    options = round_options(model, policy, moments_of(model), grids_for(GOAL, 8))
    gains = dict.fromkeys(options, 1.0)
    before = np.inf
    for ratio in (14, 10, 8, 6):
        budget = int(fp32_weight_bytes(model) / ratio)
        choice, allocation = allocate(options, gains, Budget(budget))
        assert exact_bytes(choice) <= budget
        assert allocation.loss <= before
        before = allocation.loss


def test_corrected_weights_are_rounded_and_stored_without_the_correction(model: PlannedModel) -> None:
    layer = next(layer for layer in model.plan.layers if layer.is_corrected)
    gain = np.linspace(0.5, 3.0, layer.channels)
    corrected = policy_of(model, {layer.name: ChannelCorrection(gain, np.zeros(layer.channels))})
    moments = {layer.name: moments_of(model)[layer.name]}
    grids = grids_for(PrecisionSettings(weight_bits=8), 8)
    options = round_options(model, corrected, moments, grids)
    codes = codes_of({layer.name: options[layer.name][0]}, corrected)[layer.name]
    rows = weight_rows(model.draft.tensors[layer.weight], layer.weight_axis)
    np.testing.assert_allclose(codes.codes * codes.scale[:, None], rows, atol=2.1 * float(codes.scale.max()))


def test_loss_of_an_error_is_what_the_moments_say(model: PlannedModel) -> None:
    layer = model.plan.layers[1]
    moments = moments_of(model)[layer.name]
    error = np.random.default_rng(1).normal(0, 0.1, (layer.channels, moments.columns))
    expected = np.trace(error @ moments.covariance()[0, 0] @ error.T)
    assert output_loss(error, moments, is_centred=True) == pytest.approx(expected, rel=1e-9)
    assert damped(moments.covariance()[:, 0], 0.0).shape == (1, moments.columns, moments.columns)


def test_float_types_cost_two_bytes_a_weight_and_next_to_no_loss(model: PlannedModel) -> None:
    layer, moments, policy = model.plan.layers[1], moments_of(model), policy_of(model)
    codes = round_options(model, policy, {layer.name: moments[layer.name]}, grids_for(GOAL, 8))[layer.name]
    coarse = max(option.loss for option in codes)
    for kind in ("fp16", "bf16"):
        option = float_option(model, layer, policy, moments[layer.name], kind)
        weights = model.draft.tensors[layer.weight].size
        assert 1.6 * weights < option.size_bytes < 2 * weights + 4 * layer.channels + 16
        assert option.loss < 1e-3 * coarse


def test_named_layers_have_no_other_option_and_unknown_names_are_refused(model: PlannedModel) -> None:
    policy, moments = policy_of(model), moments_of(model)
    options = round_options(model, policy, moments, grids_for(PrecisionSettings(weight_bits=4), 8))
    name = model.plan.layers[0].name
    asked = PrecisionSettings(size_ratio=4.0, float_layers=((name, "bf16"),), may_choose_float=True)
    found = with_float_options(options, asked, model, policy, moments)
    assert [option.storage for option in found[name]] == ["bf16"]
    assert {options[-1].storage for other, options in found.items() if other != name} == {"fp16"}
    with pytest.raises(ConfigurationError, match="its layers are"):
        with_float_options(
            options, replace(asked, float_layers=(("nowhere", "fp16"),)), model, policy, moments
        )


def test_a_float_layer_is_chosen_where_time_is_short_and_bytes_are_not(model: PlannedModel) -> None:
    policy, moments = policy_of(model), moments_of(model)
    asked = PrecisionSettings(size_ratio=1.5, may_choose_float=True)
    options = round_options(model, policy, moments, grids_for(asked, 8))
    found = with_float_options(options, asked, model, policy, moments)
    name = model.plan.layers[0].name
    latencies = {layer: LayerLatency(1e-3, 2e-3) for layer in found} | {name: LayerLatency(5e-3, 1e-3)}
    budget = Budget(None, 1e-3 * len(found))
    choice, _ = allocate(found, dict.fromkeys(found, 1.0), budget, latencies)
    assert choice[name].storage == "fp16"
    assert {option.storage for layer, option in choice.items() if layer != name} == {"int8"}


def test_grids_are_those_that_devices_can_compute_with() -> None:
    assert all(grid.bit_width <= 7 for grid in grids_for(GOAL, 7))
    assert [grid.bit_width for grid in grids_for(None, 8)] == [2, 3, 4, 5, 6, 8]
    with pytest.raises(ConfigurationError, match="more than the 7"):
        grids_for(PrecisionSettings(weight_bits=8), 7)


def test_only_files_that_differ_are_overridden() -> None:
    case = example("digits_cnn")
    artifact = case.artifact()
    planned = PlannedModel.of(case.model)
    contents = weight_contents(planned, policy_of(planned))
    assert overrides_of(contents, artifact.manifest) == {}
    first = planned.plan.layers[0].weight
    changed = {**contents, first: bytes(len(contents[first]))}
    assert set(overrides_of(changed, artifact.manifest)) == {first}
