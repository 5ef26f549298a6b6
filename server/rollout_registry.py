"""Targets and rollouts in the registry's database.

The rules:

1. A target's version is taken in the transaction that uses it: versions grow by one, without a gap, and the database
   refuses a second one of the same number.
2. A rollout changes by `advance` alone, which looks the event up in `server.rollout` and writes only if nobody
   else has moved the rollout since it was read.
3. At most one rollout of a target is open: the database refuses a second.
4. Every change adds a row to the audit, with who made it, in the same transaction.
"""

import hashlib
from dataclasses import asdict

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from quantization.errors import IllegalTransitionError, NotFoundError
from server.generation import Event as GenerationEvent
from server.generation import Step, next_step
from server.registry_part import RegistryPart
from server.rollout import ABORTS, DEFAULT_PLAN, Event, Rollout, RolloutPlan, advance, plan_for
from server.rollout_rows import (
    fleet_telemetry,
    newest_target,
    open_rollout_row,
    rollout_columns,
    rollout_of,
    target_version_of,
)
from server.tables import GenerationRow, RolloutRow, TargetRow
from server.target_versions import ServedTarget, TargetVersion
from server.targets import MAX_MANIFESTS, Assignment
from server.telemetry_codec import counts_to_json
from server.telemetry_counts import TelemetryCounts

TELEMETRY = "telemetry"
"""Who moves a rollout when no operator does."""


