"""Folding reports within one transaction: what they need is read at once, and what they change is written at once."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from quantization.errors import NotFoundError, QuantFleetError
from server.class_totals import TotalsChanges
from server.rollout import Rollout, has_new_version, is_never_canary
from server.rollout_rows import open_rollout_row, rollout_of
from server.rollout_settings import RolloutRules
from server.rollout_units import Expectation, Marks, is_mature, marks_of, unit_of
from server.tables import (
    DeviceClassRow,
    DeviceTelemetryRow,
    ModelRow,
    RolloutDeviceRow,
    RolloutUnitRow,
    TargetRow,
)
from server.telemetry_budget import Budget, without_counts
from server.telemetry_codec import counts_from_json, counts_to_json
from server.telemetry_counts import TelemetryCounts
from server.telemetry_reports import DeviceReport, DeviceReports, Folded

NOTHING = counts_to_json(TelemetryCounts())
"""No counts, as the registry keeps them."""

_ClassKey = tuple[str, str]
"""A model's digest and the name of a device class."""


@dataclass(frozen=True, slots=True)
class _Open:
    """An open rollout, and what its class counted before it."""

    rollout: Rollout
    fleet: TelemetryCounts


class Folding:
    """What one transaction folds; rows are locked in one order, whoever else folds.

    Attributes:
        totals: What changes in the totals of classes.
    """

    def __init__(
        self, session: Session, rules: RolloutRules, budget: Budget, calls: Sequence[DeviceReports]
    ) -> None:
        """Read, and lock, what the reports of these calls need."""
        self.totals = TotalsChanges()
        self._session = session
        self._rules = rules
        self._budget = budget
        reports = [report for call in calls for report in call.reports]
        names = {call.device_id for call in calls}
        self._registered = _registered(session, {_class_of(report) for report in reports})
        self._manifests = _manifests(session, reports)
        self._open = self._read_open(session)
        self._rows = {
            (row.model_digest, row.device_class, row.device_id): row for row in _device_rows(session, names)
        }
        self._last = dict.fromkeys(names, 0)
        for row in self._rows.values():
            self._last[row.device_id] = max(self._last[row.device_id], row.last_sequence)
        self._rollout_rows = self._read_rollout_rows(session, names)

    def fold(self, call: DeviceReports) -> Folded | QuantFleetError:
        """Count the reports of one device; return what became of them, or why they are refused."""
        device = call.device_id
        try:
            new = [self._checked(report) for report in call.reports if report.sequence > self._last[device]]
            are_plausible = [self._fold(report) for report in new]
        except QuantFleetError as error:
            return error
        return Folded(self._last[device], tuple(new), are_plausible.count(False))

    def _checked(self, report: DeviceReport) -> DeviceReport:
        """Return the report; of version 0, which is no target, if its manifest is not the version's.

        Raises:
            NotFoundError: The model or the device class is not registered.
        """
        key = _class_of(report)
        if key not in self._registered:
            raise NotFoundError(f"model {key[0][:12]} or device class '{key[1]}' is not registered")
        if not report.version or not report.manifest_digest:
            return report
        is_target = self._manifests.get((*key, report.version)) == report.manifest_digest
        return report if is_target else replace(report, version=0)

    def _fold(self, report: DeviceReport) -> bool:
        """Count a report; return whether the device can have counted that, else it counts nothing."""
        key = (*_class_of(report), report.device_id)
        row = self._rows.get(key)
        known_until = None if row is None else row.counted_until_seconds
        counted_until = self._budget.counted_until(known_until, report)
        if counted_until is None:
            report = without_counts(report)
        before = TelemetryCounts() if row is None else counts_from_json(row.counts)
        version_before = None if row is None else row.version
        counts = (before if version_before == report.version else TelemetryCounts()).merge(report.counts)
        if row is None:
            row = self._rows[key] = DeviceTelemetryRow(
                model_digest=report.model_digest, device_class=report.device_class, device_id=report.device_id
            )
            self._session.add(row)
        open_rollout = self._open.get(key[:2])
        if open_rollout is not None:
            known = row.counts if version_before == open_rollout.rollout.base_version else NOTHING
            self._fold_into_rollout(open_rollout, known, report)
        row.counts = counts_to_json(counts)
        row.version, row.last_sequence = report.version, report.sequence
        row.counted_until_seconds = (known_until or 0.0) if counted_until is None else counted_until
        self._last[report.device_id] = report.sequence
        self.totals.add_report(
            *key[:2],
            version=report.version,
            version_before=version_before,
            counts=report.counts,
            observed_values=report.observed_values,
            clipped_values=report.clipped_values,
        )
        return counted_until is not None

    def _fold_into_rollout(self, open_rollout: _Open, known: str, report: DeviceReport) -> None:
        """Count a report of a device that is compared; `known` is what it counted before the rollout."""
        rollout = open_rollout.rollout
        is_canary = has_new_version(rollout, report.device_id)
        if not is_canary and not is_never_canary(rollout, report.device_id):
            return
        key = (rollout.rollout_id, report.device_id)
        row = self._rollout_rows.get(key)
        if row is None:
            row = self._rollout_rows[key] = _new_device(*key, known, is_canary=is_canary)
            self._session.add(row)
        version = rollout.version if is_canary else rollout.base_version
        news = TelemetryCounts(load_failures=report.failed_versions.count(version))
        if report.version == version:
            news = news.merge(report.counts)
        if news == TelemetryCounts():
            return
        expectation = Expectation(counts_from_json(row.before), open_rollout.fleet)
        counts = counts_from_json(row.counts).merge(news)
        row.counts = counts_to_json(counts)
        for name, value in asdict(marks_of(counts, expectation, self._rules)).items():
            setattr(row, name, value)
        self._add_unit(rollout, row, counts, expectation)

    def _add_unit(
        self, rollout: Rollout, row: RolloutDeviceRow, counts: TelemetryCounts, expectation: Expectation
    ) -> None:
        """Store the device's unit when it is complete; it has one, which never changes."""
        if row.has_unit or not is_mature(counts, self._rules):
            return
        unit = unit_of(counts, expectation, is_canary=row.is_canary, step=rollout.step, rules=self._rules)
        self._session.add(
            RolloutUnitRow(rollout_id=rollout.rollout_id, device_id=row.device_id, **asdict(unit))
        )
        row.has_unit = True

    def _read_open(self, session: Session) -> dict[_ClassKey, _Open]:
        """Return the open rollouts of all classes that report, locked in one order."""
        found = {}
        for key in sorted(self._registered):
            row = open_rollout_row(session, *key)
            if row is not None:
                found[key] = _Open(rollout_of(row), counts_from_json(row.fleet_counts))
        return found

    def _read_rollout_rows(
        self, session: Session, names: Iterable[str]
    ) -> dict[tuple[str, str], RolloutDeviceRow]:
        ids = [one.rollout.rollout_id for one in self._open.values()]
        if not ids:
            return {}
        mine = (RolloutDeviceRow.rollout_id.in_(ids), RolloutDeviceRow.device_id.in_(names))
        rows = session.scalars(select(RolloutDeviceRow).where(*mine))
        return {(row.rollout_id, row.device_id): row for row in rows}


