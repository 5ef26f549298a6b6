from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from precision_examples import precision_record

from simulation.result import Accuracy, ExperimentResult, GenerationResult
from simulation.summary import (
    describe_precision,
    format_bits,
    format_bytes,
    format_clients,
    format_drift,
    format_outcome,
    format_percent,
    format_points,
    summarize,
)

MakeResult = Callable[..., ExperimentResult]
LAB = 0.9163


def accuracies(frozen: float | None, tuned: float | None, lab: float | None = LAB) -> Accuracy:
    return Accuracy(fp32=frozen, frozen=frozen, tuned=tuned, lab_fp32=lab, lab_frozen=lab)


@pytest.mark.parametrize(
    ("frozen", "tuned", "cost", "gain"),
    [
        (0.6653, 0.9133, "cost the frozen int8 model 25.1 points", "won back 24.8 of them"),
        (0.6653, LAB, "cost the frozen int8 model 25.1 points", "won back all of them"),
        (0.6653, 0.93, "cost the frozen int8 model 25.1 points", "won back all of them and 1.4 more"),
        (0.6653, 0.6653, "cost the frozen int8 model 25.1 points", "changed nothing"),
        (0.6653, 0.6, "cost the frozen int8 model 25.1 points", "made it 6.5 points worse"),
        (LAB, 0.92, "cost the frozen int8 model nothing", "made it 0.4 points better"),
        (0.93, 0.92, "made the frozen int8 model 1.4 points better", "made it 1.0 points worse"),
    ],
)
def test_sentence_says_what_was_lost_and_won_back(
    make_result: MakeResult, frozen: float, tuned: float, cost: str, gain: str
) -> None:
    sentence = summarize(make_result(accuracy=accuracies(frozen, tuned)))
    assert sentence == f"Contrast 0.3 {cost}; one update of 8.9 KB {gain}."


def test_sentence_admits_that_nothing_was_published(make_result: MakeResult, make_generation: Any) -> None:
    refused = (make_generation(published=False, update_bytes=0),)
    result = make_result(generations=refused, accuracy=accuracies(0.6653, 0.6653))
    assert summarize(result).endswith("25.1 points; no update was published.")
    assert summarize(replace(result, generations=())).endswith("no update was published.")


def test_sentence_adds_up_several_updates(make_result: MakeResult, make_generation: Any) -> None:
    live = (make_generation(1), make_generation(2, update_bytes=1_100))
    assert "2 updates of 10.0 KB in all won back" in summarize(make_result(generations=live))


def test_sentence_without_drift_blames_none(make_result: MakeResult) -> None:
    sentence = summarize(make_result(drift={}, accuracy=accuracies(0.9, 0.9)))
    assert (
        sentence == "Without drift the frozen int8 model is at 90.0 %; one update of 8.9 KB changed nothing."
    )


def test_sentence_without_labels_speaks_of_agreement(make_result: MakeResult, make_generation: Any) -> None:
    unlabelled = accuracies(None, None, None)
    assert summarize(make_result(accuracy=unlabelled)) == (
        "Without labels the accuracy under contrast 0.3 is unknown; one update of 8.9 KB went live"
        " and answers as the corrected float model on 98.5 % of the field data."
    )
    refused = (make_generation(published=False),)
    assert summarize(make_result(accuracy=unlabelled, generations=refused)).endswith(
        "no update was published."
    )


def test_sentence_tells_how_small_a_published_model_is(make_result: MakeResult, make_generation: Any) -> None:
    record = replace(precision_record(4), size_ratio=10.06)
    assert summarize(make_result(precision=record)).endswith(
        "won back 25.1 of them, with weights 10.1× smaller than in fp32."  # noqa: RUF001  # what is printed
    )
    same = make_result(precision=record, accuracy=accuracies(0.6653, 0.6653))
    assert "one update of 8.9 KB left it there, with weights 10.1" in summarize(same)
    refused = (make_generation(published=False),)
    assert summarize(make_result(precision=record, generations=refused)).endswith("no update was published.")


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_sentence_never_claims_a_gain_where_accuracy_fell(lab: float, frozen: float, tuned: float) -> None:
    generation = GenerationResult(
        1, tuned, 1.0, 10, 5, 3, {}, published=True, reason="", drift={}, residual_drift={}, ranges={},
        statistics_bytes=0, seconds=0.0,
    )  # fmt: skip
    result = ExperimentResult(
        "t", 0, 3, {"gain": 2.0}, accuracies(frozen, tuned, lab), (generation,), {}, 5, None, 0.0, {}, (), ()
    )
    sentence = summarize(result)
    claims_gain = "won back" in sentence or sentence.endswith("better.")
    assert claims_gain == (round(1000 * (tuned - frozen)) > 0)
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (8_912, "8.9 KB"),
        (999_960, "1.0 MB"),
        (10**13, "10000.0 GB"),
    ],
)
def test_sizes_are_written_in_thousands(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


def test_drifts_are_written_as_words() -> None:
    assert format_drift({}) == "no drift"
    assert format_drift({"sensor-gain": 1.5}) == "sensor gain 1.5"
    assert format_drift({"a": 1.0, "b": (0.3, -0.2), "c": 2.0}) == "a 1, b (0.3, -0.2) and c 2"


def test_unknown_shares_are_dashes() -> None:
    assert format_percent(None) == format_percent(float("nan")) == "\N{EN DASH}"
    assert format_percent(0.91) == "91.0 %"


def test_dropped_devices_are_counted_beside_the_others(make_generation: Any) -> None:
    assert format_clients(make_generation(dropped={"late": 2, "failed": 0})) == "47 (2 late)"
    assert format_clients(make_generation(dropped={})) == "47"


def test_bits_are_listed_in_the_order_of_the_graph_and_counted_where_there_are_many() -> None:
    assert format_bits(precision_record(4)) == "6 3 4 fp16"
    assert format_bits(precision_record(1)) == "6"
    assert format_bits(precision_record(100)) == "2 in 14, 3 in 42, 4 in 14, 6 in 15, 8 in 14, fp16 in 1"


def test_precision_is_described_with_its_price() -> None:
    record = replace(
        precision_record(4), size_ratio=9.96, weight_bytes=108_200, fp32_weight_bytes=1_078_000,
        predicted_loss=0.01234, measured_loss=0.02,
    )  # fmt: skip
    first, second = describe_precision(record)
    assert first == (
        "Weights are 10.0× smaller than in fp32: 108.2 KB of 1.1 MB, and 10.3 KB of manifest and skeleton;"  # noqa: RUF001
        " predicted divergence 0.0123 nats, measured 0.02 nats; tuned in 8.3 s."
    )
    assert second == "Bits by layer: 6 3 4 fp16."
    assert "measured" not in describe_precision(replace(record, measured_loss=None))[0]


def test_points_have_a_true_minus_sign_and_no_signed_zero() -> None:
    assert [format_points(p) for p in (-0.44, 0.31, 0.04, -0.04, -0.0)] == [
        "\N{MINUS SIGN}0.4 points", "+0.3 points", "0.0 points", "0.0 points", "0.0 points",
    ]  # fmt: skip


def test_outcome_gives_the_reason(make_generation: Any) -> None:
    assert format_outcome(make_generation(published=False, reason="worse")) == "not published: worse"
    assert format_outcome(make_generation(reason="")) == "published"
