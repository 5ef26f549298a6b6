import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from simulation.grid import Crash, Dropout, Fault, Straggler
from simulation.measured_grid import MeasuredGrid, Traffic
from strategies.messages import (
    AssessRequest,
    Delivery,
    LayerLayout,
    MomentsRequest,
    RangesRequest,
    SiteLayout,
)
from strategies.records import (
    ASSESS,
    CALIBRATE,
    PHASE_MOMENTS,
    PHASE_RANGES,
    encode_assess_request,
    encode_moments_request,
    encode_ranges_request,
)
from strategies.rounds import messages_to
from strategies.wire import content_size_bytes

ANSWER = RecordDict({"answer": ConfigRecord({"text": "x" * 100})})
CONTENT = {
    "moments": lambda: encode_moments_request(MomentsRequest(Delivery(b"m"), LayerLayout.of({"a": 1}), 32)),
    "ranges": lambda: encode_ranges_request(
        RangesRequest(Delivery(b"m"), LayerLayout.of({"a": 1}), SiteLayout(("s",)), batch_size=32)
    ),
}


def app() -> ClientApp:
    app = ClientApp()

    @app.query("calibrate")
    def calibrate(message: Message, _: Context) -> Message:
        return Message(ANSWER, reply_to=message)

    @app.query("assess")
    def assess(message: Message, _: Context) -> Message:
        return Message(ANSWER, reply_to=message)

    return app


def fault(position: int, _: Message) -> Fault | None:
    return {0: Crash(), 1: Dropout(), 2: Straggler(1e6), 3: Crash()}.get(position)


def grid_of(nodes: int, *, is_faulty: bool) -> MeasuredGrid:
    grid = MeasuredGrid(app(), nodes, fault=fault if is_faulty else None)
    grid.traffic = Traffic()
    return grid


def ask(grid: MeasuredGrid, phase: str) -> None:
    messages = messages_to(grid.get_node_ids(), CONTENT[phase](), CALIBRATE)
    list(grid.pull_messages(grid.push_messages(messages)))


def test_replies_are_measured_and_nobody_is_missed() -> None:
    grid = grid_of(4, is_faulty=False)
    ask(grid, "moments")
    assert grid.traffic.reply_bytes == 4 * content_size_bytes(ANSWER)
    assert grid.traffic.observed == {PHASE_MOMENTS: {0, 1, 2, 3}}
    assert grid.traffic.dropped() == {}


def test_devices_that_brought_no_moments_are_counted_once_by_reason() -> None:
    grid = grid_of(6, is_faulty=True)
    ask(grid, "moments")
    ask(grid, "ranges")
    assert grid.traffic.dropped() == {"failed": 2, "late or silent": 2}
    assert grid.traffic.observed == {PHASE_MOMENTS: {4, 5}, PHASE_RANGES: {4, 5}}


def test_only_calibration_tells_who_took_part() -> None:
    grid = grid_of(5, is_faulty=True)
    content = encode_assess_request(AssessRequest(Delivery(b"m"), Delivery(b"n"), 32))
    list(grid.pull_messages(grid.push_messages(messages_to(grid.get_node_ids(), content, ASSESS))))
    assert grid.traffic.dropped() == {}
    assert grid.traffic.observed[PHASE_RANGES] == set()
    assert grid.traffic.reply_bytes == content_size_bytes(ANSWER)


def test_new_traffic_starts_from_nothing() -> None:
    grid = grid_of(3, is_faulty=False)
    ask(grid, "moments")
    grid.traffic = Traffic()
    assert grid.traffic.reply_bytes == 0
    ask(grid, "ranges")
    assert grid.traffic.observed == {PHASE_RANGES: {0, 1, 2}}


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_no_count(workers: int) -> None:
    grid = MeasuredGrid(app(), 9, fault=fault, workers=workers)
    grid.traffic = Traffic()
    ask(grid, "moments")
    assert grid.traffic.observed[PHASE_MOMENTS] == set(range(4, 9))
    assert grid.traffic.dropped() == {"failed": 2, "late or silent": 2}
