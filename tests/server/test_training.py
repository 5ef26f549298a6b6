"""Federated training of a digits fleet, through the real ClientApp on the in-process grid."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from benches import open_bench

from quantization.compile import compile_inference
from quantization.errors import ConfigurationError, RoundFailedError
from quantization.layer_codes import LayerCodes, weight_rows
from quantization.policy import Policy
from quantization.stored_size import stored_size_bytes
from quantization.training_settings import LEARNED_ROUNDING, TrainingSettings
from server.candidate import PlannedModel
from server.folded import read
from server.lab import open_session
from server.training import train_weights
from server.training_plan import TrainingPlan, TrainingRoundReport
from simulation.bench import Bench
from simulation.measured_grid import Traffic
from simulation.tasks import load_task
from strategies.hello_round import hello
from strategies.messages import DeviceHello
from strategies.rounds import RoundContext

PLAN = TrainingPlan(rounds=2, local=TrainingSettings(epochs=1, batch_size=8))


@dataclass(frozen=True)
class _Fleet:
    bench: Bench
    model: PlannedModel
    policy: Policy
    devices: tuple[DeviceHello, ...]
    start: dict[str, LayerCodes]

    def train(self, plan: TrainingPlan = PLAN, **options: object) -> dict[str, LayerCodes]:
        context = RoundContext(self.bench.grid, clock=self.bench.grid.clock)
        return train_weights(context, self.devices, self.model, self.policy, self.start, plan=plan, **options)  # type: ignore[arg-type]

    def accuracy(self, weights: dict[str, LayerCodes]) -> float:
        run = open_session(compile_inference(self.model.content, self.model.plan, self.policy, weights))
        logits = run(self.bench.field_inputs)[self.model.plan.output_names[0]]
        return float((logits.argmax(-1) == self.bench.fleet.task.test_y).mean())


@pytest.fixture(scope="module")
def fleet() -> Iterator[_Fleet]:
    with open_bench(load_task("digits", 0), devices=6, labelled=0.5) as bench:
        bench.grid.traffic = Traffic()
        generation = bench.prepared.generations["x86-vnni"]
        model = PlannedModel.of(read(bench.blobs, generation.model_digest))
        devices = hello(bench.grid, tuple(bench.grid.get_node_ids()), clock=bench.grid.clock).value
        policy = Policy.from_json_bytes(generation.policy.encode())
        yield _Fleet(bench, model, policy, devices, _two_bits(model))


def _two_bits(model: PlannedModel) -> dict[str, LayerCodes]:
    """Every layer at 2 bits, rounded to nearest: much is lost."""
    found = {}
    for layer in model.plan.layers:
        rows = weight_rows(model.draft.tensors[layer.weight], layer.weight_axis)
        scale = (1.6 * np.abs(rows).mean(1)).astype(np.float32)
        codes = np.clip(np.rint(rows / scale[:, None]), -1, 1).astype(np.int8)
        found[layer.name] = LayerCodes(codes, scale, np.zeros(len(rows)))
    return found


def _equal(a: dict[str, LayerCodes], b: dict[str, LayerCodes]) -> bool:
    return all(
        np.array_equal(getattr(a[name], part), getattr(b[name], part))
        for name in a
        for part in ("codes", "scale", "bias_shift")
    )


def test_training_gives_accuracy_back_at_the_same_size(fleet: _Fleet) -> None:
    reports: list[TrainingRoundReport] = []
    trained = fleet.train(replace(PLAN, rounds=4), on_round=reports.append)
    assert fleet.accuracy(trained) > fleet.accuracy(fleet.start) + 0.02
    sizes = [sum(stored_size_bytes(layer.codes) for layer in w.values()) for w in (fleet.start, trained)]
    assert sizes[1] <= 1.01 * sizes[0]
    assert all(np.abs(layer.codes).max() <= 1 for layer in trained.values())
    assert [report.number for report in reports] == [0, 1, 2, 3, 4]
    assert reports[-1].loss < reports[0].loss
    assert all(report.devices == 6 for report in reports)


def test_equal_replies_give_equal_weights(fleet: _Fleet) -> None:
    once = replace(PLAN, rounds=1)
    assert _equal(fleet.train(once), fleet.train(once))


def test_training_that_only_does_harm_changes_nothing(fleet: _Fleet) -> None:
    wild = TrainingSettings(epochs=1, batch_size=16, weight_rate=2.0, bias_rate=60.0)
    assert _equal(fleet.train(replace(PLAN, rounds=1, local=wild)), fleet.start)


def test_steps_that_are_not_learned_stay(fleet: _Fleet) -> None:
    quiet = TrainingSettings(epochs=1, batch_size=8, weight_rate=0.005)
    trained = fleet.train(replace(PLAN, rounds=1, local=quiet), learns_steps=False)
    assert not _equal(trained, fleet.start)
    for name, layer in trained.items():
        np.testing.assert_array_equal(layer.scale, fleet.start[name].scale)


def test_devices_that_cannot_train_are_not_asked(fleet: _Fleet) -> None:
    able = tuple(replace(device, capabilities=()) for device in fleet.devices[:2]) + fleet.devices[2:]
    reports: list[TrainingRoundReport] = []
    replace(fleet, devices=able).train(replace(PLAN, rounds=1), on_round=reports.append)
    assert reports[0].devices == 4


def test_fleet_that_cannot_train_is_an_error(fleet: _Fleet) -> None:
    unable = tuple(replace(device, capabilities=()) for device in fleet.devices)
    with pytest.raises(RoundFailedError):
        replace(fleet, devices=unable).train()


def test_weights_of_another_model_are_refused(fleet: _Fleet) -> None:
    with pytest.raises(ConfigurationError, match="nothing"):
        replace(fleet, start={"nothing": next(iter(fleet.start.values()))}).train()


def _learning(learned: int, **changes: object) -> TrainingPlan:
    local = replace(LEARNED_ROUNDING, epochs=3, weight_rate=0.03)
    return replace(PLAN, rounding_rounds=learned, rounding=local, **changes)  # type: ignore[arg-type]


def test_rounding_is_learned_by_devices_in_turn(fleet: _Fleet) -> None:
    reports: list[TrainingRoundReport] = []
    learned = fleet.train(_learning(8, rounds=0, rounding_devices=2), on_round=reports.append)
    assert [report.number for report in reports] == list(range(10))
    assert [report.devices for report in reports] == [2] * 8 + [6, 6]
    assert reports[-1].loss < reports[-2].loss  # what was learned, and the start
    assert fleet.accuracy(learned) > fleet.accuracy(fleet.start) + 0.02
    sizes = [sum(stored_size_bytes(layer.codes) for layer in w.values()) for w in (fleet.start, learned)]
    assert sizes[1] <= 1.02 * sizes[0]  # their entropy did not grow
    moved = [np.abs(np.log(layer.scale / fleet.start[name].scale)).max() for name, layer in learned.items()]
    assert 0 < min(moved) <= max(moved) < 0.3


def test_steps_that_are_not_to_be_learned_stay_when_rounding_is(fleet: _Fleet) -> None:
    learned = fleet.train(_learning(8, rounds=0, rounding_devices=2), learns_steps=False)
    assert not _equal(learned, fleet.start)
    for name, layer in learned.items():
        np.testing.assert_array_equal(layer.scale, fleet.start[name].scale)


def test_equal_replies_teach_equal_rounding(fleet: _Fleet) -> None:
    once = _learning(2, rounds=1, rounding_devices=3)
    assert _equal(fleet.train(once), fleet.train(once))


def test_rounding_that_was_learned_badly_is_left(fleet: _Fleet) -> None:
    wild = replace(
        _learning(1, rounds=0), rounding=replace(LEARNED_ROUNDING, weight_rate=3.0, bias_rate=60.0)
    )
    assert _equal(fleet.train(wild), fleet.start)


@pytest.mark.parametrize("changes", [{"rounds": -1}, {"rounding_rounds": -1}, {"rounding_devices": 0}])
def test_plans_that_no_fleet_can_follow_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        TrainingPlan(**changes)  # type: ignore[arg-type]
