import json
import math
from collections.abc import Callable

import pytest

from quantization.renormalization import LayerDrift
from simulation.result import Accuracy, ExperimentResult

NO_LABELS = Accuracy(None, None, None, None, None)


def test_json_has_the_promised_keys(make_result: Callable[..., ExperimentResult]) -> None:
    found = json.loads(json.dumps(make_result().to_json(), allow_nan=False))
    assert list(found) == [
        "task", "seed", "devices", "drift", "accuracy", "generations", "size_bytes", "update_bytes",
        "federated_equals_pooled", "wall_seconds",
    ]  # fmt: skip
    assert list(found["accuracy"]) == ["fp32", "frozen", "tuned", "lab_fp32", "lab_frozen"]
    assert found["drift"] == {"contrast": 0.3}
    assert found["size_bytes"] == {"fp32": 1_089_000, "tuned": 281_000}
    first, second = found["generations"]
    assert {"generation", "accuracy", "size_bytes", "update_bytes", "clients", "published"} <= first.keys()
    assert (first["published"], second["published"]) == (True, False)
    assert first["dropped"] == {"late": 2, "failed": 1}


def test_unknown_accuracies_are_null(make_result: Callable[..., ExperimentResult]) -> None:
    found = json.loads(json.dumps(make_result(accuracy=NO_LABELS, federated_equals_pooled=None).to_json()))
    assert set(found["accuracy"].values()) == {None}
    assert found["federated_equals_pooled"] is None


def test_severities_of_many_numbers_are_lists(make_result: Callable[..., ExperimentResult]) -> None:
    assert make_result(drift={"acc_offset": (0.3, 0.2)}).to_json()["drift"] == {"acc_offset": [0.3, 0.2]}


def test_details_hold_what_the_plots_show(make_result: Callable[..., ExperimentResult]) -> None:
    result = make_result()
    found = json.loads(json.dumps(result.to_detailed_json()))
    assert {key: found[key] for key in result.to_json()} == json.loads(json.dumps(result.to_json()))
    details = found["details"]
    layer = result.layers[1]
    assert details["layers"] == list(result.layers)
    assert details["lab_ranges"][f"{layer}_output"] == [-0.5, 4.0]
    drift = result.generations[0].drift[layer]
    assert details["generations"][0]["drift"][layer]["shift"] == pytest.approx(drift.shift)


def test_drift_that_is_not_finite_becomes_null(
    make_result: Callable[..., ExperimentResult], make_generation: Callable
) -> None:
    drift = {"conv": LayerDrift(0.1, math.nan, math.inf)}
    found = make_result(generations=(make_generation(drift=drift),)).to_detailed_json()
    assert found["details"]["generations"][0]["drift"]["conv"] == {
        "shift": 0.1, "log_spread": None, "significance": None,
    }  # fmt: skip
    json.dumps(found, allow_nan=False)
