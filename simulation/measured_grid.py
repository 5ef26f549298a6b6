"""An in-process grid that keeps count of what a generation costs and of who took part."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from simulation.grid import FIRST_NODE_ID, InProcessGrid
from strategies.records import CALIBRATE, PHASE_MOMENTS, read_phase
from strategies.wire import content_size_bytes


@dataclass(slots=True)
class Traffic:
    """What passed between server and devices since the last reset.

    Attributes:
        reply_bytes: Content of all replies.
        failed: Positions of devices that answered with an error when asked for moments.
        observed: Positions of devices that answered, by phase of the calibration.
        asked: Positions of devices that were asked, likewise.
        phases: Which phase of a calibration a message is of, by its id.
    """

    reply_bytes: int = 0
    failed: set[int] = field(default_factory=set)
    observed: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    asked: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    phases: dict[str, str] = field(default_factory=dict)

    def dropped(self) -> dict[str, int]:
        """Return devices that were asked for moments and gave none, by reason."""
        silent = self.asked[PHASE_MOMENTS] - self.observed[PHASE_MOMENTS] - self.failed
        found = {"failed": len(self.failed), "late or silent": len(silent)}
        return {reason: count for reason, count in found.items() if count}


class MeasuredGrid(InProcessGrid):
    """See the module; `traffic` may be replaced at any time to start anew."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of `InProcessGrid`
        """Take the arguments of `InProcessGrid`."""
        super().__init__(*args, **options)
        self.traffic = Traffic()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Note who is asked for what."""
        batch = list(messages)
        ids = super().push_messages(batch)
        for id_, message in zip(ids, batch, strict=True):
            if message.metadata.message_type == CALIBRATE:
                phase = self.traffic.phases[id_] = read_phase(message.content)
                self.traffic.asked[phase].add(message.metadata.dst_node_id - FIRST_NODE_ID)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Count the replies, and note who answered."""
        for reply in super().pull_messages(message_ids):
            phase = self.traffic.phases.get(reply.metadata.reply_to_message_id)
            position = reply.metadata.src_node_id - FIRST_NODE_ID
            if not reply.has_error():
                self.traffic.reply_bytes += content_size_bytes(reply.content)
                if phase is not None:
                    self.traffic.observed[phase].add(position)
            elif phase == PHASE_MOMENTS:
                self.traffic.failed.add(position)
            yield reply
