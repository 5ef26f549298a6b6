from dataclasses import replace

import numpy as np
import pytest

from quantization.device_class import ARM, X86, X86_VNNI
from quantization.errors import ConfigurationError
from simulation.drift import parse_drifts
from simulation.fleet import Fleet, FleetSettings, class_named
from simulation.scenario import Scenario
from simulation.tasks import TaskData

NOISE = parse_drifts(["noise=0.1"])
IMAGE_DRIFTS = ["gain=1.8", "brightness=0.35", "contrast=0.3", "blur=3", "noise=0.1", "dead-channels=0"]


def test_a_row_is_on_one_device_at_most(digits: TaskData) -> None:
    fleet = Fleet(digits, FleetSettings(12, "classes:2"))
    rows = np.concatenate(fleet.rows)
    assert len(np.unique(rows)) == len(rows)
    assert rows.max() < len(digits.field_x)


def test_an_undrifted_device_sees_its_own_rows_with_their_labels(digits: TaskData) -> None:
    fleet = Fleet(digits, FleetSettings(5, labelled=1.0))
    for position, rows in enumerate(fleet.rows):
        np.testing.assert_array_equal(fleet.inputs(position), digits.to_input(digits.field_x[rows]))
        np.testing.assert_array_equal(fleet.labels(position), digits.field_y[rows])


@pytest.mark.parametrize(
    ("labelled", "devices"), [(0.0, 0), (0.001, 1), (0.1, 1), (0.25, 3), (0.5, 6), (1.0, 12)]
)
def test_a_fraction_of_the_devices_has_labels(digits: TaskData, labelled: float, devices: int) -> None:
    fleet = Fleet(digits, FleetSettings(12, labelled=labelled))
    assert sum(fleet.labels(position) is not None for position in range(12)) == devices
    assert len(fleet.labelled) == devices


def test_data_without_labels_gives_none_to_anybody(digits: TaskData) -> None:
    fleet = Fleet(replace(digits, field_y=None), FleetSettings(3, labelled=1.0))
    assert [fleet.labels(position) for position in range(3)] == [None] * 3


def test_noise_is_the_same_whenever_a_device_is_asked_and_its_own(digits: TaskData) -> None:
    settings = FleetSettings(80, "iid", NOISE)
    fleet = Fleet(digits, settings)
    first = [fleet.inputs(position).copy() for position in range(80)]
    again = Fleet(digits, settings)
    for position in reversed(range(80)):  # more devices than are cached, in another order
        np.testing.assert_array_equal(fleet.inputs(position), first[position])
        np.testing.assert_array_equal(again.inputs(position), first[position])
    clean = Fleet(digits, replace(settings, drifts=()))
    noises = [first[position] - clean.inputs(position) for position in (0, 1)]
    assert not np.array_equal(*noises)


def test_another_seed_deals_rows_and_labels_anew(digits: TaskData) -> None:
    one, other = (Fleet(digits, FleetSettings(20, labelled=0.3, seed=seed)) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(one.rows, other.rows, strict=True))
    assert one.labelled != other.labelled


def test_test_rows_drift_as_devices_do(digits: TaskData) -> None:
    fleet = Fleet(digits, FleetSettings(2, drifts=parse_drifts(["brightness=0.35"])))
    np.testing.assert_array_equal(fleet.test_inputs(is_drifted=False), digits.to_input(digits.test_x))
    brighter = np.clip(digits.test_x + np.float32(0.35), 0, 1)
    np.testing.assert_allclose(fleet.test_inputs(is_drifted=True), digits.to_input(brighter), atol=1e-6)


@pytest.mark.parametrize("drift", IMAGE_DRIFTS)
def test_devices_beyond_the_number_of_rows_are_empty(digits: TaskData, drift: str) -> None:
    few = replace(digits, field_x=digits.field_x[:3], field_y=digits.field_y[:3])
    fleet = Fleet(few, FleetSettings(6, drifts=parse_drifts([drift]), labelled=1.0))
    sizes = [len(fleet.inputs(position)) for position in range(6)]
    assert sorted(sizes) == [0, 0, 0, 1, 1, 1]
    assert [len(fleet.labels(position)) for position in range(6)] == sizes
    assert {fleet.inputs(position).shape[1:] for position in range(6)} == {(1, 8, 8)}
    assert {fleet.inputs(position).dtype for position in range(6)} == {np.dtype(np.float32)}


def test_device_classes_are_dealt_out_in_turn(digits: TaskData) -> None:
    fleet = Fleet(digits, FleetSettings(5, device_classes=(X86_VNNI, ARM)))
    assert [fleet.device_class(position).name for position in range(5)] == [
        "x86-vnni", "arm", "x86-vnni", "arm", "x86-vnni",
    ]  # fmt: skip


def test_a_known_class_has_its_limits_and_another_has_none() -> None:
    assert class_named("x86") is X86
    assert class_named("x86").max_weight_bits == 7
    assert class_named("my-board").max_weight_bits == 8


def test_a_scenario_describes_the_fleet() -> None:
    scenario = Scenario(
        devices=7, drifts=("noise=0.1",), labelled=0.5, seed=3, partition="iid", device_classes=("arm",)
    )
    assert FleetSettings.of(scenario) == FleetSettings(7, "iid", NOISE, 0.5, (ARM,), 3)


def test_a_drift_of_another_domain_is_refused_when_it_acts(digits: TaskData) -> None:
    fleet = Fleet(digits, FleetSettings(2, drifts=parse_drifts(["mic-gain=-12"])))
    with pytest.raises(ConfigurationError, match="drift 'mic-gain' is not for image data"):
        fleet.inputs(0)
