"""What operators see, from values to the wire."""

from protos.quantfleet.v1 import admin_pb2 as pb
from server.rollout import Phase, Rollout
from server.rollout_queries import EvidenceRow, RolloutStep
from server.rollout_rules import Verdict
from server.signed_publishing import PlannedChange, Published

_PHASES = {str(phase): f"ROLLOUT_PHASE_{phase.name}" for phase in Phase}
_VERDICTS = {verdict: f"VERDICT_{verdict.name}" for verdict in Verdict}


def rollout_to_proto(rollout: Rollout, *, devices: int, generation: int) -> pb.Rollout:
    """Return a rollout with what it does not hold itself.

    Args:
        rollout: The rollout.
        devices: Devices that have reported from its target.
        generation: Number of the target's policy; 0 where it is not known.
    """
    return pb.Rollout(
        rollout_id=rollout.rollout_id,
        model_digest=bytes.fromhex(rollout.model_digest),
        device_class=rollout.device_class,
        version=rollout.version,
        generation=generation,
        manifest_digest=bytes.fromhex(rollout.manifest_digest),
        base_version=rollout.base_version,
        phase=_PHASES[rollout.phase],
        share_ratio=rollout.share,
        devices=devices,
        opened_at_seconds=rollout.started_at_seconds,
        changed_at_seconds=rollout.step_at_seconds,
        reason=rollout.reason,
    )


def first_version_to_proto(change: PlannedChange, published: Published, *, generation: int) -> pb.Rollout:
    """Return the first version of a target, which has no rollout, as if it were one that is complete."""
    return pb.Rollout(
        model_digest=bytes.fromhex(change.model_digest),
        device_class=change.device_class,
        version=published.version,
        generation=generation,
        manifest_digest=bytes.fromhex(published.manifest_digest),
        phase=pb.ROLLOUT_PHASE_COMPLETE,
        share_ratio=1.0,
        opened_at_seconds=published.at_seconds,
        changed_at_seconds=published.at_seconds,
        reason=published.reason,
    )


def step_to_proto(step: RolloutStep) -> pb.RolloutEvent:
    """Return one change of a rollout."""
    return pb.RolloutEvent(
        at_seconds=step.at_seconds,
        action=step.action,
        actor=step.actor,
        phase=_PHASES.get(step.phase),
        share_ratio=step.share,
        detail=step.reason,
    )


def evidence_to_proto(row: EvidenceRow) -> pb.RolloutEvidence:
    """Return what one rule compares."""
    return pb.RolloutEvidence(
        rule=row.rule,
        target_value=row.target or 0.0,
        base_value=row.base or 0.0,
        target_count=row.target_count,
        base_count=row.base_count,
        verdict=_VERDICTS[row.verdict],
    )


def plan_to_proto(
    change: PlannedChange, *, targets: bytes = b"", root: bytes = b""
) -> pb.PlanSigningResponse:
    """Return what has to be signed; `targets` and `root` are empty where nothing has to be."""
    names = sorted(change.names.items(), key=lambda item: item[0].version)
    return pb.PlanSigningResponse(
        model_digest=bytes.fromhex(change.model_digest),
        device_class=change.device_class,
        version=change.version,
        names=[
            pb.SignedName(
                version=name.version,
                manifest_digest=bytes.fromhex(content.digest),
                size_bytes=content.size_bytes,
            )
            for name, content in names
        ],
        targets_metadata=targets,
        root_metadata=root,
    )
