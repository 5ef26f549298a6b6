from collections import Counter

import pytest
from flwr.app import Message, RecordDict

from simulation.faults import LATE_SECONDS, random_faults
from simulation.grid import Crash, Dropout, Fault, InProcessGrid, Straggler
from strategies.records import CALIBRATE, HELLO
from strategies.rounds import DEFAULT_SETTINGS

DRAWS = 4000


@pytest.fixture(autouse=True)
def _identity() -> None:
    InProcessGrid(lambda message, _: message, 1)  # messages cannot be made without the identity it sets


def message(kind: str) -> Message:
    return Message(RecordDict(), dst_node_id=2, message_type=kind)


def draws(dropout: float, stragglers: float, seed: int = 0, kind: str = CALIBRATE) -> list[Fault | None]:
    fault = random_faults(dropout, stragglers, seed)
    assert fault is not None
    asked = message(kind)
    return [fault(position, asked) for position in range(DRAWS)]


def test_a_healthy_fleet_has_no_faults() -> None:
    assert random_faults(0, 0, 0) is None


def test_faults_are_as_frequent_as_asked_and_of_every_kind() -> None:
    found = Counter(type(fault) for fault in draws(0.2, 0.3))
    for kind, share in ((Crash, 0.1), (Dropout, 0.1), (Straggler, 0.3), (type(None), 0.5)):
        assert found[kind] / DRAWS == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("dropout", "stragglers"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_nobody_is_spared_when_all_are_to_fail(dropout: float, stragglers: float) -> None:
    assert None not in draws(dropout, stragglers)


def test_hello_is_spared() -> None:
    assert set(draws(1.0, 0.0, kind=HELLO)) == {None}


def test_a_straggler_comes_after_the_deadline() -> None:
    assert DEFAULT_SETTINGS.deadline_seconds < LATE_SECONDS


def test_faults_follow_the_seed() -> None:
    assert draws(0.2, 0.2) == draws(0.2, 0.2)
    assert draws(0.2, 0.2) != draws(0.2, 0.2, seed=1)
