from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from quantization.affine import params_from_range
from quantization.errors import RoundFailedError
from quantization.training_state import LayerState, TrainingGrid
from quantization.training_update import TrainedLayer, TrainingLayout, TrainingUpdate
from simulation.grid import InProcessGrid, Straggler
from strategies.messages import DeviceHello
from strategies.rounds import RoundContext
from strategies.training_messages import TrainRequest
from strategies.training_records import CAN_TRAIN, decode_train_request, encode_update
from strategies.training_round import TrainingResult, can_train, train

LAYOUT = TrainingLayout((TrainedLayer("conv", 2, 3, TrainingGrid(1), True, 0.25),))
STATE = {"conv": LayerState(np.zeros((2, 3), np.float32), np.ones(2, np.float32), np.zeros(2, np.float32))}
REQUEST = TrainRequest(b"model", LAYOUT, STATE, {"x": params_from_range(0.0, 1.0)})


def _update(position: int) -> TrainingUpdate:
    sums = np.random.default_rng(position).integers(-10_000, 10_000, LAYOUT.size)
    return TrainingUpdate(1 + position, sums, 1, 1000 + position)


def _app(answer: Callable[[int], TrainingUpdate] = _update) -> ClientApp:
    app = ClientApp()

    @app.train("qat")
    def handle(message: Message, context: Context) -> Message:
        decode_train_request(message.content)
        return Message(encode_update(answer(int(context.node_config["partition-id"]))), reply_to=message)

    return app


def _cohort(grid: InProcessGrid, samples: int = 100) -> tuple[DeviceHello, ...]:
    return tuple(DeviceHello(n, "arm", 0, "", samples, False, (CAN_TRAIN,)) for n in grid.get_node_ids())


def _train(grid: InProcessGrid, cohort: tuple[DeviceHello, ...]) -> TrainingResult:
    return train(RoundContext(grid, clock=grid.clock), cohort, REQUEST).value


def test_movements_of_the_cohort_are_summed_in_any_order() -> None:
    late = InProcessGrid(_app(), 10, fault=lambda position, _: Straggler(10.0 - position))
    found = _train(late, _cohort(late))
    expected = TrainingUpdate.empty(LAYOUT)
    for position in range(10):
        expected = expected.merge(_update(position))
    assert found.update == expected
    assert found.samples == sum(range(1, 11))


def test_devices_that_cannot_train_are_not_asked() -> None:
    grid = InProcessGrid(_app(), 4)
    able, no_torch, no_inputs, last = _cohort(grid)
    cohort = (able, replace(no_torch, capabilities=()), replace(no_inputs, sample_count=0), last)
    assert [can_train(device) for device in cohort] == [True, False, False, True]
    assert _train(grid, cohort).update == _update(0).merge(_update(3))


def test_nobody_who_can_train_fails_the_round() -> None:
    grid = InProcessGrid(_app(), 2)
    with pytest.raises(RoundFailedError):
        _train(grid, tuple(replace(device, capabilities=()) for device in _cohort(grid)))


@pytest.mark.parametrize(
    "bad",
    [
        TrainingUpdate(1, np.full(LAYOUT.size, 1 << 40, np.int64), 1, 1000),
        TrainingUpdate(101, np.zeros(LAYOUT.size, np.int64), 1, 1000),
        TrainingUpdate(1, np.zeros(LAYOUT.size - 1, np.int64), 1, 1000),
    ],
    ids=["far", "heavy", "short"],
)
def test_absurd_updates_leave_no_trace(bad: TrainingUpdate) -> None:
    grid = InProcessGrid(_app(lambda position: bad if position == 1 else _update(position)), 3)
    outcome = train(RoundContext(grid, clock=grid.clock), _cohort(grid), REQUEST)
    assert outcome.value.update == _update(0).merge(_update(2))
    assert outcome.failed == {"malformed": 1}


def test_message_that_is_no_update_is_counted() -> None:
    app = ClientApp()

    @app.train("qat")
    def handle(message: Message, _context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, 2)
    with pytest.raises(RoundFailedError, match="malformed"):
        _train(grid, _cohort(grid))
