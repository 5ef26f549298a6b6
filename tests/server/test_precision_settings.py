import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import ConfigurationError
from server.precision_settings import OPTIONS, PrecisionSettings, read_options, replace_options

goals = st.one_of(
    st.builds(lambda ratio: {"size_ratio": ratio}, st.floats(1, 100, exclude_min=True)),
    st.builds(lambda drop: {"max_drop": drop}, st.floats(0, 100, exclude_min=True)),
    st.builds(lambda bits: {"weight_bits": bits}, st.integers(2, 8)),
)
layer_names = st.text(
    st.characters(categories=["L", "N"], include_characters="/._="), min_size=1, max_size=12
)


@st.composite
def settings(draw: st.DrawFn) -> PrecisionSettings:
    goal = draw(goals)
    is_free = "weight_bits" not in goal
    milliseconds = draw(st.none() | st.decimals("0.01", 1000, places=2)) if is_free else None
    kinds = draw(st.dictionaries(layer_names, st.sampled_from(["fp16", "bf16"]), max_size=3))
    return PrecisionSettings(
        **goal,
        rounding_rounds=draw(st.integers(1, 1000)),
        learned_rounding=draw(st.integers(0, 1000)),
        train_rounds=draw(st.integers(0, 1000)),
        latency_budget_seconds=None if milliseconds is None else float(milliseconds) / 1000,
        float_layers=tuple(kinds.items()),
        may_choose_float=is_free and draw(st.booleans()),
    )


@given(settings())
def test_options_make_the_same_settings_again(chosen: PrecisionSettings) -> None:
    assert PrecisionSettings.from_options(chosen.to_options()) == chosen
    assert chosen.to_options().keys() <= set(OPTIONS)


def test_nothing_asked_is_no_settings() -> None:
    assert PrecisionSettings.from_options({}) is None


def test_latency_is_typed_in_milliseconds() -> None:
    chosen = PrecisionSettings.from_options({"latency-budget": 2.5})
    assert chosen == PrecisionSettings(latency_budget_seconds=0.0025)


