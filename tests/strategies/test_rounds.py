from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from statistics_strategies import app_that

from quantization.errors import ConfigurationError, IncompatibleStatsError, MalformedError, RoundFailedError
from simulation.grid import Crash, Dropout, Fault, InProcessGrid, Straggler
from strategies.rounds import (
    DEFAULT_SETTINGS,
    RoundOutcome,
    RoundProgress,
    RoundSettings,
    messages_to,
    run_round,
)


def _grid(nodes: int, fault: Callable[[int, Message], Fault | None] | None = None) -> InProcessGrid:
    app = app_that("number", lambda position, _: RecordDict({"n": ConfigRecord({"n": position})}))
    return InProcessGrid(app, nodes, fault=fault)


def _add(total: int, reply: Message) -> int:
    return total + int(reply.content["n"]["n"])


def _run(
    grid: InProcessGrid, settings: RoundSettings = DEFAULT_SETTINGS, fold: object = _add
) -> RoundOutcome[int]:
    messages = messages_to(grid.get_node_ids(), RecordDict(), "query.number")
    return run_round(grid, messages, fold, 0, settings, clock=grid.clock)


def test_all_replies_are_folded() -> None:
    outcome = _run(_grid(1000))
    assert (outcome.value, outcome.asked, outcome.replied, outcome.late) == (499_500, 1000, 1000, 0)
    assert outcome.reply_bytes > 1000
    assert outcome.seconds == 0


def test_late_devices_are_dropped_and_counted() -> None:
    outcome = _run(
        _grid(10, lambda position, _: Straggler(60) if position >= 8 else None), RoundSettings(0.5, 30)
    )
    assert (outcome.value, outcome.replied, outcome.late) == (28, 8, 2)
    assert outcome.seconds >= 30


def test_a_straggler_within_the_deadline_is_waited_for() -> None:
    outcome = _run(
        _grid(10, lambda position, _: Straggler(20) if position == 9 else None), RoundSettings(0.5, 30)
    )
    assert (outcome.value, outcome.late) == (45, 0)
    assert 20 <= outcome.seconds < 21


def test_devices_that_never_answer_are_late() -> None:
    outcome = _run(_grid(4, lambda position, _: Dropout() if position == 0 else None))
    assert (outcome.replied, outcome.late) == (3, 1)


def test_errors_are_counted_by_code() -> None:
    faults = {0: Crash(8), 1: Crash(8), 2: Crash(5), 3: Crash(77)}
    outcome = _run(_grid(20, lambda position, _: faults.get(position)))
    assert outcome.failed == {"app_crashed": 2, "node_unavailable": 1, "unknown_error": 1}
    assert outcome.replied == 16


def test_a_malformed_reply_is_named_and_leaves_no_trace() -> None:
    def fold(total: int, reply: Message) -> int:
        n = int(reply.content["n"]["n"])
        if n == 3:
            raise MalformedError("three is no number")
        if n == 4:
            raise IncompatibleStatsError("four does not add")
        return total + n

    outcome = _run(_grid(6), fold=fold)
    assert outcome.value == 0 + 1 + 2 + 5
    assert outcome.failed == {"malformed": 2}
    assert [(f.reason, f.detail) for f in outcome.failures] == [
        ("malformed", "three is no number"),
        ("malformed", "four does not add"),
    ]


def test_a_bug_in_the_fold_is_not_hidden() -> None:
    def fold(_total: int, _reply: Message) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _run(_grid(2), fold=fold)


def test_below_the_quorum_the_round_fails_and_says_what_it_saw() -> None:
    def fault(position: int, _: Message) -> Fault | None:
        return {0: None, 1: Crash(8), 2: Crash(8), 3: Dropout()}[position]

    expected = (
        r"1 of 4 devices replied, 2 are needed: 2 app_crashed, 1 without an answer after 600 s;"
        r" the first was node 3: simulated fault"
    )
    with pytest.raises(RoundFailedError, match=expected):
        _run(_grid(4, fault))


