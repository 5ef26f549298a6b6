"""Telemetry in the registry's database: reports fold into counts, counts into the evidence of rollouts.

The rules:

1. A report counts once: one whose sequence number is not above the device's last is dropped. So a device may send
   again whatever it is not sure of. Its last is that of all its reports, of whatever model and class.
2. What a device did before a rollout is fixed when it first reports into it; what it counts under a version that
   it should not have is no evidence.
3. Devices that no share of the plan reaches are the ones that canaries are compared with. A device that is yet to
   have the new version is neither.
4. Units are only ever added, and whoever folds them in order of their number gets the same evidence. While a report
   is folded the rollout's row is locked, so that numbers are in order on every database.
5. The totals of classes (`server.class_totals`) change in the transaction that folds.
6. What a device cannot have had the time to count is not counted (`server.telemetry_budget`).
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import fields

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from quantization.errors import QuantFleetError
from server.class_totals import shard_of
from server.database import reading
from server.rollout import Rollout
from server.rollout_registry import TELEMETRY, RolloutRegistry
from server.rollout_rules import Evidence, Situation, decide
from server.rollout_settings import DEFAULT_RULES, RolloutRules
from server.rollout_units import Marks, Unit
from server.tables import DeviceTelemetryRow, RolloutDeviceRow, RolloutUnitRow
from server.telemetry_budget import DEFAULT_MAX_INPUTS_PER_SECOND, Budget
from server.telemetry_codec import counts_from_json
from server.telemetry_counts import TelemetryCounts
from server.telemetry_folding import Folding
from server.telemetry_reports import DeviceReport, DeviceReports, Folded

_MARKS = tuple(field.name for field in fields(Marks))
_KEPT_EVIDENCE = 64
_ATTEMPTS = 4
_DEADLOCK = "40P01"


class TelemetryRegistry:
    """Counts and evidence; shares its database with `server.rollout_registry.RolloutRegistry`."""

    def __init__(
        self,
        engine: Engine,
        rules: RolloutRules = DEFAULT_RULES,
        *,
        max_inputs_per_second: float = DEFAULT_MAX_INPUTS_PER_SECOND,
        process: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Share an engine.

        Args:
            engine: Of the registry's database, migrated.
            rules: How much evidence moves a rollout.
            max_inputs_per_second: What one device can answer; more that it claims is not counted.
            process: A name that no other server process has; None makes one of the host and the process.
            clock: Seconds since 1970 (UTC).
        """
        self._engine = engine
        self._rules = rules
        self._max_inputs_per_second, self._clock = max_inputs_per_second, clock
        self._evidence: dict[str, tuple[int, Evidence]] = {}  # of units up to a number; replaced as a whole
        self._shard = shard_of(process or f"{socket.gethostname()}:{os.getpid()}")

    def fold(self, report: DeviceReport) -> bool:
        """Count a report; return whether it was new.

        Raises:
            NotFoundError: The model or the device class is not registered.
        """
        (folded,) = self.fold_all([DeviceReports(report.device_id, (report,))])
        if isinstance(folded, QuantFleetError):
            raise folded
        return bool(folded.counted)

    def fold_all(self, calls: Sequence[DeviceReports]) -> tuple[Folded | QuantFleetError, ...]:
        """Count the reports of many devices in one transaction; return what became of each call, in their order.

        A call that is refused (a model or class is not registered) leaves no trace and does not hinder the others: its
        error is returned in its place. 1,000 reports take about a second.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._fold_once(calls)
            except DBAPIError as error:
                if not _is_race(error):
                    raise
        return self._fold_once(calls)

    def counts(self, model_digest: str, device_class: str, version: int) -> TelemetryCounts:
        """Return the merged counts of the devices that last reported this version."""
        merged = TelemetryCounts()
        mine = (
            DeviceTelemetryRow.model_digest == model_digest,
            DeviceTelemetryRow.device_class == device_class,
            DeviceTelemetryRow.version == version,
        )
        with reading(self._engine) as session:
            for text in session.scalars(select(DeviceTelemetryRow.counts).where(*mine)):
                merged = merged.merge(counts_from_json(text))
        return merged

    def situation(self, rollout: Rollout) -> Situation:
        """Return all that telemetry shows of a rollout."""
        mine = RolloutUnitRow.rollout_id == rollout.rollout_id
        last_id, evidence = self._evidence.get(rollout.rollout_id, (0, Evidence.none(self._rules)))
        with reading(self._engine) as session:
            news = select(RolloutUnitRow).where(mine, RolloutUnitRow.id > last_id).order_by(RolloutUnitRow.id)
            for row in session.scalars(news):
                unit = Unit(**{field.name: getattr(row, field.name) for field in fields(Unit)})
                last_id, evidence = row.id, evidence.observe(unit, rollout.plan, self._rules)
            self._remember(rollout, last_id, evidence)
            return Situation(
                evidence,
                _marks(session, rollout.rollout_id, is_canary=True),
                _marks(session, rollout.rollout_id, is_canary=False),
            )

    def review(self, rollouts: RolloutRegistry, rollout: Rollout, now_seconds: float) -> Rollout:
        """Let telemetry move a rollout; return it as it then stands.

        Raises:
            IllegalTransitionError: Somebody else has moved it meanwhile; read it again.
        """
        decision = decide(rollout, self.situation(rollout), now_seconds=now_seconds, rules=self._rules)
        if decision.event is None:
            return rollout
        return rollouts.advance(rollout, decision.event, actor=TELEMETRY, reason=decision.reason)

    def _remember(self, rollout: Rollout, last_id: int, evidence: Evidence) -> None:
        """Keep the evidence of the rollouts that were asked for last: of them only new units are read."""
        self._evidence.pop(rollout.rollout_id, None)
        self._evidence[rollout.rollout_id] = (last_id, evidence)
        while len(self._evidence) > _KEPT_EVIDENCE:
            self._evidence.pop(next(iter(self._evidence)), None)

    def _fold_once(self, calls: Sequence[DeviceReports]) -> tuple[Folded | QuantFleetError, ...]:
        with Session(self._engine, autoflush=False) as session, session.begin():
            budget = Budget(self._max_inputs_per_second, self._clock())
            folding = Folding(session, self._rules, budget, calls)
            in_order = sorted(range(len(calls)), key=lambda place: calls[place].device_id)
            results = {place: folding.fold(calls[place]) for place in in_order}
            session.flush()
            folding.totals.store(session, self._shard)
            return tuple(results[place] for place in range(len(calls)))


def _is_race(error: DBAPIError) -> bool:
    """Return whether another process has made a device's first row meanwhile, or locked what this one waits for."""
    return isinstance(error, IntegrityError) or getattr(error.orig, "sqlstate", None) == _DEADLOCK


def _marks(session: Session, rollout_id: str, *, is_canary: bool) -> Marks:
    sums = [func.sum(getattr(RolloutDeviceRow, name)) for name in _MARKS]
    mine = (RolloutDeviceRow.rollout_id == rollout_id, RolloutDeviceRow.is_canary == is_canary)
    return Marks(*(int(total or 0) for total in session.execute(select(*sums).where(*mine)).one()))
