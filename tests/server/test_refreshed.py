"""Tests of a value that is read again when it is old."""

import threading
from collections.abc import Callable

from server.refreshed import Refreshed


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refreshed(read: Callable[[], int], clock: Clock, wait_seconds: float = 10.0) -> Refreshed[int]:
    return Refreshed("numbers", read, -1, max_age_seconds=5.0, wait_seconds=wait_seconds, clock=clock)


def test_a_value_is_read_once_until_it_is_old() -> None:
    clock, reads = Clock(), iter(range(10))
    value = refreshed(lambda: next(reads), clock)
    assert [value.get(), value.get()] == [0, 0]
    clock.now = 4.9
    assert value.get() == 0
    clock.now = 5.0
    assert value.get() == 1
    assert value.is_fresh
    assert value.age_seconds == 0.0


def test_a_read_that_fails_leaves_the_last_value_and_is_tried_again() -> None:
    clock, answers = Clock(), iter([1, ValueError("away"), 2])

    def read() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    value = refreshed(read, clock)
    assert value.get() == 1
    clock.now = 5.0
    assert value.get() == 1
    assert not value.is_fresh
    assert value.age_seconds == 5.0
    clock.now = 10.0
    assert value.get() == 2
    assert value.is_fresh


def test_nothing_was_read_before_the_first_answer() -> None:
    def read() -> int:
        raise OSError("away")

    value = refreshed(read, Clock())
    assert value.get() == -1
    assert value.age_seconds is None
    assert not value.is_fresh


def test_a_read_that_hangs_costs_one_thread_and_little_time() -> None:
    clock, gate, reads = Clock(), threading.Event(), []

    def read() -> int:
        reads.append(threading.current_thread())
        if len(reads) == 2:
            gate.wait(60)
        return len(reads)

    value = refreshed(read, clock, wait_seconds=10.0)
    assert value.get() == 1
    clock.now = 5.0
    value._wait_seconds = 0.0  # whoever asks now does not wait at all
    assert [value.get() for _ in range(5)] == [1] * 5
    clock.now = 50.0
    assert value.get() == 1
    assert len(reads) == 2
    assert not value.is_fresh
    gate.set()
    reads[1].join(60)
    assert value.is_fresh
    assert value.age_seconds == 0.0
