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
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from quantization.errors import MalformedError, NotFoundError, QuantFleetError
from server.class_totals import TotalsChanges, shard_of
from server.rollout import Rollout, has_new_version, is_never_canary
from server.rollout_registry import TELEMETRY, RolloutRegistry
from server.rollout_rows import open_rollout_row, rollout_of
from server.rollout_rules import Evidence, Situation, decide
from server.rollout_settings import DEFAULT_RULES, RolloutRules
from server.rollout_units import Expectation, Marks, Unit, is_mature, marks_of, unit_of
from server.tables import (
    NAME_LENGTH,
    DeviceClassRow,
    DeviceTelemetryRow,
    ModelRow,
    RolloutDeviceRow,
    RolloutRow,
    RolloutUnitRow,
    TargetRow,
)
from server.telemetry_codec import counts_from_json, counts_to_json
from server.telemetry_counts import TelemetryCounts

_NOTHING = counts_to_json(TelemetryCounts())
_MARKS = tuple(field.name for field in fields(Marks))
_KEPT_EVIDENCE = 64
_MAX_SEQUENCE = (1 << 63) - 1
_MAX_VERSION = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a device counted since its last report.

    Attributes:
        model_digest: SHA-256 of the canonical float model, hex.
        device_class: Name of the device class.
        device_id: Name of the device, as its identity proves it.
        sequence: Grows with every report of the device, from 1.
        version: Version of the target that answered.
        counts: What was counted.
        failed_versions: Versions that could not be loaded, failed their self-test or their trial, one for each
            attempt; the device then runs, and reports of, another version.
        manifest_digest: SHA-256 of the manifest that answered, hex; empty where it is not known.
        observed_values: Values observed at activation sites.
        clipped_values: Those beyond their site's range.
    """

    model_digest: str
    device_class: str
    device_id: str
    sequence: int
    version: int
    counts: TelemetryCounts
    failed_versions: tuple[int, ...] = ()
    manifest_digest: str = ""
    observed_values: int = 0
    clipped_values: int = 0

    def __post_init__(self) -> None:
        """Refuse what no device can report."""
        if not 1 <= len(self.device_id) <= NAME_LENGTH:
            raise MalformedError(
                f"a device's name has 1 to {NAME_LENGTH} characters, not {len(self.device_id)}"
            )
        if not (1 <= self.sequence <= _MAX_SEQUENCE and 0 <= self.version <= _MAX_VERSION):
            raise MalformedError(f"report {self.sequence} of version {self.version}")


@dataclass(frozen=True, slots=True)
class DeviceReports:
    """What one device sends at once.

    Attributes:
        device_id: Name of the device, as its identity proves it.
        reports: In order of their sequence; none only asks what is stored.
    """

    device_id: str
    reports: tuple[DeviceReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Folded:
    """What became of the reports of one device.

    Attributes:
        stored_sequence: The device's reports up to this number are counted; 0 where none is.
        counted: Those that were new, in order of their sequence.
    """

    stored_sequence: int
    counted: tuple[DeviceReport, ...] = ()


class TelemetryRegistry:
    """Counts and evidence; shares its database with `server.rollout_registry.RolloutRegistry`."""

    def __init__(
        self, engine: Engine, rules: RolloutRules = DEFAULT_RULES, *, process: str | None = None
    ) -> None:
        """Share an engine.

        Args:
            engine: Of the registry's database, migrated.
            rules: How much evidence moves a rollout.
            process: A name that no other server process has; None makes one of the host and the process.
        """
        self._engine = engine
        self._rules = rules
        self._evidence: dict[str, tuple[int, Evidence]] = {}  # of units up to a number; replaced as a whole
        self._shard = shard_of(process or f"{socket.gethostname()}:{os.getpid()}")

    def fold(self, report: DeviceReport) -> bool:
        """Count a report; return whether it was new.

        Raises:
            NotFoundError: The model or the device class is not registered.
        """
        try:
            return self._fold_once(report)
        except (
            IntegrityError
        ):  # another process has made the device's first row meanwhile, or nothing is registered
            try:
                return self._fold_once(report)
            except IntegrityError as error:
                raise NotFoundError(
                    f"model {report.model_digest[:12]} or device class '{report.device_class}' is not registered"
                ) from error

    def fold_all(self, calls: Sequence[DeviceReports]) -> tuple[Folded | QuantFleetError, ...]:
        """Count the reports of many devices in one transaction; return what became of each call, in their order.

        A call that is refused (a model or class that is not registered, counts beyond their bounds) leaves no trace and
        does not hinder the others: its error is returned in its place.
        """
        results: dict[int, Folded | QuantFleetError] = {}
        in_order = sorted(
            range(len(calls)), key=lambda place: calls[place].device_id
        )  # servers lock in one order
        with Session(self._engine) as session, session.begin():
            known, changes = _Registered(session), TotalsChanges()
            for place in in_order:
                results[place] = self._fold_call(session, calls[place], known, changes)
            changes.store(session, self._shard)
        return tuple(results[place] for place in range(len(calls)))

    def counts(self, model_digest: str, device_class: str, version: int) -> TelemetryCounts:
        """Return the merged counts of the devices that last reported this version."""
        merged = TelemetryCounts()
        mine = (
            DeviceTelemetryRow.model_digest == model_digest,
            DeviceTelemetryRow.device_class == device_class,
            DeviceTelemetryRow.version == version,
        )
        with self._reading() as session:
            for text in session.scalars(select(DeviceTelemetryRow.counts).where(*mine)):
                merged = merged.merge(counts_from_json(text))
        return merged

    def situation(self, rollout: Rollout) -> Situation:
        """Return all that telemetry shows of a rollout."""
        mine = RolloutUnitRow.rollout_id == rollout.rollout_id
        last_id, evidence = self._evidence.get(rollout.rollout_id, (0, Evidence.none(self._rules)))
        with self._reading() as session:
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

    def _fold_once(self, report: DeviceReport) -> bool:
        with Session(self._engine) as session, session.begin():
            changes = TotalsChanges()
            is_new = self._fold(session, report, changes)
            changes.store(session, self._shard)
            return is_new

    def _fold_call(
        self,
        session: Session,
        call: DeviceReports,
        known: "_Registered",
        changes: TotalsChanges,
        *,
        is_first: bool = True,
    ) -> Folded | QuantFleetError:
        mine = TotalsChanges()
        try:
            with session.begin_nested():
                stored = _stored_sequence(session, call.device_id)
                new = [known.checked(report) for report in call.reports if report.sequence > stored]
                counted = tuple(report for report in new if self._fold(session, report, mine))
        except IntegrityError:  # another process has made the device's first row meanwhile
            if not is_first:
                raise
            return self._fold_call(session, call, known, changes, is_first=False)
        except QuantFleetError as error:
            return error
        changes.merge(mine)
        return Folded(max([stored, *(report.sequence for report in counted)]), counted)

    def _fold(self, session: Session, report: DeviceReport, changes: TotalsChanges) -> bool:
        rollout_row = open_rollout_row(session, report.model_digest, report.device_class)
        key = (report.model_digest, report.device_class, report.device_id)
        row = session.get(DeviceTelemetryRow, key, with_for_update=True)
        if row is not None and report.sequence <= row.last_sequence:
            return False
        changes.add_report(
            *key[:2],
            version=report.version,
            version_before=None if row is None else row.version,
            counts=report.counts,
            observed_values=report.observed_values,
            clipped_values=report.clipped_values,
        )
        if row is None:
            row = DeviceTelemetryRow(
                model_digest=report.model_digest,
                device_class=report.device_class,
                device_id=report.device_id,
                last_sequence=0,
                version=report.version,
                counts=_NOTHING,
            )
            session.add(row)
        if rollout_row is not None:
            self._fold_into_rollout(session, rollout_row, row, report)
        kept = counts_from_json(row.counts) if row.version == report.version else TelemetryCounts()
        row.counts = counts_to_json(kept.merge(report.counts))
        row.version, row.last_sequence = report.version, report.sequence
        session.flush()
        return True

    def _fold_into_rollout(
        self, session: Session, rollout_row: RolloutRow, before: DeviceTelemetryRow, report: DeviceReport
    ) -> None:
        rollout = rollout_of(rollout_row)
        is_canary = has_new_version(rollout, report.device_id)
        if not is_canary and not is_never_canary(rollout, report.device_id):
            return
        row = session.get(RolloutDeviceRow, (rollout.rollout_id, report.device_id))
        if row is None:
            known = before.counts if before.version == rollout.base_version else _NOTHING
            row = _new_device(rollout, report.device_id, known, is_canary=is_canary)
            session.add(row)
        version = rollout.version if is_canary else rollout.base_version
        news = TelemetryCounts(load_failures=report.failed_versions.count(version))
        if report.version == version:
            news = news.merge(report.counts)
        if news == TelemetryCounts():
            return
        expectation = Expectation(counts_from_json(row.before), counts_from_json(rollout_row.fleet_counts))
        counts = counts_from_json(row.counts).merge(news)
        row.counts = counts_to_json(counts)
        for name, value in asdict(marks_of(counts, expectation, self._rules)).items():
            setattr(row, name, value)
        self._add_unit(session, rollout, row, counts, expectation)

    def _add_unit(
        self,
        session: Session,
        rollout: Rollout,
        row: RolloutDeviceRow,
        counts: TelemetryCounts,
        expectation: Expectation,
    ) -> None:
        """Store the device's unit when it is complete; it has one, which never changes."""
        if row.has_unit or not is_mature(counts, self._rules):
            return
        unit = unit_of(counts, expectation, is_canary=row.is_canary, step=rollout.step, rules=self._rules)
        session.add(RolloutUnitRow(rollout_id=rollout.rollout_id, device_id=row.device_id, **asdict(unit)))
        row.has_unit = True

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        """Yield a session that takes no write lock."""
        with Session(self._engine.execution_options(begin="DEFERRED")) as session:
            yield session


