import threading

import pytest

from client.recent_samples import RecentSamples
from quantization.errors import NotFoundError


def test_what_was_said_is_remembered_once() -> None:
    recent: RecentSamples[str] = RecentSamples(8)
    first = recent.add([3, 1], "old")
    assert recent.add([2], "new") == first + 2
    assert recent.take(first + 1) == (1, "old")
    assert recent.take(first + 2) == (2, "new")
    for number in (first + 1, first - 1, first + 3, 0):
        with pytest.raises(NotFoundError):
            recent.take(number)


def test_the_oldest_are_forgotten() -> None:
    recent: RecentSamples[str] = RecentSamples(4)
    first = recent.add([0, 1, 2, 3], "a")
    second = recent.add([4], "a")
    with pytest.raises(NotFoundError):
        recent.take(first)
    assert [recent.take(number)[0] for number in range(first + 1, second + 1)] == [1, 2, 3, 4]


def test_of_a_batch_beyond_the_memory_the_last_are_remembered() -> None:
    recent: RecentSamples[str] = RecentSamples(2)
    first = recent.add([0, 1, 2, 3, 4], "a")
    assert recent.take(first + 4) == (4, "a")
    with pytest.raises(NotFoundError):
        recent.take(first + 2)


def test_numbers_are_not_those_of_another_process() -> None:
    assert RecentSamples[str](1).add([0], "a") != RecentSamples[str](1).add([0], "a")


def test_answers_that_are_no_classes_take_numbers_and_no_memory() -> None:
    recent: RecentSamples[str] = RecentSamples(4)
    first = recent.skip(3)
    assert recent.add([1], "a") == first + 3
    with pytest.raises(NotFoundError):
        recent.take(first)


def test_threads_get_numbers_of_their_own() -> None:
    recent: RecentSamples[int] = RecentSamples(10_000)
    taken: list[tuple[int, int]] = []

    def work(source: int) -> None:
        taken.extend((recent.add([source], source), source) for _ in range(500))

    threads = [threading.Thread(target=work, args=(source,)) for source in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({number for number, _ in taken}) == 2000
    assert all(recent.take(number) == (source, source) for number, source in taken)