class RolloutRegistry(RegistryPart):
    """Facts about targets and rollouts; shares its database with `server.registry.Registry`."""

    def publish(
        self,
        model_digest: str,
        device_class: str,
        manifest_digest: str,
        *,
        reason: str,
        actor: str,
        version: int | None = None,
    ) -> TargetVersion:
        """Return a new version for all devices of the class at once: the first one, or in an emergency.

        Args:
            model_digest: A registered model.
            device_class: Name of a registered class.
            manifest_digest: What the new version is.
            reason: Why, in words.
            actor: Who publishes it.
            version: The one that it must be, because that one is signed; None for whichever is next.

        Raises:
            IllegalTransitionError: A rollout of this target is open, another version is next, or the model or class is
                not registered.
        """
        try:
            with self._writing() as session:
                if open_rollout_row(session, model_digest, device_class) is not None:
                    raise IllegalTransitionError(
                        f"a rollout of model {model_digest[:12]} on '{device_class}' is open; promote it or roll "
                        "it back first"
                    )
                target = self._add_target(
                    session, model_digest, device_class, manifest_digest, reason, wanted=version
                )
                self._audit_version(session, "target_published", target, actor=actor, reason=reason)
        except IntegrityError as error:
            raise _conflict(model_digest, device_class) from error
        return target

    def target(self, model_digest: str, device_class: str) -> TargetVersion:
        """Return the newest version of a target.

        Raises:
            NotFoundError: None was published.
        """
        with self._reading() as session:
            return newest_target(session, model_digest, device_class)

    def targets(self, model_digest: str, device_class: str) -> tuple[TargetVersion, ...]:
        """Return all versions of a target, oldest first."""
        mine = (TargetRow.model_digest == model_digest, TargetRow.device_class == device_class)
        with self._reading() as session:
            rows = session.scalars(select(TargetRow).where(*mine).order_by(TargetRow.version))
            return tuple(target_version_of(row) for row in rows)

    def served(self, model_digest: str, device_class: str, *, most: int = MAX_MANIFESTS) -> ServedTarget:
        """Return what the devices of a class should have now, whichever devices they are.

        Args:
            model_digest: Of the model.
            device_class: Name of the class.
            most: Most versions that are returned, the newest ones.

        Raises:
            NotFoundError: None was published.
        """
        mine = (TargetRow.model_digest == model_digest, TargetRow.device_class == device_class)
        with self._reading() as session:
            newest = newest_target(session, model_digest, device_class)
            rows = session.scalars(
                select(TargetRow).where(*mine).order_by(TargetRow.version.desc()).limit(most)
            )
            versions = tuple(target_version_of(row) for row in rows)
            row = session.scalars(
                select(RolloutRow).where(
                    RolloutRow.model_digest == model_digest,
                    RolloutRow.device_class == device_class,
                    RolloutRow.version == newest.version,
                )
            ).first()
            return ServedTarget(versions, None if row is None else rollout_of(row))

    def target_for(self, model_digest: str, device_class: str, device_id: str) -> Assignment:
        """Return what one device should run.

        Raises:
            NotFoundError: None was published.
        """
        return self.served(model_digest, device_class).target_for(device_id)

    def start(
        self,
        model_digest: str,
        device_class: str,
        manifest_digest: str,
        *,
        actor: str,
        reason: str = "",
        plan: RolloutPlan = DEFAULT_PLAN,
        canaries: int = 4,
        version: int | None = None,
    ) -> Rollout:
        """Return a new rollout in phase canary; its version follows the newest one, which is its base.

        Args:
            model_digest: A registered model.
            device_class: Name of a registered class.
            manifest_digest: What the new version is.
            actor: Who starts it.
            reason: Why, in words.
            plan: By which steps; shares are raised where they would be nobody of the devices that have reported.
            canaries: Least devices of the first share.
            version: The one that it must become, because that one is signed; None for whichever is next.

        Raises:
            NotFoundError: Nothing was published to compare with; `publish` the first version.
            IllegalTransitionError: A rollout of this target is open, or another version is next.
        """
        now = self._clock()
        try:
            with self._writing() as session:
                base = newest_target(session, model_digest, device_class)
                target = self._add_target(
                    session, model_digest, device_class, manifest_digest, reason, wanted=version
                )
                rollout_id = _rollout_id(target)
                counts = fleet_telemetry(session, base)
                started = Rollout(
                    rollout_id=rollout_id,
                    model_digest=model_digest,
                    device_class=device_class,
                    version=target.version,
                    base_version=base.version,
                    manifest_digest=manifest_digest,
                    base_manifest_digest=base.manifest_digest,
                    plan=plan_for(rollout_id, counts, plan=plan, canaries=canaries),
                    reason=reason,
                    started_at_seconds=now,
                    step_at_seconds=now,
                )
                session.add(
                    RolloutRow(**rollout_columns(started), fleet_counts=counts_to_json(_merged(counts)))
                )
                self._audit_version(session, "rollout_started", started, actor=actor, reason=reason)
        except IntegrityError as error:
            raise _conflict(model_digest, device_class) from error
        return started

    def advance(self, rollout: Rollout, event: Event, *, actor: str, reason: str = "") -> Rollout:
        """Move a rollout on by `event` and return it as stored; an abort publishes the base as a newer version.

        Args:
            rollout: As read or returned before.
            event: What happened.
            actor: Who moves it; `TELEMETRY` where nobody does.
            reason: Why, in words.

        Raises:
            IllegalTransitionError: The event cannot happen in this phase, somebody else has moved the rollout
                meanwhile, or a newer version has been published since.
        """
        try:
            with self._writing() as session:
                return self._advance(session, rollout, event, actor=actor, reason=reason)
        except IntegrityError as error:
            raise _conflict(rollout.model_digest, rollout.device_class) from error

    def rollout(self, rollout_id: str) -> Rollout:
        """Return a rollout.

        Raises:
            NotFoundError: There is none of that name.
        """
        with self._reading() as session:
            row = session.get(RolloutRow, rollout_id)
            if row is None:
                raise NotFoundError(f"the registry has no rollout '{rollout_id}'")
            return rollout_of(row)

    def rollouts(self, *, only_open: bool = False) -> tuple[Rollout, ...]:
        """Return all rollouts, or those that telemetry still decides, oldest first."""
        query = select(RolloutRow).order_by(RolloutRow.started_at_seconds, RolloutRow.rollout_id)
        if only_open:
            query = query.where(RolloutRow.finished_at_seconds.is_(None))
        with self._reading() as session:
            return tuple(rollout_of(row) for row in session.scalars(query))

    def _advance(
        self, session: Session, rollout: Rollout, event: Event, *, actor: str, reason: str
    ) -> Rollout:
        version = None
        if event in ABORTS:
            newest = newest_target(session, rollout.model_digest, rollout.device_class)
            if newest.version != rollout.version:
                raise IllegalTransitionError(
                    f"version {rollout.version} cannot be taken back: version {newest.version} has followed it"
                )
            version = newest.version + 1
        moved = advance(rollout, event, now_seconds=self._clock(), reason=reason, rolled_back_version=version)
        if version is not None:
            key = (rollout.model_digest, rollout.device_class, rollout.base_manifest_digest)
            self._add_target(session, *key, f"rolled back: {reason}")
            self._recall_generation(session, rollout, reason)
        statement = (
            update(RolloutRow)
            .where(RolloutRow.rollout_id == rollout.rollout_id, RolloutRow.revision == rollout.revision)
            .values(**rollout_columns(moved))
        )
        if session.connection().execute(statement).rowcount != 1:
            raise IllegalTransitionError(
                f"rollout {rollout.rollout_id} is no longer at revision {rollout.revision}: somebody else has "
                "moved it"
            )
        self._audit_version(session, event, moved, actor=actor, reason=reason)
        return moved

    def _recall_generation(self, session: Session, rollout: Rollout, reason: str) -> None:
        """Close the generation whose content is taken back, so that nothing starts from it or publishes it again."""
        if rollout.manifest_digest == rollout.base_manifest_digest:  # it is what devices return to
            return
        recalled = session.scalars(
            select(GenerationRow)
            .where(
                GenerationRow.model_digest == rollout.model_digest,
                GenerationRow.device_class == rollout.device_class,
                GenerationRow.manifest_digest == rollout.manifest_digest,
                GenerationRow.step == str(Step.PUBLISHED),
                GenerationRow.number > 0,  # the lab's own stays what everything started from
            )
            .with_for_update()
        ).first()
        if recalled is not None:
            recalled.step = str(next_step(Step.PUBLISHED, GenerationEvent.RECALLED))
            recalled.reason = f"rolled back: {reason}"
            subject = f"{rollout.model_digest}/{rollout.device_class}/{recalled.number}"
            self._audit(session, GenerationEvent.RECALLED, subject, reason=recalled.reason)

    def _add_target(
        self,
        session: Session,
        model_digest: str,
        device_class: str,
        manifest_digest: str,
        reason: str,
        *,
        wanted: int | None = None,
    ) -> TargetVersion:
        mine = (TargetRow.model_digest == model_digest, TargetRow.device_class == device_class)
        version = (session.scalar(select(func.max(TargetRow.version)).where(*mine)) or 0) + 1
        if wanted not in (None, version):
            raise IllegalTransitionError(
                f"version {version} of model {model_digest[:12]} on '{device_class}' is next, not {wanted}: another "
                "version has been published meanwhile; publish again"
            )
        target = TargetVersion(model_digest, device_class, version, manifest_digest, reason, self._clock())
        session.add(TargetRow(**asdict(target)))
        session.flush()  # here, so that two that take one version part here
        return target

    def _audit_version(
        self, session: Session, action: str, what: TargetVersion | Rollout, *, actor: str, reason: str
    ) -> None:
        subject = audit_subject(what.model_digest, what.device_class, what.version)
        self._audit(session, action, subject, actor=actor, reason=reason, **_stand_of(what))


def audit_subject(model_digest: str, device_class: str, version: int) -> str:
    """Return how the audit names one version of a target, and the rollout that brings it."""
    return f"{model_digest}/{device_class}/v{version}"


def _stand_of(what: TargetVersion | Rollout) -> dict[str, str | float]:
    """Return where a rollout stands, for the audit."""
    return {"phase": str(what.phase), "share": what.share} if isinstance(what, Rollout) else {}


def _merged(counts: dict[str, TelemetryCounts]) -> TelemetryCounts:
    merged = TelemetryCounts()
    for one in counts.values():
        merged = merged.merge(one)
    return merged


def _rollout_id(target: TargetVersion) -> str:
    """Return a name that no other rollout has, because no other one has this version."""
    named = f"{target.model_digest}/{target.device_class}/{target.version}"
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def _conflict(model_digest: str, device_class: str) -> IllegalTransitionError:
    return IllegalTransitionError(
        f"model {model_digest[:12]} on '{device_class}' cannot take a new version: a rollout is open, another "
        "version was published at the same moment, or the model or class is not registered"
    )
