import threading

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run

from quantization.errors import ConfigurationError
from simulation.grid import Crash, Dropout, Fault, InProcessGrid, Straggler
from strategies.rounds import messages_to

calls: list[int] = []


def _app() -> ClientApp:
    app = ClientApp()
    calls.clear()

    @app.query("who")
    def who(message: Message, context: Context) -> Message:
        position = int(context.node_config["partition-id"])
        calls.append(position)
        if position == 13:
            raise ValueError("thirteen")
        visits = int(context.state["visits"]["n"]) + 1 if "visits" in context.state else 1
        context.state["visits"] = ConfigRecord({"n": visits})
        answer = {
            "position": position,
            "nodes": context.node_config["num-partitions"],
            "visits": visits,
            "thread": threading.get_ident(),
            "colour": str(context.node_config.get("colour", "")),
            "lr": str(context.run_config.get("lr", "")),
        }
        return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)

    return app


def _ask(grid: InProcessGrid) -> list[str]:
    return grid.push_messages(list(messages_to(grid.get_node_ids(), RecordDict(), "query.who", "round 1")))


def _positions(replies: list[Message]) -> list[int]:
    return [reply.content["answer"]["position"] for reply in replies]


def test_every_node_answers_once_with_its_own_configuration() -> None:
    grid = InProcessGrid(
        _app(),
        5,
        run_config={"lr": "0.1"},
        node_config=lambda position: {"colour": "red" if position else "blue"},
    )
    ids = _ask(grid)
    replies = list(grid.pull_messages(ids))
    assert _positions(replies) == [0, 1, 2, 3, 4]
    assert [reply.content["answer"]["colour"] for reply in replies] == ["blue"] + 4 * ["red"]
    assert {reply.content["answer"]["lr"] for reply in replies} == {"0.1"}
    assert {reply.content["answer"]["nodes"] for reply in replies} == {5}
    assert list(grid.pull_messages(ids)) == []


def test_replies_belong_to_their_messages() -> None:
    grid = InProcessGrid(_app(), 3)
    ids = _ask(grid)
    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert [reply.metadata.src_node_id for reply in replies] == list(grid.get_node_ids())
    assert {reply.metadata.group_id for reply in replies} == {"round 1"}


def test_a_client_runs_only_when_its_reply_is_pulled() -> None:
    grid = InProcessGrid(_app(), 100)
    replies = grid.pull_messages(_ask(grid))
    assert calls == []
    next(replies)
    assert calls == [0]


@pytest.mark.parametrize("workers", [2, 5])
def test_threads_keep_the_order_and_run_only_a_little_ahead(workers: int) -> None:
    grid = InProcessGrid(_app(), 12, workers=workers)
    replies = grid.pull_messages(_ask(grid))
    first = next(replies)
    assert len(calls) <= 2 * workers
    rest = list(replies)
    assert _positions([first, *rest]) == list(range(12))
    assert threading.get_ident() not in {reply.content["answer"]["thread"] for reply in rest}


def test_an_exception_becomes_an_error_reply() -> None:
    grid = InProcessGrid(_app(), 14)
    reply = list(grid.pull_messages(_ask(grid)))[13]
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (2, "ValueError: thirteen")


def test_an_unknown_action_becomes_an_error_reply() -> None:
    grid = InProcessGrid(_app(), 1)
    ids = grid.push_messages(list(messages_to(grid.get_node_ids(), RecordDict(), "query.nothing")))
    assert next(grid.pull_messages(ids)).error.code == 2


def test_a_node_keeps_its_state_between_messages() -> None:
    grid = InProcessGrid(_app(), 2)
    for visit in (1, 2, 3):
        replies = list(grid.pull_messages(_ask(grid)))
        assert [reply.content["answer"]["visits"] for reply in replies] == [visit, visit]


def _fault(position: int, _: Message) -> Fault | None:
    return {0: Dropout(), 1: Straggler(10), 2: Crash(8)}.get(position)


def test_faults_happen_in_simulated_time() -> None:
    grid = InProcessGrid(_app(), 4, fault=_fault)
    ids = _ask(grid)
    crashed, healthy = grid.pull_messages(ids)
    assert (crashed.error.code, healthy.content["answer"]["position"]) == (8, 3)
    grid.clock.sleep(9)
    assert list(grid.pull_messages(ids)) == []
    grid.clock.sleep(1)
    assert _positions(list(grid.pull_messages(ids))) == [1]
    grid.clock.sleep(1e9)
    assert list(grid.pull_messages(ids)) == []
    assert calls == [3, 1]


def test_send_and_receive_waits_for_all_that_come() -> None:
    grid = InProcessGrid(_app(), 4, fault=_fault)
    messages = list(messages_to(grid.get_node_ids(), RecordDict(), "query.who"))
    assert len(grid.send_and_receive(messages)) == 3
    assert grid.clock.now() == 10


def test_send_and_receive_keeps_its_timeout() -> None:
    grid = InProcessGrid(_app(), 4, fault=_fault)
    messages = list(messages_to(grid.get_node_ids(), RecordDict(), "query.who"))
    assert len(grid.send_and_receive(messages, timeout=3)) == 2
    assert grid.clock.now() == 3


def test_behaves_as_flowers_grid() -> None:
    grid = InProcessGrid(_app(), 3)
    grid.set_run(Run.create_empty(7))
    message = grid.create_message(RecordDict(), "query.who", 2, "g", ttl=30)
    assert (grid.run.run_id, message.metadata.run_id, message.metadata.ttl) == (7, 7, 30)
    assert [node.node_id for node in grid.get_nodes()] == list(grid.get_node_ids())


@pytest.mark.parametrize(("nodes", "workers"), [(0, 1), (1, 0), (-1, 1)])
def test_an_impossible_fleet_is_refused(nodes: int, workers: int) -> None:
    with pytest.raises(ConfigurationError, match="at least 1 of each"):
        InProcessGrid(_app(), nodes, workers=workers)