def _class_of(report: DeviceReport) -> _ClassKey:
    return report.model_digest, report.device_class


def _registered(session: Session, keys: set[_ClassKey]) -> set[_ClassKey]:
    if not keys:
        return set()
    models = session.scalars(select(ModelRow.digest).where(ModelRow.digest.in_({key[0] for key in keys})))
    classes = session.scalars(
        select(DeviceClassRow.name).where(DeviceClassRow.name.in_({key[1] for key in keys}))
    )
    known = (frozenset(models), frozenset(classes))
    return {key for key in keys if key[0] in known[0] and key[1] in known[1]}


def _manifests(session: Session, reports: Iterable[DeviceReport]) -> dict[tuple[str, str, int], str]:
    """Return the manifests of the versions that are reported."""
    wanted = {(*_class_of(report), report.version) for report in reports if report.version}
    if not wanted:
        return {}
    row = TargetRow
    mine = tuple_(row.model_digest, row.device_class, row.version).in_(sorted(wanted))
    found = session.execute(
        select(row.model_digest, row.device_class, row.version, row.manifest_digest).where(mine)
    )
    return {(model, name, version): digest for model, name, version, digest in found}


def _device_rows(session: Session, names: Iterable[str]) -> Iterable[DeviceTelemetryRow]:
    """Return the rows of devices over all models and classes; by the key, so without a look at others."""
    row = DeviceTelemetryRow
    mine = (
        row.model_digest == ModelRow.digest,
        row.device_class == DeviceClassRow.name,
        row.device_id.in_(sorted(names)),
    )
    return session.scalars(
        select(row)
        .where(*mine)
        .order_by(row.device_id, row.model_digest, row.device_class)
        .with_for_update(of=row)
    )


def _new_device(rollout_id: str, device_id: str, before: str, *, is_canary: bool) -> RolloutDeviceRow:
    return RolloutDeviceRow(
        rollout_id=rollout_id,
        device_id=device_id,
        is_canary=is_canary,
        before=before,
        counts=NOTHING,
        has_unit=False,
        **asdict(Marks()),
    )
