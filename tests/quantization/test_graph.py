"""What becomes integer, what stays float, and which values share parameters."""

import models
import pytest
from models import ModelBuilder

from quantization.graph import GraphPlan, analyze, canonicalize


def plan_of(raw: bytes) -> GraphPlan:
    return analyze(canonicalize(raw))


def sites_of(plan: GraphPlan) -> dict[str, tuple[bool, float | None, bool]]:
    return {site.name: (site.minimum_is_zero, site.maximum, site.is_output) for site in plan.sites}


def test_residual_blocks_become_integer_throughout() -> None:
    plan = plan_of(models.residual_cnn())
    assert [layer.op for layer in plan.layers] == ["Conv"] * 5 + ["Gemm"]
    assert plan.float_ops == ()
    assert {name.split("_")[0] for name in plan.integer_ops} == {"Add", "GlobalAveragePool"}
    assert {name.split("_")[0] for name in plan.moving_ops} == {"Slice", "Pad", "Flatten"}


def test_a_site_lies_behind_the_activation() -> None:
    b = ModelBuilder(["N", 3, 8, 8])
    x = b.relu6(b.conv("x", 3, 4, 3))
    x = b.add("Relu", [b.conv(x, 4, 4, 3)])
    plan = plan_of(b.bytes(b.conv(x, 4, 2, 3)))
    assert sites_of(plan) == {
        "x": (False, None, False),
        "clip_1": (True, 6.0, False),
        "relu_3": (True, None, False),
        "conv_4": (False, None, True),
    }
    assert [(layer.raw_output, layer.output_site) for layer in plan.layers[:2]] == [
        ("conv_0", "clip_1"),
        ("conv_2", "relu_3"),
    ]


def test_an_activation_that_others_bypass_is_not_taken_into_the_layer() -> None:
    b = ModelBuilder(["N", 4, 8, 8])
    raw = b.conv("x", 4, 4, 3)
    plan = plan_of(b.bytes(b.add("Add", [b.conv(b.add("Relu", [raw]), 4, 4, 3), raw])))
    assert plan.layers[0].output_site == raw
    assert [op.op for op in plan.float_ops] == ["Relu"]


@pytest.mark.parametrize("low", [-1.0, 0.5])
def test_a_clip_that_does_not_start_at_zero_stays_float(low: float) -> None:
    b = ModelBuilder(["N", 4, 8, 8])
    x = b.add("Clip", [b.conv("x", 4, 4, 3), b.constant(low), b.constant(6.0)])
    plan = plan_of(b.bytes(b.conv(x, 4, 4, 3)))
    assert [op.op for op in plan.float_ops] == ["Clip"]


def test_only_layers_that_another_follows_are_corrected() -> None:
    plan = plan_of(models.digits_cnn())
    assert [(layer.op, layer.is_corrected) for layer in plan.layers] == [
        *[("Conv", True)] * 4,
        ("Gemm", True),
        ("Gemm", False),
    ]
    assert plan.corrected_layers == plan.layers[:-1]


def test_only_the_last_site_is_an_output() -> None:
    for name in ("mlp", "har_cnn", "mobilenet_v2"):
        assert [site.is_output for site in plan_of(models.ALL_MODELS[name]()).sites].count(True) == 1


def test_moved_values_share_the_site_of_their_source() -> None:
    plan = plan_of(models.digits_cnn())
    pooled = next(layer for layer in plan.layers if layer.input.startswith("maxpool"))
    assert pooled.input_site.startswith("relu")
    assert not any(site.name.startswith(("maxpool", "reshape")) for site in plan.sites)


def test_a_leading_batch_norm_stays_float_and_its_result_is_the_first_site() -> None:
    plan = plan_of(models.har_cnn())
    assert [(op.op, op.reason) for op in plan.float_ops] == [
        ("BatchNormalization", "it follows no Conv or Gemm that it could be folded into")
    ]
    assert plan.sites[0].name == plan.layers[0].input == "batchnormalization_0"
    assert not plan.sites[0].is_computed_in_integers


def test_attention_stays_float_and_says_why() -> None:
    plan = plan_of(models.transformer())
    reasons = {(op.op, op.reason) for op in plan.float_ops}
    assert ("MatMul", "both operands are activations") in reasons
    assert {"Softmax", "LayerNormalization", "Gelu", "Add"} <= {op for op, _ in reasons}
    linears = [layer for layer in plan.layers if layer.op == "MatMul"]
    assert len(linears) == 6
    assert all(
        layer.output_site is None and not layer.is_corrected and layer.bias is None for layer in linears
    )


def test_a_sum_with_a_float_operand_stays_float() -> None:
    b = ModelBuilder(["N", 4, 8, 8])
    x = b.conv("x", 4, 4, 3)
    plan = plan_of(b.bytes(b.conv(b.add("Add", [x, b.add("Sin", [x])]), 4, 4, 3)))
    assert [(op.op, op.reason) for op in plan.float_ops] == [
        ("Sin", "it has no integer kernel"),
        ("Add", "an operand is float"),
    ]


def test_conv_with_a_computed_weight_stays_float() -> None:
    b = ModelBuilder(["N", 4, 8, 8])
    x = b.conv("x", 4, 4, 3)
    weight = b.add("Reshape", [b.add("ReduceMean", [x, b.ints(0, 2, 3)]), b.ints(1, 4, 1, 1)])
    plan = plan_of(b.bytes(b.add("Conv", [x, weight])))
    assert [layer.name for layer in plan.layers] == ["Conv_0"]
    assert ("Conv_3", "both operands are activations") in [(op.name, op.reason) for op in plan.float_ops]


def test_padding_with_something_else_than_zero_is_not_done_on_codes() -> None:
    for value, expected in ((0.0, True), (1.0, False)):
        b = ModelBuilder(["N", 4, 8, 8])
        x = b.add("Pad", [b.conv("x", 4, 4, 3), b.ints(0, 0, 1, 1, 0, 0, 1, 1), b.constant(value)])
        assert bool(plan_of(b.bytes(b.conv(x, 4, 4, 3))).moving_ops) is expected


def test_layers_know_their_shape() -> None:
    plan = plan_of(models.branches())
    assert [(layer.channels, layer.groups, layer.weight_axis) for layer in plan.layers] == [
        (8, 1, 0),
        (8, 1, 0),
        (12, 4, 0),
        (8, 1, 0),
        (3, 1, 0),
    ]
    assert plan.input_shape == (None, 4, 8, 8)
    assert {layer.weight_axis for layer in plan_of(models.transformer()).layers if layer.op == "MatMul"} == {
        1
    }