def test_auto_is_not_a_layer() -> None:
    chosen = PrecisionSettings.from_options({"size-ratio": 10, "float-layer": ["/head/a=b=bf16", "auto"]})
    assert chosen == PrecisionSettings(
        size_ratio=10.0, float_layers=(("/head/a=b", "bf16"),), may_choose_float=True
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size_ratio": 1.0}, "size-ratio is 1.0; give a number above 1, at most 100: such as 10"),
        ({"size_ratio": 0.0}, "size-ratio is 0.0; give a number above 1"),
        ({"size_ratio": -3.0}, "size-ratio is -3.0; give a number above 1"),
        ({"size_ratio": math.nan}, "size-ratio is nan; give a number above 1"),
        ({"size_ratio": math.inf}, "size-ratio is inf; give a number above 1"),
        ({"size_ratio": 1e9}, "size-ratio is 1000000000.0; give a number above 1, at most 100"),
        ({"max_drop": 0.0}, "max-drop is 0.0; give a number above 0, at most 100: points of accuracy"),
        ({"max_drop": -0.5}, "max-drop is -0.5; give a number above 0"),
        ({"max_drop": math.nan}, "max-drop is nan; give a number above 0"),
        ({"max_drop": 101.0}, "max-drop is 101.0; give a number above 0, at most 100"),
        ({"weight_bits": 1}, "weight-bits is 1; give a whole number from 2 to 8"),
        ({"weight_bits": 9}, "weight-bits is 9; give a whole number from 2 to 8"),
        ({"weight_bits": True}, "weight-bits is True; give a whole number from 2 to 8"),
        ({"weight_bits": 4, "learned_rounding": -1}, "learned-rounding is -1; give a whole number from 0"),
        ({"weight_bits": 4, "rounding_rounds": 0}, "rounding-rounds is 0; give a whole number from 1"),
        ({"weight_bits": 4, "rounding_rounds": 10**9}, "rounding-rounds is 1000000000; give a whole number"),
        ({"weight_bits": 4, "train_rounds": -1}, "train-rounds is -1; give a whole number from 0"),
        ({"latency_budget_seconds": 0.0}, "latency-budget is 0; give milliseconds above 0"),
        ({"latency_budget_seconds": -0.002}, "latency-budget is -2; give milliseconds above 0"),
        ({"latency_budget_seconds": math.nan}, "latency-budget is nan; give milliseconds above 0"),
        ({"latency_budget_seconds": math.inf}, "latency-budget is inf; give milliseconds above 0"),
        ({}, "precision is asked for without a goal; give --size-ratio R, --max-drop POINTS"),
        ({"train_rounds": 3}, "precision is asked for without a goal"),
        (
            {"size_ratio": 10.0, "max_drop": 0.5},
            "size-ratio 10.0 and max-drop 0.5 are different goals; give one",
        ),
        ({"size_ratio": 10.0, "weight_bits": 4}, "size-ratio 10.0 and weight-bits 4 are different goals"),
        ({"max_drop": 0.5, "weight_bits": 4}, "max-drop 0.5 and weight-bits 4 are different goals"),
        (
            {"weight_bits": 4, "latency_budget_seconds": 0.01},
            "weight-bits 4 leaves a latency-budget nothing to choose; give one of them",
        ),
        (
            {"weight_bits": 4, "may_choose_float": True},
            "weight-bits 4 leaves float-layer 'auto' nothing to choose; name the layers",
        ),
        (
            {"weight_bits": 4, "float_layers": (("head", "fp32"),)},
            "float-layer 'head=fp32' has an unknown type 'fp32'; give fp16 or bf16",
        ),
        ({"weight_bits": 4, "float_layers": (("", "fp16"),)}, "float-layer '=fp16' names no layer"),
        (
            {"weight_bits": 4, "float_layers": (("head", "fp16"), ("head", "bf16"))},
            "float-layer 'head' is given 2 times; give it once",
        ),
    ],
)
def test_what_no_allocation_can_meet_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PrecisionSettings(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size-ration": 10}, "unknown setting 'size-ration' of precision; did you mean 'size-ratio'?"),
        ({"zzz": 10}, "unknown setting 'zzz' of precision; known: size-ratio, max-drop"),
        ({"size-ratio": "10"}, "size-ratio must be a number, not '10'"),
        ({"size-ratio": True}, "size-ratio must be a number, not True"),
        ({"max-drop": [0.5]}, "max-drop must be a number, not [0.5]"),
        ({"weight-bits": 4.0}, "weight-bits must be a whole number, not 4.0"),
        ({"rounding-rounds": "2"}, "rounding-rounds must be a whole number, not '2'"),
        ({"latency-budget": None}, "latency-budget must be a number, not None"),
        ({"float-layer": 3}, "float-layer must be a list of texts"),
        ({"float-layer": [3]}, "float-layer must be a list of texts"),
        ({"float-layer": {"head": "fp16"}}, "float-layer must be a list of texts"),
        ({"float-layer": ["head"]}, "float-layer 'head' has no type; give head=fp16, head=bf16, or auto"),
    ],
)
def test_option_of_another_name_or_type_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_options(options)
    assert message in str(caught.value)


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="size-ratio is inf; give a number above 1"):
        PrecisionSettings.from_options({"size-ratio": 10**4000})


def test_a_typed_goal_replaces_another_one_and_leaves_the_rest() -> None:
    file = {"size-ratio": 10.0, "rounding-rounds": 4}
    assert replace_options(file, {"max-drop": 0.5}) == {"rounding-rounds": 4, "max-drop": 0.5}
    assert replace_options(file, {"size-ratio": 8.0}) == {"size-ratio": 8.0, "rounding-rounds": 4}
    assert replace_options(file, {"train-rounds": 2}) == file | {"train-rounds": 2}
