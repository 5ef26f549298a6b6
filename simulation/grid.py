"""Flower's grid in this process: the same ServerApp and ClientApp, without a SuperLink.

Messages are handed over by reference and a ClientApp runs only when its reply is pulled, so that memory does
not grow with the number of devices. What a fleet does wrong is part of it: a `FaultFunction` makes devices
drop out, answer late, or crash. Lateness is *simulated*: it is measured on the grid's own clock, which runs
only when somebody sleeps on it, and a device that is late beyond the round's deadline costs no time at all.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from quantization.errors import ConfigurationError
from strategies.rounds import Clock

_SERVER_NODE_ID = 1
FIRST_NODE_ID = 2
_APP_RAISED_EXCEPTION = 2


@dataclass(frozen=True, slots=True)
class Dropout:
    """The device never answers this message."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """The device answers so many simulated seconds late."""

    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Crash:
    """The device answers with one of Flower's error codes; 8 is a ClientApp that died."""

    code: int = 8


Fault = Dropout | Straggler | Crash
FaultFunction = Callable[[int, Message], Fault | None]
"""A node's position in the fleet, from 0, and the message it gets, to what goes wrong with it."""


AppFunction = Callable[[Message, Context], Message]
"""What a node runs: a ClientApp, or something around one."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A message that a device has not answered yet."""

    node_id: int
    content: RecordDict
    message_type: str
    group_id: str
    due_at: float
    error_code: int | None


class InProcessGrid(Grid):
    """A fleet of nodes that run one ClientApp in this process.

    Sets Flower's process-wide task identity, which messages cannot be made without.

    Attributes:
        clock: The simulated time; hand it to the rounds.
    """

    def __init__(
        self,
        client_app: AppFunction,
        nodes: int,
        *,
        run_config: UserConfig | None = None,
        node_config: Callable[[int], UserConfig] | None = None,
        fault: FaultFunction | None = None,
        workers: int = 1,
        run_id: int = 1,
    ) -> None:
        """Make a grid; nothing runs yet.

        Args:
            client_app: What every node runs, as a rule a ClientApp.
            nodes: How many there are.
            run_config: Of the run, as ClientApps see it.
            node_config: More settings of one node, by its position; "partition-id" and "num-partitions" are
                always set, as in Flower's own simulation.
            fault: What goes wrong; None for nothing.
            workers: Threads that run ClientApps; replies come in the order of the messages all the same.
            run_id: Of the run.

        Raises:
            ConfigurationError: If there are no nodes or no workers.
        """
        if nodes < 1 or workers < 1:
            raise ConfigurationError(
                f"a grid of {nodes} nodes and {workers} workers; at least 1 of each is needed"
            )
        self._app = client_app
        self._nodes = nodes
        self._run_config = dict(run_config or {})
        self._node_config = node_config
        self._fault = fault
        self._workers = workers
        self._run = Run.create_empty(run_id)
        self._waiting: dict[str, _Waiting] = {}
        self._states: dict[int, RecordDict] = {}
        self._ids = count(1)
        self._now = 0.0
        self.clock = Clock(now=lambda: self._now, sleep=self._advance)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, _SERVER_NODE_ID, 1

    def set_run(self, run: Run) -> None:
        """Set the run that this grid belongs to."""
        self._run = run
        TaskIdentity.run_id = run.run_id

    @property
    def run(self) -> Run:
        """Run information."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> range:
        """Return the ids of all nodes, ascending."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages, whose nodes will answer when their replies are pulled; return their ids."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies that are due by now, each computed when it is asked for."""
        due = (id_ for id_ in message_ids if id_ in self._waiting and self._waiting[id_].due_at <= self._now)
        if self._workers == 1:
            for id_ in due:
                yield self._answer(id_, self._waiting.pop(id_))
        else:
            yield from self._answer_in_threads(due)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and return the replies that come within the timeout, in simulated seconds.

        Without a timeout it waits for all but those that never come.
        """
        ids = self.push_messages(messages)
        coming = [self._waiting[id_].due_at for id_ in ids if id_ in self._waiting]
        wait = max(coming, default=self._now) - self._now
        self._advance(max(0.0, wait if timeout is None else min(wait, timeout)))
        return list(self.pull_messages(ids))

    def _advance(self, seconds: float) -> None:
        self._now += seconds

    def _push(self, message: Message) -> str:
        metadata = message.metadata
        id_ = f"{next(self._ids):x}"
        fault = None if self._fault is None else self._fault(metadata.dst_node_id - FIRST_NODE_ID, message)
        if isinstance(fault, Dropout):
            return id_
        delay = fault.delay_seconds if isinstance(fault, Straggler) else 0.0
        self._waiting[id_] = _Waiting(
            metadata.dst_node_id,
            message.content,
            metadata.message_type,
            metadata.group_id,
            self._now + delay,
            fault.code if isinstance(fault, Crash) else None,
        )
        return id_

    def _answer_in_threads(self, due: Iterator[str]) -> Iterator[Message]:
        """Yield replies in order, with at most two messages per worker under way."""
        ahead: deque[Future[Message]] = deque()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="quantfleet-node") as pool:
            for id_ in due:
                ahead.append(pool.submit(self._answer, id_, self._waiting.pop(id_)))
                if len(ahead) >= 2 * self._workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _answer(self, id_: str, waiting: _Waiting) -> Message:
        """Return what the node replies; an exception becomes an error reply, as on a SuperLink."""
        request = Message(
            waiting.content, waiting.node_id, waiting.message_type, group_id=waiting.group_id or None
        )
        request.metadata.__dict__["_message_id"] = id_
        if waiting.error_code is not None:
            return Message(Error(waiting.error_code, "simulated fault"), reply_to=request)
        context = self._context(waiting.node_id)
        try:
            reply = self._app(request, context)
        except Exception as error:  # noqa: BLE001 - whatever an app raises must not end the round
            return Message(Error(_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}"), reply_to=request)
        if len(context.state):
            self._states[waiting.node_id] = context.state
        return reply

    def _context(self, node_id: int) -> Context:
        position = node_id - FIRST_NODE_ID
        config: dict[str, str | int | float | bool] = {
            "partition-id": position,
            "num-partitions": self._nodes,
        }
        if self._node_config is not None:
            config |= self._node_config(position)
        state = self._states.get(node_id)
        return Context(
            run_id=self._run.run_id,
            node_id=node_id,
            node_config=config,
            state=RecordDict() if state is None else state,
            run_config=self._run_config,
        )
