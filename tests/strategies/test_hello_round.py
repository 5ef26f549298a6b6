import pytest
from flwr.app import RecordDict
from statistics_strategies import app_that

from quantization.errors import RoundFailedError
from simulation.grid import InProcessGrid
from strategies.hello_round import hello, wait_for_nodes, with_unique_names
from strategies.messages import DeviceHello
from strategies.records import encode_hello
from strategies.rounds import Clock


def _introduce(position: int, _: RecordDict) -> RecordDict:
    return encode_hello(DeviceHello(0, "arm" if position % 2 else "x86", position, "", 10, False))


def test_devices_introduce_themselves_in_order_of_their_nodes() -> None:
    grid = InProcessGrid(app_that("hello", _introduce), 5)
    outcome = hello(grid, tuple(reversed(grid.get_node_ids())), clock=grid.clock)
    assert [device.node_id for device in outcome.value] == list(grid.get_node_ids())
    assert [device.device_class for device in outcome.value] == ["x86", "arm", "x86", "arm", "x86"]


def test_a_device_that_talks_nonsense_is_left_out() -> None:
    def answer(position: int, content: RecordDict) -> RecordDict:
        return RecordDict() if position == 1 else _introduce(position, content)

    grid = InProcessGrid(app_that("hello", answer), 3)
    outcome = hello(grid, tuple(grid.get_node_ids()), clock=grid.clock)
    assert [device.node_id for device in outcome.value] == [2, 4]
    assert outcome.failed == {"malformed": 1}


class _Growing(InProcessGrid):
    """A grid where one more node registers every second."""

    def get_node_ids(self) -> range:
        return range(2, 2 + min(int(self.clock.now()), 5))


def _growing() -> _Growing:
    return _Growing(app_that("hello", _introduce), 5)


def test_waits_until_the_expected_nodes_are_there() -> None:
    grid = _growing()
    assert wait_for_nodes(grid, 3, clock=grid.clock) == (2, 3, 4)
    assert grid.clock.now() == 3


def test_goes_on_with_the_nodes_that_are_there_at_the_timeout() -> None:
    grid = _growing()
    assert len(wait_for_nodes(grid, 9, 20, clock=grid.clock)) == 5
    assert grid.clock.now() == 20


def test_without_an_expectation_one_node_is_enough() -> None:
    grid = _growing()
    assert wait_for_nodes(grid, 0, clock=grid.clock) == (2,)


def test_no_node_at_all_fails_with_a_remedy() -> None:
    grid = _growing()
    with pytest.raises(RoundFailedError, match="no device registered within 5 s; check that SuperNodes"):
        wait_for_nodes(grid, 1, 5, clock=Clock(now=grid.clock.now, sleep=_Stopped(grid)))


class _Stopped:
    """Lets time pass without a node ever registering."""

    def __init__(self, grid: _Growing) -> None:
        self._grid = grid

    def __call__(self, seconds: float) -> None:
        self._grid.clock.sleep(seconds)
        self._grid.get_node_ids = lambda: range(0)


def _named(*names: str) -> tuple[DeviceHello, ...]:
    return tuple(DeviceHello(9 - k, "arm", 0, "", 10, False, name=name) for k, name in enumerate(names))


def test_the_order_of_named_devices_outlives_their_nodes() -> None:
    devices = with_unique_names(_named("gate-2", "", "gate-1"))
    assert [device.key for device in devices] == ["8", "gate-1", "gate-2"]
    assert with_unique_names(devices[::-1]) == devices


def test_a_name_that_several_claim_is_nobodys() -> None:
    devices = with_unique_names(_named("a", "b", "a"))
    assert [(device.name, device.node_id) for device in devices] == [("", 7), ("", 9), ("b", 8)]


def test_the_number_of_another_node_is_no_name() -> None:
    liar, other, own = _named("8", "", "7")
    devices = with_unique_names((liar, other, own))
    assert {device.node_id: device.name for device in devices} == {9: "", 8: "", 7: "7"}
    assert len({device.key for device in devices}) == 3
