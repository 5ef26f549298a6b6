"""Which content the devices of a class run by order of the update service."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.tables import RolloutRow, TargetRow


def served_manifest(session: Session, model_digest: str, device_class: str) -> str | None:
    """Return the manifest of the newest target, or, while its rollout is open, of the version before it.

    None where nothing was ever published to devices.
    """
    mine = (TargetRow.model_digest == model_digest, TargetRow.device_class == device_class)
    rollout = select(RolloutRow.base_manifest_digest).where(
        RolloutRow.model_digest == model_digest,
        RolloutRow.device_class == device_class,
        RolloutRow.finished_at_seconds.is_(None),
    )
    newest = select(TargetRow.manifest_digest).where(*mine).order_by(TargetRow.version.desc()).limit(1)
    return session.scalars(rollout).first() or session.scalars(newest).first()
