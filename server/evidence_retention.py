"""Forgets what single devices counted in rollouts that ended long ago.

A rollout keeps a row for each device that it compares, of some 700 bytes, and one for each unit of evidence: with
100,000 devices that is 80 MB, for each rollout. Nothing reads them once the rollout has ended, but `rollout show`. How
it went stays, in the rollout and the audit; what a class has counted stays in its totals.
"""

from sqlalchemy import Engine, delete, exists, select

from server.database import reading, writing
from server.tables import RolloutDeviceRow, RolloutRow, RolloutUnitRow

_MOST_ROLLOUTS = 16


def forget_evidence(engine: Engine, *, before_seconds: float) -> int:
    """Remove the rows of devices of rollouts that ended before a time; return of how many, 16 at most.

    Each rollout is a transaction of its own, so that reports do not wait for long.

    Args:
        engine: Of the registry's database, migrated.
        before_seconds: Seconds since 1970 (UTC).
    """
    has_rows = exists().where(RolloutDeviceRow.rollout_id == RolloutRow.rollout_id)
    ended = (
        select(RolloutRow.rollout_id)
        .where(RolloutRow.finished_at_seconds < before_seconds, has_rows)
        .limit(_MOST_ROLLOUTS)
    )
    with reading(engine) as session:
        rollouts = session.scalars(ended).all()
    for rollout_id in rollouts:
        with writing(engine) as session:
            session.execute(delete(RolloutUnitRow).where(RolloutUnitRow.rollout_id == rollout_id))
            session.execute(delete(RolloutDeviceRow).where(RolloutDeviceRow.rollout_id == rollout_id))
    return len(rollouts)
