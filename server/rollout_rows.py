"""Rows of targets and rollouts, read and written: what both registries of rollouts share."""

import json
from dataclasses import fields
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from quantization.errors import NotFoundError
from server.rollout import Phase, Rollout, RolloutPlan
from server.tables import DeviceTelemetryRow, RolloutRow, TargetRow
from server.target_versions import TargetVersion
from server.telemetry_codec import counts_from_json
from server.telemetry_counts import TelemetryCounts


def open_rollout_row(session: Session, model_digest: str, device_class: str) -> RolloutRow | None:
    """Return the row of a target's open rollout, locked until the transaction ends; None where none is open."""
    return session.scalars(
        select(RolloutRow)
        .where(
            RolloutRow.model_digest == model_digest,
            RolloutRow.device_class == device_class,
            RolloutRow.finished_at_seconds.is_(None),
        )
        .with_for_update()
    ).first()


def newest_target(session: Session, model_digest: str, device_class: str) -> TargetVersion:
    """Return the newest version of a target.

    Raises:
        NotFoundError: None was published.
    """
    mine = (TargetRow.model_digest == model_digest, TargetRow.device_class == device_class)
    row = session.scalars(select(TargetRow).where(*mine).order_by(TargetRow.version.desc()).limit(1)).first()
    if row is None:
        raise NotFoundError(
            f"model {model_digest[:12]} has no published version for device class '{device_class}'; publish one first"
        )
    return target_version_of(row)


def fleet_telemetry(session: Session, base: TargetVersion) -> dict[str, TelemetryCounts]:
    """Return what devices have counted under the base version, by device."""
    rows = session.scalars(
        select(DeviceTelemetryRow).where(
            DeviceTelemetryRow.model_digest == base.model_digest,
            DeviceTelemetryRow.device_class == base.device_class,
            DeviceTelemetryRow.version == base.version,
        )
    )
    return {row.device_id: counts_from_json(row.counts) for row in rows}


def rollout_columns(rollout: Rollout) -> dict[str, Any]:
    """Return the columns of a rollout's row."""
    values = {field.name: getattr(rollout, field.name) for field in fields(rollout) if field.name != "plan"}
    return {**values, "phase": str(rollout.phase), "shares": json.dumps(rollout.plan.shares)}


def rollout_of(row: RolloutRow) -> Rollout:
    """Return the rollout that a row holds."""
    names = {field.name for field in fields(Rollout)} - {"plan", "phase"}
    plan = RolloutPlan(tuple(json.loads(row.shares)))
    return Rollout(**{name: getattr(row, name) for name in names}, plan=plan, phase=Phase(row.phase))


def target_version_of(row: TargetRow) -> TargetVersion:
    """Return the version that a row holds."""
    return TargetVersion(**{field.name: getattr(row, field.name) for field in fields(TargetVersion)})
