from dataclasses import replace

from precision_examples import study_result

from simulation.study_result import ALLOCATED, UNIFORM
from simulation.study_summary import (
    PARETO_HEADS,
    pareto_rows,
    sensitivity_heads,
    sensitivity_rows,
    smallest_within,
    summarize_pareto,
    summarize_sensitivity,
)


def test_sentence_of_a_front_names_the_smallest_model_within_half_a_point() -> None:
    result = study_result()
    best, uniform = smallest_within(result, ALLOCATED), smallest_within(result, UNIFORM)
    assert best is not None
    assert uniform is not None
    assert (best.size_ratio, uniform.size_ratio) == (10.0, 7.8)
    sentence = summarize_pareto(result)
    assert sentence.startswith("Within half a point of fp32 (91.7 %) weights get 10.0")
    assert "smaller (1.7 KB) at 91.5 %; with the same bits everywhere 7.8" in sentence
    assert sentence.endswith("at 91.3 %.")


def test_sentence_of_a_front_admits_that_nothing_is_good_enough() -> None:
    result = study_result()
    assert summarize_pareto(replace(result, fp32_accuracy=0.99)) == (
        "No allocated model stays within half a point of fp32 (99.0 %)."
    )
    uniform_fails = replace(result, fp32_accuracy=0.921)
    assert summarize_pareto(uniform_fails).endswith("with the same bits everywhere none stays within it.")
    assert summarize_pareto(replace(result, front=())) == "No model was built."


def test_sentence_without_labels_claims_no_accuracy() -> None:
    sentence = summarize_pareto(study_result(has_labels=False))
    assert sentence.startswith("Without labels accuracy is unknown; the smallest model is 15.4")
    assert "None" not in sentence


def test_sentence_of_sensitivity_names_the_layer_and_its_share() -> None:
    assert summarize_sensitivity(study_result(3)) == (
        "/layer1/conv2/Conv hurts most: 0.009 nats at 2 bits, 64.3 % of what all 3 layers cost."
    )
    assert summarize_sensitivity(study_result(1)) == "/layer1/conv0/Conv hurts most: 0.001 nats at 2 bits."
    assert summarize_sensitivity(replace(study_result(), layers=())) == "No layer was measured."


def test_rows_are_as_wide_as_their_heads() -> None:
    result = study_result()
    assert {len(row) for row in pareto_rows(result)} == {len(PARETO_HEADS)}
    assert {len(row) for row in sensitivity_rows(result)} == {len(sensitivity_heads(result))}
    assert len(pareto_rows(result)) == len(result.front)


def test_table_shows_the_fewest_bits_and_the_most() -> None:
    assert sensitivity_heads(study_result())[-4:] == ("2 bits", "3 bits", "4 bits", "8 bits")
    short = tuple(replace(layer, losses={2: 0.1, 8: 0.0}) for layer in study_result().layers)
    assert sensitivity_heads(replace(study_result(), layers=short))[-2:] == ("2 bits", "8 bits")


def test_interval_without_an_upper_end_is_open() -> None:
    rows = {row[0]: row for row in sensitivity_rows(study_result())}
    assert rows["/layer1/conv1/Conv"][3] == "0.0012 or more"
    assert rows["/layer1/conv0/Conv"][3] == "0.0006 to 0.0016"