def test_every_device_failing_fails_the_round() -> None:
    with pytest.raises(
        RoundFailedError, match="0 of 3 devices replied, 2 are needed: 3 app_raised_exception"
    ):
        run_round(
            grid := _grid(3),
            messages_to(grid.get_node_ids(), RecordDict(), "query.unknown"),
            _add,
            0,
            clock=grid.clock,
        )


def test_asking_nobody_fails_the_round() -> None:
    with pytest.raises(RoundFailedError, match="0 of 0"):
        run_round(grid := _grid(1), [], _add, 0, clock=grid.clock)


@pytest.mark.parametrize(
    ("fraction", "asked", "quorum"), [(0.5, 10, 5), (0.5, 11, 6), (0.01, 5, 1), (1, 7, 7)]
)
def test_the_quorum_is_rounded_up(fraction: float, asked: int, quorum: int) -> None:
    assert RoundSettings(fraction).quorum(asked) == quorum


@pytest.mark.parametrize(
    "changes",
    [
        {"quorum_fraction": 0},
        {"quorum_fraction": 1.1},
        {"quorum_fraction": float("nan")},
        {"deadline_seconds": 0},
        {"poll_seconds": 0},
        {"pull_batch": 0},
        {"push_batch": 0},
    ],
)
def test_settings_under_which_no_round_works_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        RoundSettings(**changes)


class _Altered(InProcessGrid):
    """A grid whose replies, or whose sending, go wrong."""

    def __init__(
        self, grid_of: InProcessGrid, alter: Callable[[Message], list[Message]], lost: int = 0
    ) -> None:
        super().__init__(grid_of._app, len(grid_of.get_node_ids()))
        self._alter, self._lost = alter, lost

    def push_messages(self, messages: object) -> list[str | None]:
        ids = super().push_messages(messages)
        return [None] * self._lost + ids[self._lost :]

    def pull_messages(self, message_ids: object) -> list[Message]:
        return [out for reply in super().pull_messages(message_ids) for out in self._alter(reply)]


def test_a_reply_that_comes_twice_is_folded_once() -> None:
    outcome = _run(_Altered(_grid(4), lambda reply: [reply, reply]))
    assert (outcome.value, outcome.replied) == (6, 4)


def test_a_reply_in_another_nodes_name_is_refused() -> None:
    def forge(reply: Message) -> list[Message]:
        if reply.metadata.src_node_id == 3:
            reply.metadata.__dict__["_src_node_id"] = 4
        return [reply]

    outcome = _run(_Altered(_grid(4), forge))
    assert (outcome.replied, outcome.failed) == (3, {"malformed": 1})


def test_messages_that_could_not_be_sent_are_counted() -> None:
    outcome = _run(_Altered(_grid(4), lambda reply: [reply], lost=2))
    assert (outcome.replied, outcome.failed) == (2, {"not_sent": 2})


def test_an_error_without_a_reason_is_counted() -> None:
    def break_it(reply: Message) -> list[Message]:
        reply.__dict__.update(_content=None, _error=Error(4))
        return [reply]

    with pytest.raises(
        RoundFailedError, match="4 reply_unavailable; the first was node 2: reply_unavailable"
    ):
        _run(_Altered(_grid(4), break_it))


def test_progress_is_told_after_every_batch() -> None:
    told: list[RoundProgress] = []
    grid = _grid(10, lambda position, _: Crash() if position == 9 else None)
    messages = messages_to(grid.get_node_ids(), RecordDict(), "query.number")
    run_round(grid, messages, _add, 0, RoundSettings(pull_batch=4), clock=grid.clock, on_progress=told.append)
    assert [(p.asked, p.replied, p.failed) for p in told] == [(10, 4, 0), (10, 8, 0), (10, 9, 1)]


def test_ten_thousand_messages_share_one_content() -> None:
    content = RecordDict()
    assert {id(message.content) for message in messages_to(range(2, 50), content, "query.number")} == {
        id(content)
    }
