"""One round of questions to a cohort, whose replies are folded as they arrive.

The rules:

1. Server memory does not grow with the cohort's replies: each is folded into one state and dropped, and at
   most `pull_batch` replies are held at once.
2. A round ends when every device has answered, or at the deadline. It succeeds when at least the quorum was
   folded.
3. No single reply can end a round: errors are counted by code, malformed replies are counted and named,
   replies that come twice are folded once, and devices that do not answer in time are counted as late.
4. `fold` changes its state only after the whole reply was found well formed, so a refused reply leaves no
   trace.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from quantization.errors import ConfigurationError, IncompatibleStatsError, MalformedError, RoundFailedError
from strategies.messages import Delivery
from strategies.wire import content_size_bytes

_log = logging.getLogger(__name__)

State = TypeVar("State")
Value = TypeVar("Value")

MALFORMED = "malformed"
NOT_SENT = "not_sent"
LATE = "late"
MAX_NAMED_FAILURES = 20
"""How many failures an outcome names one by one; all of them are counted."""

_ERROR_NAMES = MappingProxyType(
    {
        0: "unknown_error",
        1: "app_did_not_load",
        2: "app_raised_exception",
        3: "message_unavailable",
        4: "reply_unavailable",
        5: "node_unavailable",
        6: "mod_failed",
        7: "invalid_bundle",
        8: "app_crashed",
    }
)


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from, and how to wait: the system's, or a simulation's.

    Attributes:
        now: Seconds since some fixed instant; never goes back.
        sleep: Waits that many seconds.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


SYSTEM_CLOCK = Clock()


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """When a round is over, and how replies are fetched.

    Attributes:
        quorum_fraction: Least part of the cohort whose replies must be folded, in (0, 1]; at least one
            device.
        deadline_seconds: Longest that the round waits; what has not come by then is late.
        poll_seconds: Pause between two looks when nothing has come.
        push_batch: Messages handed to the grid at once.
        pull_batch: Replies asked for, and so held in memory, at once.
    """

    quorum_fraction: float = 0.5
    deadline_seconds: float = 600.0
    poll_seconds: float = 0.5
    push_batch: int = 256
    pull_batch: int = 64

    def __post_init__(self) -> None:
        """Refuse settings under which no round could work."""
        if not 0 < self.quorum_fraction <= 1:
            raise ConfigurationError(f"quorum fraction {self.quorum_fraction} is not in (0, 1]")
        if not (self.deadline_seconds > 0 and self.poll_seconds > 0):
            raise ConfigurationError(
                f"deadline {self.deadline_seconds} s and poll {self.poll_seconds} s must be positive"
            )
        if self.push_batch < 1 or self.pull_batch < 1:
            raise ConfigurationError(f"batches {self.push_batch}, {self.pull_batch} must be at least 1")

    def quorum(self, asked: int) -> int:
        """Return how many of `asked` devices must have been folded."""
        return max(1, math.ceil(self.quorum_fraction * asked - 1e-9))


DEFAULT_SETTINGS = RoundSettings()


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """One device whose reply was not folded, and why."""

    node_id: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class RoundProgress:
    """Where a running round stands; handed to `on_progress` after every batch of replies."""

    asked: int
    replied: int
    failed: int
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class RoundOutcome(Generic[Value]):
    """What a round brought.

    Attributes:
        value: The folded state.
        asked: Devices asked.
        replied: Devices whose reply was folded.
        failed: Number of devices by reason: an error's name, "malformed" or "not_sent".
        late: Devices that had not answered at the deadline.
        seconds: How long the round took.
        reply_bytes: Content of all folded replies together.
        failures: The first 20 failures, by name.
    """

    value: Value
    asked: int
    replied: int
    failed: Mapping[str, int]
    late: int
    seconds: float
    reply_bytes: int
    failures: tuple[NodeFailure, ...] = ()

    def with_value(self, value: State) -> "RoundOutcome[State]":
        """Return the same outcome around another value."""
        return RoundOutcome(
            value,
            self.asked,
            self.replied,
            self.failed,
            self.late,
            self.seconds,
            self.reply_bytes,
            self.failures,
        )


@dataclass(frozen=True, slots=True)
class RoundEnd:
    """How a round ended, whether or not the quorum was met; a few numbers, handed to `on_end`.

    Attributes:
        name: Of the round, one of a few fixed words such as "moments".
        asked: Devices asked.
        replied: Devices whose reply was folded.
        failed: Number of devices by reason; `LATE` counts those that had not answered at the deadline.
        reply_bytes: Content of all folded replies together.
        seconds: How long the round took.
    """

    name: str
    asked: int
    replied: int
    failed: Mapping[str, int]
    reply_bytes: int
    seconds: float


ProgressFunction = Callable[[RoundProgress], None]

EndFunction = Callable[[RoundEnd], None]

DeliverFunction = Callable[[str], Delivery]
"""The digest of the manifest that a device holds, to what it needs to have the current artifact."""


@dataclass(frozen=True, slots=True)
class RoundContext:
    """Where a round runs: what all rounds need besides their question.

    Attributes:
        grid: Flower's way to the devices.
        settings: Quorum, deadline and batch sizes.
        deliver: What a device needs of the artifact, by the manifest that it holds; called once per manifest. None:
            the request's artifact goes to all.
        clock: Time that the deadline is measured in.
        on_progress: Called after every batch of replies.
        on_end: Told how each round ended.
    """

    grid: Grid
    settings: RoundSettings = DEFAULT_SETTINGS
    deliver: DeliverFunction | None = None
    clock: Clock = SYSTEM_CLOCK
    on_progress: ProgressFunction | None = None
    on_end: EndFunction | None = None

    def artifact_for(self, manifest_digest: str, artifact: Delivery) -> Delivery:
        """Return what a device that holds this manifest is sent in the place of `artifact`."""
        return artifact if self.deliver is None else self.deliver(manifest_digest)

    def run(
        self, name: str, messages: Iterable[Message], fold: Callable[[State, Message], State], initial: State
    ) -> "RoundOutcome[State]":
        """Return the outcome of `run_round` here; `name` is the round's."""
        return run_round(
            self.grid,
            messages,
            fold,
            initial,
            self.settings,
            name=name,
            clock=self.clock,
            on_progress=self.on_progress,
            on_end=self.on_end,
        )


