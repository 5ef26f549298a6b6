"""Precision found by a fleet: the goal is met, by the statistics alone, and wrong predictions are put right."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from benches import open_bench, tune

from quantization.errors import ConfigurationError
from quantization.layer_codes import from_bytes, to_bytes
from quantization.sensitivity import Gain
from server.candidate import load_manifest
from server.class_tuner import advance_until
from server.field_probes import FieldProbes
from server.folded import read, write
from server.generation import Generation, Step
from server.precision_record import PrecisionRecord
from server.precision_settings import PrecisionSettings
from server.tuner import meet
from server.tuning import Base, StepDone, Tuning
from server.weight_search import WeightSearch
from simulation.bench import Bench
from simulation.tasks import TaskData, load_task


@pytest.fixture(scope="module")
def task() -> TaskData:
    return load_task("digits", 0, None)


@contextmanager
def bench_of(task: TaskData, devices: int = 6, **goal: Any) -> Iterator[Bench]:
    scenario = {key: goal.pop(key) for key in ("liars", "drifts", "device_classes") if key in goal}
    with open_bench(task, devices=devices, precision=PrecisionSettings(**goal), **scenario) as bench:
        yield bench


def tuned(bench: Bench) -> Generation:
    return next(iter(tune(bench).values()))


def record_of(generation: Generation) -> PrecisionRecord:
    return PrecisionRecord.from_json(generation.precision)


def accuracy_of(bench: Bench, generation: Generation) -> float:
    found = bench.mean_accuracy({"x86-vnni": generation.manifest_digest}, bench.field_inputs)
    assert found is not None
    return found


@contextmanager
def probed(bench: Bench) -> Iterator[tuple[Tuning, Generation, Base]]:
    """A generation whose moments and probes are folded."""
    met = meet(bench.grid, bench.registry, bench.blobs, bench.settings, clock=bench.grid.clock)
    tuning = next(iter(met.tunings.values()))
    generation, _ = advance_until(tuning, {Step.PROBES})
    assert generation.step is Step.PROBES, generation.reason
    yield tuning, generation, Base.load(generation, bench.registry, bench.blobs)


def test_weights_meet_a_size_and_are_published_as_recorded(task: TaskData) -> None:
    with bench_of(task, size_ratio=10.0) as bench:
        generation = tuned(bench)
        assert generation.step is Step.PUBLISHED
        record = record_of(generation)
        assert record.size_ratio >= 10
        assert record.weight_bytes == sum(layer.size_bytes for layer in record.layers)
        assert record.fp32_weight_bytes / record.weight_bytes == pytest.approx(record.size_ratio)
        manifest = load_manifest(bench.blobs, generation.manifest_digest)
        stored = {ref.location: ref for ref in manifest.stages[0].files}
        layers = bench.prepared.plan.layers
        in_artifact = sum(stored[layer.weight].stored_size_bytes + 4 * layer.channels for layer in layers)
        assert in_artifact == record.weight_bytes
        assert {layer.name: stored[layer.weight].bit_width for layer in layers} == dict(record.bits)
        assert 0 < record.overhead_bytes < 12_000
        assert accuracy_of(bench, generation) >= 0.97
        assert [point.size_bytes for point in record.front] == sorted(p.size_bytes for p in record.front)
        assert bench.precision(generation) == record


@pytest.mark.slow
def test_weights_of_a_fleet_are_those_of_pooled_data_and_the_check_can_fail(task: TaskData) -> None:
    with bench_of(task, size_ratio=9.0) as bench:
        generation = tuned(bench)
        assert bench.weights_equal_pooled(generation)
        chosen = json.loads(generation.weights)
        weights = from_bytes(read(bench.blobs, chosen["weights_digest"]))
        name = max(weights, key=lambda layer: weights[layer].codes.size)
        codes = weights[name].codes.copy()
        codes[:, :10] = -codes[:, :10] + 1
        tampered = {**weights, name: replace(weights[name], codes=codes)}
        chosen["weights_digest"] = write(bench.blobs, to_bytes(tampered))
        assert not bench.weights_equal_pooled(replace(generation, weights=json.dumps(chosen)))


def test_equal_bits_for_all_layers(task: TaskData) -> None:
    with bench_of(task, weight_bits=3) as bench:
        record = record_of(tuned(bench))
        assert max(record.bits.values()) == 3
        assert not record.front


@pytest.mark.slow
def test_classes_that_cannot_multiply_eight_bits_get_codes_of_seven(task: TaskData) -> None:
    with bench_of(task, size_ratio=5.0, device_classes=("x86",)) as bench:
        record = record_of(tuned(bench))
        assert max(record.bits.values()) <= 7
        with pytest.raises(ConfigurationError, match="7"):
            WeightSearch.of(*_with(bench, PrecisionSettings(weight_bits=8)))


def _with(bench: Bench, goal: PrecisionSettings) -> tuple[Tuning, Generation, Base]:
    settings = replace(bench.settings, precision=goal)
    met = meet(bench.grid, bench.registry, bench.blobs, settings, clock=bench.grid.clock)
    tuning = next(iter(met.tunings.values()))
    generation = bench.registry.generations(bench.prepared.model.digest, tuning.device_class)[-1]
    return tuning, generation, Base.load(generation, bench.registry, bench.blobs)


@pytest.mark.slow
def test_a_drop_is_kept_by_the_smallest_weights_that_devices_saw_keep_it(task: TaskData) -> None:
    with bench_of(task, max_drop=1.0) as bench:
        generation = tuned(bench)
        assert generation.step is Step.PUBLISHED
        record = record_of(generation)
        assert record.size_ratio > 6
        assert accuracy_of(bench, generation) >= 0.97


def test_an_impossible_size_is_refused_and_names_the_smallest(task: TaskData) -> None:
    with bench_of(task, size_ratio=90.0) as bench:
        report = tune_failed(bench)
        assert "smallest feasible budget is" in report
        assert "times smaller than fp32 at most" in report


def tune_failed(bench: Bench) -> str:
    met = meet(bench.grid, bench.registry, bench.blobs, bench.settings, clock=bench.grid.clock)
    tuning = next(iter(met.tunings.values()))
    generation, _ = advance_until(tuning, set())
    assert generation.step is Step.FAILED
    return generation.reason


@pytest.mark.slow
@pytest.mark.parametrize("cut", [Step.INPUTS, Step.PROBES, Step.WEIGHTS])
def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(task: TaskData, cut: Step) -> None:
    with bench_of(task, size_ratio=10.0) as whole:
        expected = tuned(whole)
    with bench_of(task, size_ratio=10.0) as bench:

        def stop(event: object) -> None:
            if isinstance(event, StepDone) and event.generation.step is cut:
                raise KeyboardInterrupt

        met = meet(
            bench.grid, bench.registry, bench.blobs, bench.settings, clock=bench.grid.clock, on_event=stop
        )
        with pytest.raises(KeyboardInterrupt):
            advance_until(next(iter(met.tunings.values())), set())
        resumed = tuned(bench)
        assert resumed.number == expected.number
        assert resumed.weights == expected.weights
        assert resumed.manifest_digest == expected.manifest_digest


@pytest.mark.slow
def test_what_runs_already_is_not_searched_again_and_another_goal_is(task: TaskData) -> None:
    with bench_of(task, size_ratio=8.0) as bench:
        first = tuned(bench)
        again = tuned(bench)
        assert again.step is Step.UNCHANGED
        assert not again.weights
        bench.settings = replace(bench.settings, precision=PrecisionSettings(size_ratio=12.0))
        smaller = tuned(bench)
        assert smaller.step is Step.PUBLISHED
        assert record_of(smaller).weight_bytes < record_of(first).weight_bytes
        assert accuracy_of(bench, smaller) >= 0.96


@pytest.mark.slow
def test_liars_do_not_spoil_the_weights(task: TaskData) -> None:
    found = []
    for liars in (0.0, 0.2):
        with bench_of(task, devices=20, size_ratio=10.0, liars=liars) as bench:
            found.append(accuracy_of(bench, tuned(bench)))
    assert found[1] >= found[0] - 0.01


@pytest.mark.slow
def test_a_gain_that_was_far_too_small_is_found_out_and_remembered(
    task: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench_of(task, size_ratio=14.0) as bench, probed(bench) as (tuning, generation, base):
        honest = FieldProbes.gains
        victim = bench.prepared.plan.layers[1].name

        def wrong(self: FieldProbes) -> dict[str, Gain]:
            gains = honest(self)
            return {**gains, victim: replace(gains[victim], value=gains[victim].value / 3000)}

        monkeypatch.setattr(FieldProbes, "gains", wrong)
        search = WeightSearch.of(tuning, generation, base)
        first = search.first_choice()
        before = search.try_all({"first": first})["first"]
        found = WeightSearch.of(tuning, generation, base).run()
        assert before is not None
        assert found.record.measured_loss is not None
        assert found.record.measured_loss < 0.5 * before.loss
        assert found.gain_factors[victim] > 10
        assert found.record.size_ratio >= 14


@pytest.mark.slow
def test_named_layers_stay_float_and_run(task: TaskData) -> None:
    last = None
    with bench_of(task, size_ratio=8.0) as bench:
        last = bench.prepared.plan.layers[-1]
    with bench_of(task, size_ratio=8.0, float_layers=((last.name, "fp16"),)) as bench:
        generation = tuned(bench)
        assert generation.step is Step.PUBLISHED, generation.reason
        record = record_of(generation)
        storage = {layer.name: layer.storage for layer in record.layers}
        assert storage.pop(last.name) == "fp16"
        assert set(storage.values()) == {"int8"}
        stage = load_manifest(bench.blobs, generation.manifest_digest).stages[0]
        assert {ref.location: ref.dtype for ref in stage.files}[last.weight] == "float16"
        assert accuracy_of(bench, generation) >= 0.97
        bench.settings = replace(bench.settings, precision=PrecisionSettings(size_ratio=9.0))
        back = tuned(bench)
        assert back.step is Step.PUBLISHED, back.reason
        assert {layer.storage for layer in record_of(back).layers} >= {"int8"}


def test_unknown_float_layer_is_refused_with_the_names_there_are(task: TaskData) -> None:
    with bench_of(task, size_ratio=8.0, float_layers=(("nowhere", "fp16"),)) as bench:
        assert "nowhere" in tune_failed(bench)


@pytest.mark.slow
def test_a_latency_budget_is_held_against_what_devices_measured(task: TaskData) -> None:
    with bench_of(task, size_ratio=8.0, latency_budget_seconds=1.0) as bench:
        assert tuned(bench).step is Step.PUBLISHED
    with bench_of(task, size_ratio=8.0, latency_budget_seconds=1e-9) as bench:
        assert "the smallest feasible budget is" in tune_failed(bench)


@pytest.mark.slow
def test_rounding_in_sequence_keeps_to_the_size(task: TaskData) -> None:
    with bench_of(task, size_ratio=12.0, rounding_rounds=3) as bench:
        generation = tuned(bench)
        assert record_of(generation).size_ratio >= 12
        assert accuracy_of(bench, generation) >= 0.96


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", [{"train_rounds": 1}, {"learned_rounding": 4}], ids=lambda asked: next(iter(asked))
)
def test_weights_of_an_allocation_are_trained_at_their_size(task: TaskData, asked: dict[str, int]) -> None:
    with bench_of(task, size_ratio=16.0, **asked) as bench:
        generation = tuned(bench)
        assert generation.step is Step.PUBLISHED, generation.reason
        assert record_of(generation).size_ratio > 15.5
        assert accuracy_of(bench, generation) >= 0.93


@pytest.mark.slow
def test_precision_and_drift_are_tuned_together(task: TaskData) -> None:
    with bench_of(task, devices=10, size_ratio=8.0, drifts=("contrast=0.3",)) as bench:
        generation = tuned(bench)
        assert generation.step is Step.PUBLISHED
        assert accuracy_of(bench, generation) >= 0.95
        assert np.mean([drift.size for drift in bench.residual_drift(generation).values()]) < 0.3
