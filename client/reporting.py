"""Brings telemetry to the server: counts become reports on the disk, and wait there until the server has them.

The rules:

1. Counts are on the disk before they are sent; a process that is killed loses what it counted since the report before.
2. Reports go in order, and are removed when the server says that it has them.
3. A report that the server will never take is dropped, and logged: it must not hold up the others.
4. A device whose folder was wiped learns from the server where its numbers must go on.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from client.backoff import Backoff
from client.events import event_log
from client.garbage import used_bytes
from client.link import FleetLink
from client.process_memory import peak_rss_bytes
from client.spool import Spool, SpooledReport
from client.state import StateFolder
from client.telemetry import Telemetry
from protos.quantfleet.v1.telemetry_pb2 import MemoryUse, TelemetryReport
from quantization.artifact import Manifest
from quantization.errors import ConfigurationError, MalformedError, QuantFleetError, UnreachableError

_events = event_log("report")
_BATCH = 64
_MOST_UNSPOOLED = 64


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """When telemetry is reported.

    Attributes:
        interval_seconds: Between reports; each is drawn from half to one and a half of it.
        longest_backoff_seconds: Between attempts while the server is away.
        spool_bytes: Most that reports which wait may take on the disk, in whole blocks; the oldest go first.
        spool_reports: Most reports that wait.
    """

    interval_seconds: float = 60.0
    longest_backoff_seconds: float = 600.0
    spool_bytes: int = 16 << 20
    spool_reports: int = 10_000

    def __post_init__(self) -> None:
        """Refuse what cannot be followed."""
        if not (self.interval_seconds > 0 and self.longest_backoff_seconds > 0):
            raise ConfigurationError(f"report settings {self}: times must be above 0")


class Reporter:
    """Reports a device's telemetry, in a thread of its own.

    Attributes:
        dropped: Reports that the server refused for good.
    """

    def __init__(
        self,
        state: StateFolder,
        telemetry: Telemetry,
        link: FleetLink | None,
        settings: ReportSettings,
        *,
        serving: Callable[[], Manifest | None],
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the spool.

        Args:
            state: Of which this process is the owner.
            telemetry: What is reported.
            link: To the server; None for a device that keeps its reports.
            settings: When.
            serving: Returns what serves.
            rng: Draws intervals.
            clock: In seconds, which never goes back.
        """
        self.dropped = 0
        self._state, self._telemetry, self._link, self._settings = state, telemetry, link, settings
        self._serving, self._rng, self._clock = serving, rng, clock
        self._spool = Spool(state, max_bytes=settings.spool_bytes, max_reports=settings.spool_reports)
        self._backoff = Backoff(settings.interval_seconds, settings.longest_backoff_seconds, rng)
        self._unspooled: list[TelemetryReport] = []
        self._stopped, self._is_wanted = False, False
        self._wanted = threading.Condition()
        self._quiet_until = 0.0  # as the server asked
        self._thread = threading.Thread(target=self._run, name="quantfleet-report", daemon=True)

    @property
    def waiting(self) -> int:
        """Reports that wait for the server."""
        return len(self._spool)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def soon(self) -> None:
        """Report as soon as the server allows: something of interest has happened."""
        with self._wanted:
            self._is_wanted = True
            self._wanted.notify()

    def close(self) -> None:
        """Stop, and keep what was counted on the disk."""
        with self._wanted:
            self._stopped = True
            self._wanted.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._guarded(self.spool)

    def spool(self) -> None:
        """Put what was counted on the disk.

        Raises:
            ConfigurationError: If the folder cannot be written; the newest reports wait in memory.
        """
        memory = MemoryUse(peak_rss_bytes=peak_rss_bytes(), store_bytes=used_bytes(self._state))
        self._unspooled += self._telemetry.take(self._serving(), memory)
        del self._unspooled[:-_MOST_UNSPOOLED]
        while self._unspooled:
            self._spool.append(self._unspooled[0].SerializeToString())
            del self._unspooled[0]

    def send(self) -> float:
        """Send what waits; return how long the server wants to be left alone, 0 if it did not say.

        Raises:
            UnreachableError: If the server is away, or busy.
            ConfigurationError: If the folder cannot be written.
        """
        wait = 0.0
        if self._link is not None and not self._spool.has_begun:
            self._spool.begin_above(self._link.report([]).stored_sequence)
        while self._link is not None and (batch := self._next_batch()):
            wait = max(wait, self._send(self._link, batch))
        return wait

    def _send(self, link: FleetLink, batch: list[SpooledReport]) -> float:
        try:
            reported = link.report([_numbered(report) for report in batch])
        except MalformedError as error:
            if len(batch) > 1:  # one of them: each on its own
                return max(self._send(link, [report]) for report in batch)
            self.dropped += 1
            _events.warning("report_refused", sequence=batch[0].sequence, error=str(error))
            self._spool.mark_sent(batch[0].sequence)
            return 0.0
        stored = reported.stored_sequence
        if stored > self._spool.last_used:  # another device has this one's name, or had its folder
            _events.warning("reports_renumbered", above=stored)
            self._spool.begin_above(stored)
        elif stored >= batch[0].sequence:
            self._spool.mark_sent(stored)
        else:
            raise UnreachableError(
                f"the server has reports up to {stored} and did not store {batch[0].sequence}",
                reported.retry_after_seconds,
            )
        return reported.retry_after_seconds

    def _next_batch(self) -> list[SpooledReport]:
        batch: list[SpooledReport] = []
        for report in self._spool.pending():
            batch.append(report)
            if len(batch) == _BATCH:
                break
        return batch

    def _run(self) -> None:
        wait = self._settings.interval_seconds * self._rng.uniform(0.0, 1.0)
        while self._wait(wait):
            self._guarded(self.spool)
            wait = self._settings.interval_seconds * self._rng.uniform(0.5, 1.5)
            try:
                asked = self.send()
                self._quiet_until, wait = self._clock() + asked, max(wait, asked)
                self._backoff.reset()
            except UnreachableError as error:
                wait = self._backoff.next_seconds(error.retry_after_seconds)
                _events.debug("reports_kept", waiting=self.waiting, error=str(error))
            except QuantFleetError as error:
                wait = self._backoff.next_seconds()
                _events.warning("reports_kept", waiting=self.waiting, error=str(error))
            except Exception:  # noqa: BLE001  # telemetry must not end with one surprise
                wait = self._backoff.next_seconds()
                _events.exception("report_failed")

    def _wait(self, seconds: float) -> bool:
        """Wait, or until something of interest has happened; return whether to go on."""
        until = self._clock() + seconds
        with self._wanted:
            while not self._stopped:
                now = self._clock()
                may_go = self._quiet_until if self._is_wanted and not self._backoff.failures else until
                if now >= may_go:
                    self._is_wanted = False
                    return True
                self._wanted.wait(may_go - now)
        return False

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except QuantFleetError as error:
            _events.warning("report_not_spooled", error=str(error))
        except Exception:  # noqa: BLE001  # see above
            _events.exception("report_failed")


def _numbered(spooled: SpooledReport) -> TelemetryReport:
    report = TelemetryReport.FromString(spooled.data)
    report.sequence = spooled.sequence
    return report
