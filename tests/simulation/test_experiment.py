import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from benches import open_bench, tune

from quantization.errors import ConfigurationError, RoundFailedError
from quantization.policy import Policy
from server.generation import Step
from simulation import device
from simulation.bench import Bench
from simulation.experiment import load, run_experiment, run_on
from simulation.result import ExperimentResult
from simulation.scenario import Scenario
from simulation.tasks import TASKS, TaskData, load_task

BRIGHTER = ("brightness=0.35",)


def digests(bench: Bench) -> Mapping[str, str]:
    return {name: generation.manifest_digest for name, generation in bench.serving().items()}


def policy_of(bench: Bench, name: str = "x86-vnni") -> Policy:
    return Policy.from_json_bytes(bench.serving()[name].policy.encode())


def without_times(result: ExperimentResult) -> ExperimentResult:
    timeless = tuple(replace(generation, seconds=0.0) for generation in result.generations)
    return replace(result, generations=timeless, wall_seconds=0.0)


@pytest.mark.parametrize(
    ("devices", "dropout", "stragglers"),
    [(1, 0.0, 0.0), (7, 0.15, 0.1), (50, 0.2, 0.1)],
    ids=["1 device", "7 with dropouts", "50 with dropouts"],
)
def test_federated_ranges_equal_pooled_ones(
    digits: TaskData, devices: int, dropout: float, stragglers: float
) -> None:
    with open_bench(
        digits,
        devices=devices,
        generations=1,
        drifts=BRIGHTER,
        dropout=dropout,
        stragglers=stragglers,
        seed=1,
        check_pooled=True,
    ) as bench:
        result = run_on(bench)
        assert result.federated_equals_pooled is True
        assert result.generations[0].published
        assert (result.generations[0].clients < devices) == (dropout > 0)


@pytest.mark.parametrize("method", ["minmax", "kl", "percentile:0.999", "moving_average:mse:0.9"])
def test_federated_ranges_equal_pooled_ones_by_every_method(digits: TaskData, method: str) -> None:
    with open_bench(
        digits, devices=5, generations=2, drifts=BRIGHTER, range_method=method, check_pooled=True
    ) as bench:
        assert run_on(bench).federated_equals_pooled is True


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", [source.name for source in TASKS if source.data_files])
def test_federated_ranges_equal_pooled_ones_on_recorded_data(name: str) -> None:
    if not os.environ.get("QUANTFLEET_DATA"):
        pytest.skip(f"task {name} needs recorded data, and QUANTFLEET_DATA is not set")
    whole = load_task(name)
    for devices, rows in ((1, 40), (7, 120), (50, 400)):
        chosen = np.sort(np.random.default_rng(devices).permutation(len(whole.field_x))[:rows])
        task = replace(
            whole,
            lab_x=whole.lab_x[:200],
            lab_y=None,
            field_x=whole.field_x[chosen],
            field_y=None if whole.field_y is None else whole.field_y[chosen],
            field_owner=None if whole.field_owner is None else whole.field_owner[chosen],
            test_x=whole.test_x[:100],
            test_y=None if whole.test_y is None else whole.test_y[:100],
        )
        faults = {"dropout": 0.15, "stragglers": 0.1} if devices > 1 else {}
        with open_bench(task, devices=devices, generations=1, check_pooled=True, seed=1, **faults) as bench:
            result = run_on(bench)
            assert result.federated_equals_pooled is True, f"{devices} devices"
            assert (result.generations[0].clients < devices) == (devices > 1)


def test_undrifted_fleet_is_not_corrected(digits: TaskData) -> None:
    with open_bench(digits, devices=10, generations=2) as bench:
        result = run_on(bench)
        assert dict(policy_of(bench).corrections) == {}
    assert result.accuracy.tuned is not None
    assert result.accuracy.frozen is not None
    assert result.accuracy.tuned >= result.accuracy.frozen - 0.003
    assert result.accuracy.frozen == result.accuracy.lab_frozen


def test_drifted_fleet_is_won_back_by_a_small_update(digits: TaskData) -> None:
    with open_bench(digits, devices=10, generations=2, drifts=BRIGHTER) as bench:
        result = run_on(bench)
        assert dict(policy_of(bench).corrections) != {}
    found = result.accuracy
    assert None not in (found.tuned, found.frozen, found.fp32, found.lab_fp32)
    assert (found.lab_fp32 or 0) > 0.95
    assert (found.frozen or 1) < 0.8
    assert (found.fp32 or 1) < 0.8
    assert (found.tuned or 0) > 0.93
    assert result.drift == {"brightness": 0.35}
    first = result.generations[0]
    assert first.accuracy is not None
    assert (first.agreement or 0) > 0.97
    assert 0 < result.update_bytes < 0.2 * result.size_bytes["tuned"] < 0.3 * result.size_bytes["fp32"]
    assert first.statistics_bytes > 0
    before = np.mean([layer.size for layer in first.drift.values()])
    after = np.mean([layer.size for layer in first.residual_drift.values()])
    assert after < before / 2


