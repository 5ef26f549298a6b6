import json
import math
from dataclasses import replace
from typing import Any

import pytest
from precision_examples import study_result

from quantization.errors import ConfigurationError, MalformedError
from simulation.study_result import ALLOCATED, MAX_POINTS, METHODS, MIN_POINTS, StudyResult, require_points


@pytest.mark.parametrize("is_pareto", [True, False])
@pytest.mark.parametrize("has_labels", [True, False])
def test_result_comes_back_from_its_json(has_labels: bool, is_pareto: bool) -> None:
    result = study_result(5, has_labels=has_labels, is_pareto=is_pareto)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert StudyResult.from_json(json.loads(text)) == result


def test_json_has_the_promised_keys() -> None:
    found = study_result().to_json()
    assert set(found) == set(StudyResult.__dataclass_fields__)
    assert list(found)[-2:] == ["layers", "front"], "what is long comes last"
    assert list(found["layers"][0]["losses"]) == ["2", "3", "4", "5", "6", "8"]
    assert {point["method"] for point in found["front"]} == set(METHODS)


@pytest.mark.parametrize(
    "found", [{}, {"layers": 3}, {"layers": [{}], "front": []}, {"layers": [], "front": [], "more": 1}, []]
)
def test_what_is_no_study_is_refused(found: Any) -> None:
    with pytest.raises(MalformedError, match="not the result of a study"):
        StudyResult.from_json(found)


def test_models_of_a_method_start_with_the_smallest() -> None:
    assert [point.size_ratio for point in study_result().by_method(ALLOCATED)] == [14.0, 10.0, 8.0]


def test_layers_start_with_the_one_that_hurts_most_at_the_fewest_bits() -> None:
    result = study_result(6)
    losses = [layer.losses[2] for layer in result.by_loss()]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) > 1
    unmeasured = replace(result.layers[0], losses={})
    assert replace(result, layers=(unmeasured, *result.layers[1:])).by_loss()[-1] == unmeasured


def test_interval_of_a_loss_is_that_of_the_gain() -> None:
    first, alone, *_ = study_result().layers
    low, high = first.loss_interval(3)
    assert (low, high) == pytest.approx((0.6 * first.losses[3], 1.6 * first.losses[3]))
    assert alone.loss_interval(3)[1] == math.inf
    silent = replace(first, gain=0.0, gain_low=0.0, losses={3: 0.0})
    assert silent.loss_interval(3) == (0.0, 0.0)


@pytest.mark.parametrize("points", [MIN_POINTS - 1, 0, -5, MAX_POINTS + 1])
def test_a_front_has_two_points_and_not_too_many(points: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"points is {points}; give a whole number from 2 to 64"):
        require_points("pareto", points)
    require_points("sensitivity", points)
