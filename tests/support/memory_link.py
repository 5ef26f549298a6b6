"""A whole server in memory, as an agent's connection sees it: targets, blobs, announcements and telemetry."""

import queue
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from memory_updates import MemoryUpdates

from client.slots import Target
from client.transport import Offer
from protos.quantfleet.v1.telemetry_pb2 import TelemetryReport
from quantization.artifact import Artifact
from quantization.errors import MalformedError, UnreachableError


class Stored(NamedTuple):
    stored_sequence: int
    retry_after_seconds: float = 0.0


class MemoryWatch:
    """Announcements until they are cancelled."""

    def __init__(self) -> None:
        self.offers: queue.SimpleQueue[Offer | None] = queue.SimpleQueue()
        self.is_connected = True

    def __iter__(self) -> Iterator[Offer]:
        return iter(self.offers.get, None)

    def cancel(self) -> None:
        self.is_connected = False
        self.offers.put(None)


class MemoryLink(MemoryUpdates):
    """An update service in memory that also announces and takes reports.

    Attributes:
        reports: That were stored, in order.
        stored_sequence: Of the last of them.
        refuses: Whether it refuses reports with this many failures.
    """

    def __init__(self, **options: int) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.reports: list[TelemetryReport] = []
        self.stored_sequence = 0
        self.refuses: int | None = None
        self.watches: list[MemoryWatch] = []
        self.is_closed = False

    def publish(self, artifact: Artifact, version: int) -> Target:
        target = super().publish(artifact, version)
        for watch in self.watches:
            watch.offers.put(Offer(target))
        return target

    def watch(
        self,
        device_class: str,  # noqa: ARG002
        model_digest: str,  # noqa: ARG002
        serving: Callable[[], Target | None],  # noqa: ARG002
    ) -> MemoryWatch:
        watch = MemoryWatch()
        self.watches.append(watch)  # before the look: what is published in between comes twice, not never
        if self.target is not None:
            watch.offers.put(Offer(self.target))
        return watch

    def report(self, reports: Sequence[TelemetryReport]) -> Stored:
        self._reach()
        if any(report.counts.failures == self.refuses for report in reports):
            raise MalformedError("such reports are refused")
        for report in reports:
            if report.sequence > self.stored_sequence:
                self.reports.append(TelemetryReport.FromString(report.SerializeToString()))
                self.stored_sequence = report.sequence
        return Stored(self.stored_sequence)

    def close(self) -> None:
        self.is_closed = True
        for watch in self.watches:
            watch.cancel()

    def _reach(self) -> None:
        if self.is_closed:
            raise UnreachableError("the connection is closed")
        super()._reach()