def test_every_class_of_devices_gets_its_own_generation(digits: TaskData) -> None:
    with open_bench(
        digits, devices=9, drifts=BRIGHTER, device_classes=("x86-vnni", "x86", "arm"), check_pooled=True,
        generations=1,
    ) as bench:  # fmt: skip
        result = run_on(bench)
        serving = bench.serving()
        policies = {name: policy_of(bench, name) for name in serving}
    assert {name: generation.number for name, generation in serving.items()} == {
        "arm": 1, "x86": 1, "x86-vnni": 1,
    }  # fmt: skip
    assert {name: set(policy.bit_widths.values()) for name, policy in policies.items()} == {
        "arm": {8}, "x86": {7}, "x86-vnni": {8},
    }  # fmt: skip
    assert {name: policy.device_class for name, policy in policies.items()} == {
        name: name for name in serving
    }
    assert result.federated_equals_pooled is True
    assert result.generations[0].clients == 9
    assert (result.accuracy.tuned or 0) > (result.accuracy.frozen or 1)


def test_devices_that_drop_out_are_counted(digits: TaskData) -> None:
    with open_bench(digits, devices=30, generations=1, dropout=0.3, stragglers=0.1, seed=3) as bench:
        (generation,) = run_on(bench).generations
    assert set(generation.dropped) == {"failed", "late or silent"}
    assert generation.clients + sum(generation.dropped.values()) == 30
    assert 3 <= sum(generation.dropped.values()) <= 20


def test_a_healthy_fleet_loses_nobody(digits: TaskData) -> None:
    with open_bench(digits, devices=6, generations=1) as bench:
        (generation,) = run_on(bench).generations
    assert (generation.clients, dict(generation.dropped)) == (6, {})


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"dropout": 1.0}, "0 of 4 devices replied, 2 are needed: .*simulated fault"),
        ({"stragglers": 1.0}, "0 of 4 devices replied, 2 are needed: 4 without an answer after 600 s"),
    ],
)
def test_a_fleet_that_fails_altogether_says_why(
    digits: TaskData, faults: dict[str, float], reason: str
) -> None:
    with open_bench(digits, devices=4, **faults) as bench:
        with pytest.raises(RoundFailedError) as caught:
            run_on(bench)
        assert re.search(reason, str(caught.value))
        (generation,) = bench.serving().values()
        assert generation.number == 0, "what served still serves"


def test_same_scenario_gives_the_same_artifacts_and_figures(digits: TaskData) -> None:
    scenario = {"devices": 8, "drifts": ("noise=0.05", "contrast=0.5"), "dropout": 0.1, "generations": 2}
    found = []
    for seed in (5, 5, 6):
        with open_bench(digits, seed=seed, **scenario) as bench:
            found.append((without_times(run_on(bench)), digests(bench)))
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]


def test_number_of_threads_changes_no_byte(digits: TaskData, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 4):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        with open_bench(digits, devices=8, drifts=BRIGHTER, dropout=0.2) as bench:
            tune(bench)
            found.append(digests(bench))
    assert found[0] == found[1]


@pytest.mark.parametrize("grey", [0.0, 0.5])
def test_inputs_that_never_change_are_not_taken_for_drift(digits: TaskData, grey: float) -> None:
    task = replace(digits, lab_x=np.full_like(digits.lab_x, grey), field_x=np.full_like(digits.field_x, grey))
    with open_bench(task, devices=3, generations=5) as bench:
        result = run_on(bench)
        assert dict(policy_of(bench).corrections) == {}
        assert next(iter(tune(bench).values())).step is Step.UNCHANGED
    assert len(result.generations) < 5, "it ends when there is nothing left to change"
    assert not result.generations[-1].published
    assert result.accuracy.tuned == pytest.approx(result.accuracy.frozen, abs=0.01)


def test_data_without_labels_has_no_accuracy_and_is_tuned_all_the_same(digits: TaskData) -> None:
    task = replace(digits, field_y=None, test_y=None)
    with open_bench(task, devices=4, drifts=BRIGHTER, generations=1) as bench:
        result = run_on(bench)
    assert {getattr(result.accuracy, field.name) for field in fields(result.accuracy)} == {None}
    assert result.generations[0].published
    assert result.generations[0].accuracy is None
    assert (result.generations[0].agreement or 0) > 0.95


def test_progress_rises_from_nothing_to_done_and_nothing_is_left_behind(
    model_cache: Path, digits: TaskData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert digits.name == "digits", "trained before, so that the run finds it"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told: list[tuple[float, str]] = []
    scenario = Scenario(devices=3, generations=2, drifts=BRIGHTER, check_pooled=True, cache_dir=model_cache)
    result = run_experiment(scenario, lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {"loading the task", "calibrating in the lab", "evaluating", "done"} <= {text for _, text in told}
    assert result.wall_seconds >= sum(generation.seconds for generation in result.generations) > 0
    assert list(tmp_path.iterdir()) == []
    assert device._FLEETS == {}


def test_failed_experiment_leaves_nothing_behind(
    model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RoundFailedError):
        run_experiment(Scenario(devices=2, dropout=1.0, cache_dir=model_cache))
    assert list(tmp_path.iterdir()) == []
    assert device._FLEETS == {}


def test_a_scenario_names_its_task(model_cache: Path) -> None:
    assert load(Scenario(cache_dir=model_cache)).name == "digits"
    with pytest.raises(ConfigurationError, match="unknown task 'digit'; did you mean 'digits'"):
        load(Scenario(task="digit"))
