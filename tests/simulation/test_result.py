import json
import math
from collections.abc import Callable

import pytest
from precision_examples import precision_record

from quantization.renormalization import LayerDrift
from server.precision_record import PrecisionRecord
from simulation.result import Accuracy, ExperimentResult

NO_LABELS = Accuracy(None, None, None, None, None)


def test_json_has_the_promised_keys(make_result: Callable[..., ExperimentResult]) -> None:
    found = json.loads(json.dumps(make_result().to_json(), allow_nan=False))
    assert list(found) == [
        "task", "seed", "devices", "drift", "accuracy", "generations", "size_bytes", "update_bytes",
        "federated_equals_pooled", "wall_seconds", "bits", "stored_bits", "size_ratio", "predicted_loss",
        "measured_loss", "tune_seconds", "weight_bytes", "overhead_bytes",
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


def test_precision_that_was_not_asked_for_is_null(make_result: Callable[..., ExperimentResult]) -> None:
    found = make_result().to_detailed_json()
    keys = ("bits", "stored_bits", "size_ratio", "predicted_loss", "measured_loss", "tune_seconds")
    assert {found[key] for key in (*keys, "weight_bytes", "overhead_bytes")} == {None}
    assert found["details"]["precision"] is None


def test_precision_is_told_by_layer_and_in_all(make_result: Callable[..., ExperimentResult]) -> None:
    record = precision_record(4)
    found = json.loads(json.dumps(make_result(precision=record).to_json(), allow_nan=False))
    names = [layer.name for layer in record.layers]
    assert found["bits"] == dict(zip(names, (6, 3, 4, 16), strict=True))
    assert found["stored_bits"][names[0]] == 6.25
    assert found["size_ratio"] == pytest.approx(record.fp32_weight_bytes / found["weight_bytes"])
    assert found["measured_loss"] == pytest.approx(1.1 * found["predicted_loss"])
    assert (found["tune_seconds"], found["overhead_bytes"]) == (8.31, 10_300)


def test_precision_record_comes_back_from_the_details(make_result: Callable[..., ExperimentResult]) -> None:
    record = precision_record(5)
    found = json.loads(json.dumps(make_result(precision=record).to_detailed_json(), allow_nan=False))
    assert PrecisionRecord.from_json(json.dumps(found["details"]["precision"])) == record


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
