"""What an operator asks of rollouts: read from the registry's database, never written."""

import json
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, func, select

from server.database import reading
from server.registry import Registry
from server.rollout import Rollout
from server.rollout_registry import RolloutRegistry, audit_subject
from server.rollout_rows import rollout_of
from server.rollout_rules import Measure, Situation, Verdict, marks_verdict, measure_verdict
from server.rollout_settings import RolloutRules
from server.tables import AuditRow, GenerationRow, RolloutDeviceRow, RolloutRow, TargetRow
from server.target_versions import ServedTarget
from server.telemetry_codec import counts_from_json, counts_to_json
from server.telemetry_counts import TelemetryCounts

_NOTHING = counts_to_json(TelemetryCounts())


@dataclass(frozen=True, slots=True)
class ServedClass:
    """What one class gets of one model.

    Attributes:
        model_name: As operators call the model.
        model_digest: SHA-256 of the canonical float model, hex.
        device_class: Name of the class.
        served: Its versions, and the rollout that brought the newest one.
        generation: Number of the policy of the version that devices outside an open rollout get; 0 where it is not
            known.
    """

    model_name: str
    model_digest: str
    device_class: str
    served: ServedTarget
    generation: int


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One change of a rollout, as the audit has it.

    Attributes:
        at_seconds: When, seconds since 1970 (UTC).
        action: What was done, as one word.
        actor: Who did it.
        phase: Phase afterwards; empty where it is not known.
        share: Share afterwards.
        reason: Why, in words.
    """

    at_seconds: float
    action: str
    actor: str
    phase: str
    share: float
    reason: str


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """What one rule compares.

    Attributes:
        rule: Its name; the unit is in it or the value is a part, 0 to 1.
        target: Value of devices with the new version; None where nothing was observed.
        base: Of devices that keep the base version, likewise.
        target_count: Observations of the new version.
        base_count: Likewise, of the base.
        verdict: What the rule says.
    """

    rule: str
    target: float | None
    base: float | None
    target_count: int
    base_count: int
    verdict: Verdict


class RolloutQueries:
    """Answers questions of operators; any thread may ask."""

    def __init__(self, engine: Engine, registry: Registry, rollouts: RolloutRegistry) -> None:
        self._engine = engine
        self._registry = registry
        self._rollouts = rollouts

    def served(self) -> tuple[ServedClass, ...]:
        """Return every model and class that has a target, by name."""
        names = {model.digest: model.name for model in self._registry.models()}
        with reading(self._engine) as session:
            keys = session.execute(select(TargetRow.model_digest, TargetRow.device_class).distinct()).all()
        found = []
        for model, device_class in sorted(keys, key=lambda key: (names[key[0]], *key)):
            served = self._rollouts.served(model, device_class)
            generation = self.generations(model, device_class).get(served.base.manifest_digest, 0)
            found.append(ServedClass(names[model], model, device_class, served, generation))
        return tuple(found)

    def generations(self, model_digest: str, device_class: str) -> dict[str, int]:
        """Return the numbers of generations by the digest of their manifest."""
        row = GenerationRow
        query = (
            select(row.manifest_digest, row.number)  # not the rows, which are large
            .where(row.model_digest == model_digest, row.device_class == device_class)
            .where(row.manifest_digest != "")
            .order_by(row.number)
        )
        with reading(self._engine) as session:
            return {row.manifest_digest: row.number for row in session.execute(query)}

    def rollouts(
        self, *, device_class: str = "", is_open_only: bool = False, limit: int = 100
    ) -> tuple[Rollout, ...]:
        """Return rollouts, newest first."""
        query = select(RolloutRow).order_by(RolloutRow.started_at_seconds.desc(), RolloutRow.rollout_id)
        if device_class:
            query = query.where(RolloutRow.device_class == device_class)
        if is_open_only:
            query = query.where(RolloutRow.finished_at_seconds.is_(None))
        with reading(self._engine) as session:
            return tuple(rollout_of(row) for row in session.scalars(query.limit(limit)))

    def devices(self, rollout: Rollout) -> int:
        """Return how many devices have reported from a rollout's target while it was open."""
        mine = (RolloutDeviceRow.is_canary.is_(True), RolloutDeviceRow.counts != _NOTHING)
        query = select(func.count()).where(RolloutDeviceRow.rollout_id == rollout.rollout_id, *mine)
        with reading(self._engine) as session:
            return session.scalar(query) or 0

    def steps(self, rollout: Rollout) -> tuple[RolloutStep, ...]:
        """Return what happened to a rollout, oldest first."""
        subject = audit_subject(rollout.model_digest, rollout.device_class, rollout.version)
        with reading(self._engine) as session:
            rows = session.scalars(select(AuditRow).where(AuditRow.subject == subject).order_by(AuditRow.id))
            return tuple(_step(row) for row in rows)

    def evidence(
        self, rollout: Rollout, situation: Situation, rules: RolloutRules
    ) -> tuple[EvidenceRow, ...]:
        """Return what telemetry shows of a rollout, one row for each rule."""
        canaries = self._counts(rollout, RolloutDeviceRow.is_canary.is_(True))
        others = self._counts(rollout, RolloutDeviceRow.is_canary.is_(False))
        verdicts = {m: measure_verdict(getattr(situation.evidence, m), rules) for m in Measure}
        rows = [
            _row(str(rule), _part(rule, canaries), _part(rule, others), verdicts[rule])
            for rule in (Measure.ACCURACY, Measure.AGREEMENT, Measure.FAILURES)
        ]
        rows.append(
            _row("latency_p95_seconds", _latency(canaries), _latency(others), verdicts[Measure.LATENCY])
        )
        rows.append(
            EvidenceRow(
                "memory_bytes",
                canaries.memory_bytes or None,
                others.memory_bytes or None,
                situation.canaries.devices,
                situation.others.devices,
                verdicts[Measure.MEMORY],
            )
        )
        canary_marks, other_marks = (
            _ratio((side.marked, side.devices)) for side in (situation.canaries, situation.others)
        )
        rows.append(_row("marked_devices", canary_marks, other_marks, marks_verdict(situation, rules)))
        return tuple(rows)

    def _counts(self, rollout: Rollout, side: ColumnElement[bool]) -> TelemetryCounts:
        merged = TelemetryCounts()
        query = select(RolloutDeviceRow.counts).where(RolloutDeviceRow.rollout_id == rollout.rollout_id, side)
        with reading(self._engine) as session:
            for text in session.scalars(query):
                merged = merged.merge(counts_from_json(text))
        return merged


_Observed = tuple[float | None, int]
"""A value, and how many observations it rests on."""


def _row(rule: str, target: _Observed, base: _Observed, verdict: Verdict) -> EvidenceRow:
    return EvidenceRow(rule, target[0], base[0], target[1], base[1], verdict)


def _part(measure: Measure, counts: TelemetryCounts) -> _Observed:
    parts = {
        Measure.ACCURACY: (counts.hits, counts.labelled),
        Measure.AGREEMENT: (counts.agreements, counts.judged),
        Measure.FAILURES: (counts.failures, counts.samples + counts.failures),
    }
    return _ratio(parts[measure])


def _ratio(part: tuple[int, int]) -> _Observed:
    some, all_ = part
    return (some / all_ if all_ else None), all_


def _latency(counts: TelemetryCounts) -> _Observed:
    octaves = counts.latency_octaves()
    return (None if octaves is None else 2.0**octaves / 1e6), sum(counts.latency)


def _step(row: AuditRow) -> RolloutStep:
    detail = json.loads(row.detail)
    return RolloutStep(
        row.at_seconds,
        row.action,
        str(detail.get("actor", "")),
        str(detail.get("phase", "")),
        float(detail.get("share", 0.0)),
        str(detail.get("reason", "")),
    )
