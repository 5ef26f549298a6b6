"""An in-process grid that keeps count of what a generation costs and of who took part."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message

from simulation.grid import InProcessGrid
from strategies.records import CALIBRATE, PHASE_RANGES, read_phase
from strategies.wire import content_size_bytes

_FIRST_NODE_ID = 2


@dataclass(slots=True)
class Traffic:
    """What passed between server and devices since the last reset.

    Attributes:
        asked: Messages sent.
        answered: Replies without an error.
        errors: Error replies by Flower's code.
        reply_bytes: Content of all replies.
        observed: Positions of devices that answered about ranges.
        about_ranges: Ids of the messages that asked for ranges.
    """

    asked: int = 0
    answered: int = 0
    errors: Counter[int] = field(default_factory=Counter)
    reply_bytes: int = 0
    observed: set[int] = field(default_factory=set)
    about_ranges: set[str] = field(default_factory=set)

    def dropped(self) -> dict[str, int]:
        """Return messages that brought no reply, by reason."""
        silent = self.asked - self.answered - self.errors.total()
        found = {"failed": self.errors.total(), "late or silent": silent}
        return {reason: count for reason, count in found.items() if count}


class MeasuredGrid(InProcessGrid):
    """See the module; `traffic` may be replaced at any time to start anew."""

    traffic: Traffic

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Count the messages, and note which ask for ranges."""
        batch = list(messages)
        ids = super().push_messages(batch)
        self.traffic.asked += len(ids)
        for id_, message in zip(ids, batch, strict=True):
            is_calibration = message.metadata.message_type == CALIBRATE
            if is_calibration and read_phase(message.content) == PHASE_RANGES:
                self.traffic.about_ranges.add(id_)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Count the replies."""
        for reply in super().pull_messages(message_ids):
            if reply.has_error():
                self.traffic.errors[reply.error.code] += 1
            else:
                self.traffic.answered += 1
                self.traffic.reply_bytes += content_size_bytes(reply.content)
                if reply.metadata.reply_to_message_id in self.traffic.about_ranges:
                    self.traffic.observed.add(reply.metadata.src_node_id - _FIRST_NODE_ID)
            yield reply
