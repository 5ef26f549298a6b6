"""Queries of the registry by device class, each one for all classes at once; none reads rows of devices."""

import json
from collections.abc import Mapping

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from quantization.errors import MalformedError
from quantization.renormalization import DriftRule
from server.generation import FINAL_STEPS, Step
from server.rollout import Rollout
from server.rollout_rows import rollout_of, target_version_of
from server.tables import GenerationRow, RolloutRow, TargetRow
from server.target_versions import TargetVersion

GenerationKey = tuple[str, str, int]
"""A model's digest, the name of a device class, and a generation's number."""


def speaking_targets(session: Session) -> dict[str, TargetVersion]:
    """Return the newest version of each class's target, of the model that was published last."""
    newest = (
        select(TargetRow.model_digest, TargetRow.device_class, func.max(TargetRow.version).label("version"))
        .group_by(TargetRow.model_digest, TargetRow.device_class)
        .subquery()
    )
    rows = session.scalars(
        select(TargetRow)
        .join(
            newest,
            and_(
                TargetRow.model_digest == newest.c.model_digest,
                TargetRow.device_class == newest.c.device_class,
                TargetRow.version == newest.c.version,
            ),
        )
        .order_by(TargetRow.at_seconds, TargetRow.model_digest)
    )
    return {row.device_class: target_version_of(row) for row in rows}


def rollouts_of_classes(session: Session, targets: Mapping[str, TargetVersion]) -> dict[str, Rollout]:
    """Return the rollout that brought each of these versions, or whose rolling back did."""
    newest = [
        and_(
            RolloutRow.model_digest == target.model_digest,
            RolloutRow.device_class == name,
            or_(RolloutRow.version == target.version, RolloutRow.rolled_back_version == target.version),
        )
        for name, target in targets.items()
    ]
    if not newest:
        return {}
    return {
        row.device_class: rollout_of(row) for row in session.scalars(select(RolloutRow).where(or_(*newest)))
    }


def policies_of_classes(session: Session, targets: Mapping[str, TargetVersion]) -> dict[str, GenerationKey]:
    """Return which generation's policy each class runs; where nothing was published to devices, the newest good one."""
    rows = session.execute(
        select(
            GenerationRow.model_digest,
            GenerationRow.device_class,
            GenerationRow.number,
            GenerationRow.step,
            GenerationRow.manifest_digest,
        )
        .where(GenerationRow.step.in_([Step.PUBLISHED, Step.RECALLED]))
        .order_by(GenerationRow.finished_at_seconds, GenerationRow.number)
    )
    policies: dict[str, GenerationKey] = {}
    for row in rows:
        target = targets.get(row.device_class)
        if target is None:
            is_run = row.step == Step.PUBLISHED
        else:  # what was recalled may have been published again
            of_target = (target.model_digest, target.manifest_digest)
            is_run = (row.model_digest, row.manifest_digest) == of_target
        if is_run:
            policies[row.device_class] = (row.model_digest, row.device_class, row.number)
    return policies


def drift_ratios(session: Session) -> dict[str, float]:
    """Return which part of its layers had drifted when devices of a class were last asked."""
    asked = (
        select(
            GenerationRow.device_class, func.max(GenerationRow.started_at_seconds).label("started_at_seconds")
        )
        .where(GenerationRow.moments_digest != "")
        .group_by(GenerationRow.device_class)
        .subquery()
    )
    rows = session.execute(
        select(GenerationRow.device_class, GenerationRow.drift)
        .join(
            asked,
            and_(
                GenerationRow.device_class == asked.c.device_class,
                GenerationRow.started_at_seconds == asked.c.started_at_seconds,
            ),
        )
        .where(GenerationRow.moments_digest != "")
    )
    return {row.device_class: _drifted_part(row.drift) for row in rows}


def _drifted_part(drift: str) -> float:
    """Return the part of the layers that differ from the lab by more than chance and more than a trifle."""
    rule = DriftRule()
    try:
        layers = json.loads(drift).get("layers", {}).values()
        drifted = [
            layer["significance"] >= rule.min_significance
            and max(layer["shift"], layer["log_spread"]) >= rule.min_size
            for layer in layers
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedError(f"drift of a generation cannot be read: {error}") from error
    return sum(drifted) / len(drifted) if drifted else 0.0


def generations_of_classes(session: Session) -> dict[str, dict[str, int]]:
    """Return how many generations of each class ended how; one that was recalled counts as published too.

    So no count ever falls.
    """
    rows = session.execute(
        select(GenerationRow.device_class, GenerationRow.step, func.count().label("generations"))
        .where(GenerationRow.step.in_([str(step) for step in FINAL_STEPS]))
        .group_by(GenerationRow.device_class, GenerationRow.step)
    )
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        counts.setdefault(row.device_class, {})[row.step] = row.generations
    for outcomes in counts.values():
        if recalled := outcomes.get(Step.RECALLED):
            outcomes[Step.PUBLISHED] = outcomes.get(Step.PUBLISHED, 0) + recalled
    return counts