def messages_to(
    node_ids: Iterable[int], content: RecordDict, message_type: str, group_id: str = ""
) -> Iterator[Message]:
    """Yield one message per node, all with the same `content`, so that 10,000 hold it once."""
    for node_id in node_ids:
        yield Message(content, dst_node_id=node_id, message_type=message_type, group_id=group_id)


def run_round(
    grid: Grid,
    messages: Iterable[Message],
    fold: Callable[[State, Message], State],
    initial: State,
    settings: RoundSettings = DEFAULT_SETTINGS,
    *,
    name: str = "",
    clock: Clock = SYSTEM_CLOCK,
    on_progress: ProgressFunction | None = None,
    on_end: EndFunction | None = None,
) -> RoundOutcome[State]:
    """Return the outcome of asking each device and folding what it answers.

    Args:
        grid: Flower's way to the devices.
        messages: One message per device; taken lazily, `push_batch` at a time.
        fold: Returns the state with one reply added; raises MalformedError or IncompatibleStatsError for a
            reply it refuses, leaving the state as it was. Its result must not depend on the order of replies.
        initial: The state before the first reply.
        settings: Quorum, deadline and batch sizes.
        name: Of the round, for `on_end`.
        clock: Time that the deadline is measured in.
        on_progress: Called after every batch of replies.
        on_end: Told how the round ended, also if the quorum was not met.

    Raises:
        RoundFailedError: If fewer devices than the quorum were folded by the deadline.
    """
    round_ = _Round(grid, fold, initial, settings, clock)
    round_.push(messages)
    while round_.awaited and not round_.is_overdue():
        if not round_.sweep(on_progress):
            clock.sleep(min(settings.poll_seconds, settings.deadline_seconds))
    if on_end is not None:
        on_end(round_.end(name))
    return round_.outcome()