class _Registered:
    """Which models, classes and versions there are, asked once in a transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._classes: dict[tuple[str, str], bool] = {}
        self._manifests: dict[tuple[str, str, int], str] = {}

    def checked(self, report: DeviceReport) -> DeviceReport:
        """Return the report; of version 0, which is no target, if its manifest is not the version's.

        Raises:
            NotFoundError: The model or the device class is not registered.
        """
        key = (report.model_digest, report.device_class)
        if key not in self._classes:
            rows = (self._session.get(ModelRow, key[0]), self._session.get(DeviceClassRow, key[1]))
            self._classes[key] = None not in rows
        if not self._classes[key]:
            raise NotFoundError(f"model {key[0][:12]} or device class '{key[1]}' is not registered")
        if not report.version or not report.manifest_digest:
            return report
        version = (*key, report.version)
        if version not in self._manifests:
            row = self._session.get(TargetRow, version)
            self._manifests[version] = "" if row is None else row.manifest_digest
        is_target = self._manifests[version] == report.manifest_digest
        return report if is_target else replace(report, version=0)


def _stored_sequence(session: Session, device_id: str) -> int:
    """Return the last sequence of a device over all models and classes; by the key, so without a look at others."""
    mine = (
        DeviceTelemetryRow.model_digest == ModelRow.digest,
        DeviceTelemetryRow.device_class == DeviceClassRow.name,
        DeviceTelemetryRow.device_id == device_id,
    )
    return session.scalar(select(func.max(DeviceTelemetryRow.last_sequence)).where(*mine)) or 0


def _new_device(rollout: Rollout, device_id: str, before: str, *, is_canary: bool) -> RolloutDeviceRow:
    return RolloutDeviceRow(
        rollout_id=rollout.rollout_id,
        device_id=device_id,
        is_canary=is_canary,
        before=before,
        counts=_NOTHING,
        has_unit=False,
        **asdict(Marks()),
    )


def _marks(session: Session, rollout_id: str, *, is_canary: bool) -> Marks:
    sums = [func.sum(getattr(RolloutDeviceRow, name)) for name in _MARKS]
    mine = (RolloutDeviceRow.rollout_id == rollout_id, RolloutDeviceRow.is_canary == is_canary)
    return Marks(*(int(total or 0) for total in session.execute(select(*sums).where(*mine)).one()))
