"""One generation, end to end, over the real ClientApp and real ONNX Runtime sessions."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.app import app as client_app
from client.observer import Observer
from client.runtime import Runtime
from quantization.arrays import FloatArray
from quantization.calibration import method_from_name
from quantization.device_class import ARM, X86
from quantization.errors import NotFoundError, RoundFailedError
from quantization.fixed_grid import FixedGrid
from quantization.histogram import DyadicHistogram
from quantization.policy import Policy
from server.blob_store import BlobStore
from server.candidate import PlannedModel, load_manifest
from server.folded import FieldMoments, FieldRanges, read
from server.generation import Event, Generation, IllegalTransitionError, Step
from server.lab import PreparedModel, prepare_model
from server.ranges import choose_ranges
from server.registry import Registry
from server.settings import CohortSettings, ServerSettings
from server.tuner import GenerationReport, run_generation
from server.tuning import RoundMoved, StepDone
from server.verdict_steps import distance
from simulation.grid import Dropout, InProcessGrid

SETTINGS = ServerSettings(model_name="tiny")


@pytest.fixture
def prepared(
    registry: Registry, blobs: BlobStore, tiny_model: bytes, lab_inputs: FloatArray
) -> PreparedModel:
    return prepare_model(
        tiny_model, lab_inputs, name="tiny", device_classes=[ARM], registry=registry, blobs=blobs
    )


@dataclass
class Bench:
    """A prepared registry and store, and what a run does with them."""

    registry: Registry
    blobs: BlobStore
    prepared: PreparedModel

    def run(self, fleet: Any, settings: ServerSettings = SETTINGS, **options: Any) -> GenerationReport:
        grid = fleet.grid()
        return run_generation(grid, self.registry, self.blobs, settings, clock=grid.clock, **options)

    def generations(self) -> tuple[Generation, ...]:
        return self.registry.generations(self.prepared.model.digest, "arm")

    def moments(self, generation: Generation) -> FieldMoments:
        return FieldMoments.from_bytes(read(self.blobs, generation.moments_digest))

    def ranges(self, generation: Generation) -> FieldRanges:
        return FieldRanges.from_bytes(read(self.blobs, generation.ranges_digest))


@pytest.fixture
def bench(registry: Registry, blobs: BlobStore, prepared: PreparedModel) -> Bench:
    return Bench(registry, blobs, prepared)


def policy_of(generation: Generation) -> Policy:
    return Policy.from_json_bytes(generation.policy.encode())


def test_a_drifted_fleet_gets_corrections_that_bring_the_moments_back(bench: Bench, make_fleet: Any) -> None:
    report = bench.run(make_fleet(gain=3.0))
    generation = report.generations["arm"]
    assert report.is_published
    assert (generation.number, generation.step, generation.clients) == (1, Step.PUBLISHED, 6)
    assert policy_of(generation).corrections.keys() == {
        layer.name for layer in bench.prepared.plan.corrected_layers
    }
    before = distance(bench.moments(generation).plain)
    after = distance(bench.ranges(generation).moments)
    assert before is not None
    assert after is not None
    assert after < 0.1 * before
    assert json.loads(generation.drift)["is_drifted"]


def test_a_fleet_like_the_lab_keeps_its_corrections(bench: Bench, make_fleet: Any) -> None:
    generation = bench.run(make_fleet()).generations["arm"]
    assert generation.step is Step.PUBLISHED  # its ranges moved
    assert dict(policy_of(generation).corrections) == {}
    assert not json.loads(generation.drift)["is_drifted"]


def test_bins_that_a_round_fixes_give_nearly_the_same_ranges(bench: Bench, make_fleet: Any) -> None:
    settings = ServerSettings(model_name="tiny", fixed_grids=True)
    fixed = policy_of(bench.run(make_fleet(gain=3.0), settings).generations["arm"])
    statistics = bench.prepared.statistics["arm"].histograms
    for site, found in bench.ranges(bench.generations()[-1]).histograms.items():
        assert found.exponent >= FixedGrid.around(statistics[site]).exponent
        assert found.minimum <= fixed.ranges[site].hi <= max(found.maximum, 0.0) + 1e-6


def test_an_update_is_the_manifest_the_ranges_the_channels_and_the_self_test(
    bench: Bench, make_fleet: Any
) -> None:
    generation = bench.run(make_fleet(gain=3.0)).generations["arm"]
    held = bench.prepared.artifacts["arm"].manifest.blobs
    manifest = load_manifest(bench.blobs, generation.manifest_digest)
    new = {ref.location: ref for digest, ref in manifest.blobs.items() if digest not in held}
    assert new.keys() == {"ranges", "channels", ""}
    assert new[""] == manifest.stages[0].self_test
    stored = sum(ref.stored_size_bytes for digest, ref in manifest.blobs.items() if digest not in held)
    assert generation.update_bytes == stored + len(manifest.to_bytes())


def test_devices_that_took_a_generation_in_have_nothing_more_to_learn(bench: Bench, make_fleet: Any) -> None:
    fleet = make_fleet(gain=3.0)
    first = bench.run(fleet).generations["arm"]
    second = bench.run(fleet).generations["arm"]
    assert all(device.manifest().generation == 1 for device in fleet.devices)
    assert (second.number, second.base_number, second.step) == (2, 1, Step.UNCHANGED)
    assert second.reason == "the field asks for what devices run already"
    assert not json.loads(second.drift)["is_drifted"]
    assert bench.registry.published(first.model_digest, "arm") == first


def test_the_ranges_are_bit_for_bit_those_of_all_values_in_one_array(bench: Bench, make_fleet: Any) -> None:
    fleet = make_fleet(devices=5, gain=0.5, offset=0.3)
    generation = bench.run(fleet).generations["arm"]
    manifest = load_manifest(bench.blobs, generation.manifest_digest)
    pooled: dict[str, list[FloatArray]] = {}
    for device in reversed(fleet.devices):
        Observer(manifest, bench.blobs.get).ranges(
            device.inputs(), lambda site, values, _: pooled.setdefault(site, []).append(values)
        )
    histograms = {s: DyadicHistogram.from_values(np.concatenate(values)) for s, values in pooled.items()}
    method = method_from_name(policy_of(generation).range_method)
    assert choose_ranges(bench.prepared.plan, histograms, method) == policy_of(generation).ranges


def test_a_candidate_that_labels_show_to_be_worse_is_rejected(bench: Bench, make_fleet: Any) -> None:
    fleet = make_fleet(gain=0.5, offset=0.3)
    current = Runtime(bench.prepared.artifacts["arm"].manifest, bench.blobs.get)
    for device in fleet.devices:
        device.y = current.infer(device.x).argmax(axis=1).astype(np.int64)
    report = bench.run(fleet)
    generation = report.generations["arm"]
    assert not report.is_published
    assert generation.step is Step.REJECTED
    assert "labelled samples" in generation.reason
    assert json.loads(generation.assessment)["verdict"]["basis"] == "labels"
    assert bench.registry.published(generation.model_digest, "arm").number == 0


def test_a_rejected_number_is_not_used_again(bench: Bench, make_fleet: Any) -> None:
    test_a_candidate_that_labels_show_to_be_worse_is_rejected(bench, make_fleet)
    fleet = make_fleet(gain=0.5, offset=0.3)
    generation = bench.run(fleet).generations["arm"]
    assert (generation.number, generation.base_number, generation.step) == (2, 0, Step.PUBLISHED)
    assert load_manifest(bench.blobs, generation.manifest_digest).generation == 2


class CrashError(BaseException):
    """The process ends here."""


def crash_at(count: int, act: Callable[..., Any], *, is_late: bool) -> Callable[..., Any]:
    """Return `act`, ending the process at the given call: before it, or after its effect."""
    calls = 0

    def crashing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not is_late:
            raise CrashError
        result = act(*args, **kwargs)
        if calls == count:
            raise CrashError
        return result

    return crashing


@dataclass
class Outcome:
    """What a run, or a run and its resumption, ended with."""

    generation: Generation
    asked: Counter[str]


def published_after_a_crash(
    folder: Path, model: bytes, inputs: FloatArray, fleet: Any, crash: tuple[int, bool] | None
) -> Outcome:
    """Run a generation on a registry and store of its own; end it at a call of `advance`, reopen, and resume."""
    asked: Counter[str] = Counter()
    blobs, url = BlobStore(folder / "blobs"), f"sqlite:///{folder / 'registry.db'}"
    for device in fleet.devices:
        device.installed, device.held = None, {}

    def run(registry: Registry) -> Generation:
        grid = CountingGrid(fleet, asked)
        return run_generation(grid, registry, blobs, SETTINGS, clock=grid.clock).generations["arm"]

    with Registry.open(url) as registry:
        prepare_model(model, inputs, name="tiny", device_classes=[ARM], registry=registry, blobs=blobs)
        if crash is None:
            return Outcome(run(registry), asked)
        count, is_late = crash
        registry.advance = crash_at(count, registry.advance, is_late=is_late)  # type: ignore[method-assign]
        with pytest.raises(CrashError):
            run(registry)
    with Registry.open(url) as reopened:
        return Outcome(run(reopened), asked)


class CountingGrid(InProcessGrid):
    """A grid that counts what devices are asked."""

    def __init__(self, fleet: Any, asked: Counter[str]) -> None:
        super().__init__(client_app, len(fleet.devices))
        self.asked = asked

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        batch = list(messages)
        self.asked.update(message.metadata.message_type for message in batch)
        return super().push_messages(batch)


@pytest.mark.parametrize("crash", [(step, is_late) for step in range(1, 6) for is_late in (False, True)])
def test_a_run_that_was_cut_off_is_finished_with_the_same_bytes(
    crash: tuple[int, bool],
    tmp_path: Path,
    tiny_model: bytes,
    lab_inputs: FloatArray,
    make_fleet: Any,
) -> None:
    step, is_late = crash
    fleet = make_fleet(devices=3, gain=3.0)
    undisturbed = published_after_a_crash(tmp_path / "a", tiny_model, lab_inputs, fleet, None)
    resumed = published_after_a_crash(tmp_path / "b", tiny_model, lab_inputs, fleet, crash)
    assert undisturbed.generation.step is Step.PUBLISHED
    if step == 5 and is_late:  # it had been published when the process ended: the next run found nothing new
        assert resumed.generation.step is Step.UNCHANGED
        return
    assert resumed.generation.number == 1
    assert resumed.generation.manifest_digest == undisturbed.generation.manifest_digest
    assert resumed.generation.policy == undisturbed.generation.policy
    assert resumed.generation.moments_digest == undisturbed.generation.moments_digest
    assert resumed.generation.ranges_digest == undisturbed.generation.ranges_digest
    is_round_lost = {"query.calibrate": step in {1, 2}, "query.assess": step == 4}
    for message, is_lost in is_round_lost.items():
        lost = len(fleet.devices) if is_lost and not is_late else 0
        assert resumed.asked[message] == undisturbed.asked[message] + lost


def test_a_generation_left_open_for_too_long_is_given_up(bench: Bench, make_fleet: Any) -> None:
    digest = bench.prepared.model.digest
    left = bench.registry.start_generation(digest, "arm", base_number=0)
    bench.run(make_fleet(gain=3.0), replace(SETTINGS, resume_seconds=0.0))
    _, given_up, fresh = bench.generations()
    assert (given_up.number, given_up.step) == (left.number, Step.FAILED)
    assert "left open for" in given_up.reason
    assert (fresh.number, fresh.step) == (2, Step.PUBLISHED)


def test_a_fleet_that_fails_keeps_what_it_runs(bench: Bench, make_fleet: Any) -> None:
    fleet = make_fleet()
    for device in fleet.devices:
        device.x = np.zeros((4, 3), np.float32)  # what the model cannot take
    with pytest.raises(RoundFailedError, match=r"arm: 0 of 6 devices replied.*the first was node"):
        bench.run(fleet)
    _, failed = bench.generations()
    assert failed.step is Step.FAILED
    assert "0 of 6 devices replied" in failed.reason
    assert bench.registry.published(failed.model_digest, "arm").number == 0


def test_a_fleet_without_inputs_fails_and_says_so(bench: Bench, make_fleet: Any) -> None:
    with pytest.raises(RoundFailedError, match="none of the 6 devices has sampled inputs"):
        bench.run(make_fleet(samples=0))


def test_devices_that_drop_out_are_done_without(bench: Bench, make_fleet: Any) -> None:
    def drop_two(position: int, message: Message) -> Dropout | None:
        is_asked = message.metadata.message_type != "query.hello"
        return Dropout() if position < 2 and is_asked else None

    generation = bench.run(make_fleet(gain=3.0, fault=drop_two)).generations["arm"]
    assert (generation.step, generation.clients) == (Step.PUBLISHED, 4)


def test_a_share_of_the_devices_is_asked(bench: Bench, make_fleet: Any) -> None:
    settings = replace(SETTINGS, cohort=CohortSettings(sample_fraction=0.5))
    assert bench.run(make_fleet(gain=3.0), settings).generations["arm"].clients == 3


def test_each_class_gets_a_generation_of_its_own(
    bench: Bench, make_fleet: Any, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    prepare_model(
        tiny_model,
        lab_inputs,
        name="tiny",
        device_classes=[X86],
        registry=bench.registry,
        blobs=bench.blobs,
    )
    fleet = make_fleet(gain=3.0)
    for device in fleet.devices[:3]:
        device.device_class = X86
    report = bench.run(fleet)
    assert {name: g.step for name, g in report.generations.items()} == {
        "arm": Step.PUBLISHED,
        "x86": Step.PUBLISHED,
    }
    assert all(generation.clients == 3 for generation in report.generations.values())
    assert set(policy_of(report.generations["x86"]).bit_widths.values()) == {7}


def test_a_class_that_fails_does_not_stop_the_others(
    bench: Bench, make_fleet: Any, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    prepare_model(
        tiny_model,
        lab_inputs,
        name="tiny",
        device_classes=[X86],
        registry=bench.registry,
        blobs=bench.blobs,
    )
    fleet = make_fleet(gain=3.0)
    for device in fleet.devices[:3]:
        device.device_class, device.x = X86, device.x[:0]
    report = bench.run(fleet)
    assert report.generations["arm"].step is Step.PUBLISHED
    assert report.generations["x86"].step is Step.FAILED


def test_devices_of_an_unprepared_class_are_counted_and_not_asked(bench: Bench, make_fleet: Any) -> None:
    fleet = make_fleet(gain=3.0)
    fleet.devices[0].device_class = X86
    report = bench.run(fleet)
    assert report.unprepared == {"x86": 1}
    assert report.generations["arm"].clients == 5
    for device in fleet.devices:
        device.device_class = X86
    with pytest.raises(NotFoundError, match=r"none of the classes that are there \(x86\)"):
        bench.run(fleet)


def test_an_unknown_model_is_named(bench: Bench, make_fleet: Any) -> None:
    with pytest.raises(NotFoundError, match="no model named 'other'; it has: tiny"):
        bench.run(make_fleet(), replace(SETTINGS, model_name="other"))


def test_of_two_runs_at_once_one_stops(bench: Bench, make_fleet: Any) -> None:
    def interfere(event: StepDone | RoundMoved) -> None:
        if isinstance(event, StepDone) and event.generation.step is Step.MOMENTS:
            bench.registry.advance(replace(event.generation, reason="by another run"), Event.GAVE_UP)

    with pytest.raises(IllegalTransitionError, match="another run has moved it"):
        bench.run(make_fleet(gain=3.0), on_event=interfere)


def test_every_step_and_reply_is_told(bench: Bench, make_fleet: Any) -> None:
    events: list[StepDone | RoundMoved] = []
    bench.run(make_fleet(gain=3.0), on_event=events.append)
    steps = [event.generation.step for event in events if isinstance(event, StepDone)]
    assert steps == [Step.MOMENTS, Step.RANGES, Step.PROPOSED, Step.ASSESSED, Step.PUBLISHED]
    moved = {event.generation.step for event in events if isinstance(event, RoundMoved)}
    assert moved == {Step.STARTED, Step.MOMENTS, Step.PROPOSED}


def test_a_stored_model_has_the_plan_it_was_prepared_with(bench: Bench) -> None:
    assert PlannedModel.load(bench.prepared.model.digest, bench.blobs).plan == bench.prepared.plan