@dataclass(slots=True)
class _Round(Generic[State]):
    """A round under way: who is still awaited, and what was folded so far."""

    grid: Grid
    fold: Callable[[State, Message], State]
    state: State
    settings: RoundSettings
    clock: Clock
    awaited: dict[str, int] = field(default_factory=dict)  # message id -> node id
    asked: int = 0
    replied: int = 0
    reply_bytes: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[NodeFailure] = field(default_factory=list)
    started_at: float = 0.0

    def __post_init__(self) -> None:
        self.started_at = self.clock.now()

    def elapsed_seconds(self) -> float:
        return self.clock.now() - self.started_at

    def is_overdue(self) -> bool:
        return self.elapsed_seconds() >= self.settings.deadline_seconds

    def push(self, messages: Iterable[Message]) -> None:
        for batch in _batches(messages, self.settings.push_batch):
            node_ids = [message.metadata.dst_node_id for message in batch]
            self.asked += len(batch)
            # A list, because a grid walks it more than once. A message that it could not send has no id.
            sent: list[str | None] = list(self.grid.push_messages(list(batch)))
            sent += [None] * (len(batch) - len(sent))
            for node_id, message_id in zip(node_ids, sent, strict=True):
                if message_id:
                    self.awaited[message_id] = node_id
                else:
                    self.fail(node_id, NOT_SENT, "the grid could not send the message")

    def sweep(self, on_progress: ProgressFunction | None) -> bool:
        """Look once for every awaited reply; return whether any came."""
        has_news = False
        for batch in _batches(tuple(self.awaited), self.settings.pull_batch):
            before = len(self.awaited)
            for reply in self.grid.pull_messages(batch):
                self.receive(reply)
            if len(self.awaited) != before:
                has_news = True
                if on_progress is not None:
                    failed = self.failed.total()
                    on_progress(RoundProgress(self.asked, self.replied, failed, self.elapsed_seconds()))
            if self.is_overdue():
                break
        return has_news

    def receive(self, reply: Message) -> None:
        node_id = self.awaited.pop(reply.metadata.reply_to_message_id, None)
        if node_id is None:  # came twice, or answers something else
            return
        if reply.has_error():
            detail = (reply.error.reason or "").strip().splitlines()
            self.fail(
                node_id, _ERROR_NAMES.get(reply.error.code, "unknown_error"), detail[-1] if detail else ""
            )
            return
        if reply.metadata.src_node_id != node_id:
            self.fail(node_id, MALFORMED, f"the reply says it is from node {reply.metadata.src_node_id}")
            return
        try:
            self.state = self.fold(self.state, reply)
        except (MalformedError, IncompatibleStatsError) as error:
            self.fail(node_id, MALFORMED, str(error))
            return
        self.replied += 1
        self.reply_bytes += content_size_bytes(reply.content)

    def fail(self, node_id: int, reason: str, detail: str) -> None:
        self.failed[reason] += 1
        if len(self.failures) < MAX_NAMED_FAILURES:
            self.failures.append(NodeFailure(node_id, reason, detail[:500]))
            _log.warning("node %d was left out of the round (%s): %s", node_id, reason, detail[:500])

    def end(self, name: str) -> RoundEnd:
        failed = dict(self.failed) | ({LATE: len(self.awaited)} if self.awaited else {})
        seconds = self.elapsed_seconds()
        return RoundEnd(name, self.asked, self.replied, failed, self.reply_bytes, seconds)

    def outcome(self) -> RoundOutcome[State]:
        quorum = self.settings.quorum(self.asked)
        if self.replied < quorum:
            raise RoundFailedError(self.explain_failure(quorum))
        return RoundOutcome(
            self.state,
            self.asked,
            self.replied,
            MappingProxyType(dict(self.failed)),
            len(self.awaited),
            self.elapsed_seconds(),
            self.reply_bytes,
            tuple(self.failures),
        )

    def explain_failure(self, quorum: int) -> str:
        seen = [f"{count} {reason}" for reason, count in sorted(self.failed.items())]
        if self.awaited:
            seen.append(f"{len(self.awaited)} without an answer after {self.settings.deadline_seconds:g} s")
        text = f"{self.replied} of {self.asked} devices replied, {quorum} are needed"
        if seen:
            text += ": " + ", ".join(seen)
        if self.failures:
            first = self.failures[0]
            text += f"; the first was node {first.node_id}: {first.detail or first.reason}"
        return text


def _batches(items: Iterable[Value], size: int) -> Iterator[Sequence[Value]]:
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch
