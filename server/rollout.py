"""How a new version of a target reaches the devices of a class, as a table of phases.

The rules:

1. A rollout changes by `advance` alone, which looks the pair of phase and event up in `NEXT_PHASE`.
2. Which devices have the new version is a function of the rollout's and the device's name and of the share: nothing
   is stored per device, every server process answers alike, and a share that grows drops nobody.
3. Devices outside the share keep the base version: they are what the canaries are compared with. So the last share
   lies below 1, and the whole fleet follows when the rollout is complete.
4. A version only grows. Rolling back publishes the base version's content as a newer version.

Nothing here reads a clock: whoever feeds an event passes the time.
"""

import hashlib
import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from quantization.errors import ConfigurationError, IllegalTransitionError

_POSITIONS = 1 << 64


class Phase(StrEnum):
    """Where a rollout stands; the value is what the registry stores."""

    CANARY = "canary"
    EXPANDING = "expanding"
    PAUSED = "paused"
    COMPLETE = "complete"
    ROLLED_BACK = "rolled_back"


class Event(StrEnum):
    """What happened to a rollout."""

    STEP_PASSED = "step_passed"
    LAST_STEP_PASSED = "last_step_passed"
    PROMOTED = "promoted"
    PAUSED = "paused"
    STALLED = "stalled"
    CANARY_RESUMED = "canary_resumed"
    EXPANSION_RESUMED = "expansion_resumed"
    LOADING_FAILED = "loading_failed"
    MODEL_DESTROYED = "model_destroyed"
    ACCURACY_DROPPED = "accuracy_dropped"
    AGREEMENT_DROPPED = "agreement_dropped"
    FAILURES_ROSE = "failures_rose"
    LATENCY_ROSE = "latency_rose"
    MEMORY_ROSE = "memory_rose"
    RECALLED = "recalled"


ABORTS = frozenset(
    {
        Event.LOADING_FAILED,
        Event.MODEL_DESTROYED,
        Event.ACCURACY_DROPPED,
        Event.AGREEMENT_DROPPED,
        Event.FAILURES_ROSE,
        Event.LATENCY_ROSE,
        Event.MEMORY_ROSE,
        Event.RECALLED,
    }
)
"""Events that take the new version back: telemetry's, and `RECALLED`, the operator's."""

NEXT_PHASE: dict[tuple[Phase, Event], Phase] = {
    (Phase.CANARY, Event.STEP_PASSED): Phase.EXPANDING,
    (Phase.CANARY, Event.LAST_STEP_PASSED): Phase.COMPLETE,  # a plan of one share
    (Phase.EXPANDING, Event.STEP_PASSED): Phase.EXPANDING,
    (Phase.EXPANDING, Event.LAST_STEP_PASSED): Phase.COMPLETE,
    (Phase.CANARY, Event.PAUSED): Phase.PAUSED,
    (Phase.EXPANDING, Event.PAUSED): Phase.PAUSED,
    (Phase.CANARY, Event.STALLED): Phase.PAUSED,
    (Phase.EXPANDING, Event.STALLED): Phase.PAUSED,
    (Phase.PAUSED, Event.CANARY_RESUMED): Phase.CANARY,
    (Phase.PAUSED, Event.EXPANSION_RESUMED): Phase.EXPANDING,
    (Phase.CANARY, Event.PROMOTED): Phase.COMPLETE,
    (Phase.EXPANDING, Event.PROMOTED): Phase.COMPLETE,
    (Phase.PAUSED, Event.PROMOTED): Phase.COMPLETE,
    **{
        (phase, event): Phase.ROLLED_BACK
        for phase in (Phase.CANARY, Phase.EXPANDING, Phase.PAUSED)  # devices in the share still run it
        for event in sorted(ABORTS)
    },
    (Phase.COMPLETE, Event.RECALLED): Phase.ROLLED_BACK,
}
"""Every transition there is; a pair that is not here is illegal."""

CLOSED_PHASES = frozenset({Phase.COMPLETE, Phase.ROLLED_BACK})
"""Phases in which a rollout no longer watches telemetry, and another one of its target may start."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """By which steps a new version reaches a class.

    Attributes:
        shares: Parts of the devices that have the new version, growing, each above 0 and below 1; the first is the
            canary phase. After the last one come all.
    """

    shares: tuple[float, ...] = (0.05, 0.2, 0.5)

    def __post_init__(self) -> None:
        """Refuse shares that do not grow."""
        bounds = (0.0, *self.shares, 1.0)
        if not self.shares or not all(a < b for a, b in itertools.pairwise(bounds)):
            raise ConfigurationError(f"shares of a rollout must grow, above 0 and below 1, not {self.shares}")


DEFAULT_PLAN = RolloutPlan()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout and everything known of it so far.

    Attributes:
        rollout_id: Its name, never used again: it decides which devices are canaries.
        model_digest: SHA-256 of the canonical float model, hex.
        device_class: Name of the device class.
        version: Version of the target that is rolled out.
        base_version: The version before it, which devices outside the share keep.
        manifest_digest: SHA-256 of the new version's manifest, hex.
        base_manifest_digest: Of the base version's.
        plan: By which steps.
        phase: Where it stands.
        step: Index of the present share in the plan.
        revision: Counts the transitions.
        reason: Why it stands there, in words.
        started_at_seconds: When it started, seconds since 1970 (UTC).
        step_at_seconds: When the present step or phase began.
        finished_at_seconds: When it was complete or rolled back; None while it is open.
        rolled_back_version: The version that brought the base's content back; None unless rolled back.
    """

    rollout_id: str
    model_digest: str
    device_class: str
    version: int
    base_version: int
    manifest_digest: str
    base_manifest_digest: str
    plan: RolloutPlan = DEFAULT_PLAN
    phase: Phase = Phase.CANARY
    step: int = 0
    revision: int = 0
    reason: str = ""
    started_at_seconds: float = 0.0
    step_at_seconds: float = 0.0
    finished_at_seconds: float | None = None
    rolled_back_version: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 0 <= self.base_version < self.version:
            raise ConfigurationError(f"version {self.version} cannot follow version {self.base_version}")
        if not 0 <= self.step < len(self.plan.shares):
            raise ConfigurationError(f"step {self.step} of a plan of {len(self.plan.shares)} steps")

    @property
    def is_open(self) -> bool:
        """Whether telemetry still decides."""
        return self.phase not in CLOSED_PHASES

    @property
    def share(self) -> float:
        """Part of the devices that should have the new version."""
        if self.phase is Phase.COMPLETE:
            return 1.0
        return 0.0 if self.phase is Phase.ROLLED_BACK else self.plan.shares[self.step]

    @property
    def is_last_step(self) -> bool:
        """Whether all devices are next."""
        return self.step == len(self.plan.shares) - 1


def advance(
    rollout: Rollout,
    event: Event,
    *,
    now_seconds: float,
    reason: str = "",
    rolled_back_version: int | None = None,
) -> Rollout:
    """Return the rollout after `event`.

    Args:
        rollout: Where it stands.
        event: What happened.
        now_seconds: When, seconds since 1970 (UTC).
        reason: Why, in words.
        rolled_back_version: The new version that has the base's content; given if and only if the event takes
            the version back.

    Raises:
        IllegalTransitionError: The event cannot happen in this phase or at this step, or a version is missing.
    """
    phase = NEXT_PHASE.get((rollout.phase, event))
    if phase is None or not _fits_step(rollout, event):
        known = ", ".join(sorted(possible_events(rollout))) or "none"
        raise IllegalTransitionError(
            f"event '{event}' cannot happen in phase '{rollout.phase}' at step {rollout.step + 1} of "
            f"{len(rollout.plan.shares)}; possible: {known}"
        )
    newest = rollout.version if phase is Phase.ROLLED_BACK else None
    if (newest is None) != (rolled_back_version is None) or (rolled_back_version or 0) <= (newest or -1):
        raise IllegalTransitionError(
            f"event '{event}' with version {rolled_back_version}: rolling back, and nothing else, needs a version "
            f"above {rollout.version}"
        )
    return replace(
        rollout,
        phase=phase,
        step=rollout.step + (event is Event.STEP_PASSED),
        revision=rollout.revision + 1,
        reason=reason,
        step_at_seconds=now_seconds,
        finished_at_seconds=now_seconds if phase in CLOSED_PHASES else None,
        rolled_back_version=rolled_back_version,
    )


def possible_events(rollout: Rollout) -> frozenset[Event]:
    """Return the events that `advance` takes now."""
    return frozenset(e for phase, e in NEXT_PHASE if phase is rollout.phase and _fits_step(rollout, e))


def passing_event(rollout: Rollout) -> Event:
    """Return the event that says the present step has shown enough."""
    return Event.LAST_STEP_PASSED if rollout.is_last_step else Event.STEP_PASSED


def resuming_event(rollout: Rollout) -> Event:
    """Return the event that takes a paused rollout back to where it was."""
    return Event.EXPANSION_RESUMED if rollout.step else Event.CANARY_RESUMED


def _fits_step(rollout: Rollout, event: Event) -> bool:
    """Return whether the event, where the table has it, belongs to the rollout's step."""
    if event in (Event.STEP_PASSED, Event.LAST_STEP_PASSED):
        return event is passing_event(rollout)
    if event in (Event.CANARY_RESUMED, Event.EXPANSION_RESUMED):
        return event is resuming_event(rollout)
    return True


def position(rollout_id: str, device_id: str) -> int:
    """Return where a device stands in the order of a rollout: uniform in [0, 2^64), the same for ever.

    The first 8 bytes of SHA-256 of the rollout's name, its length in front, and the device's.
    """
    named = f"{len(rollout_id)}:{rollout_id}{device_id}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8], "big")


def has_new_version(rollout: Rollout, device_id: str) -> bool:
    """Return whether the device should have the version that is rolled out."""
    return position(rollout.rollout_id, device_id) < rollout.share * _POSITIONS


def is_never_canary(rollout: Rollout, device_id: str) -> bool:
    """Return whether no share of the plan reaches the device: the others are compared with these."""
    return position(rollout.rollout_id, device_id) >= rollout.plan.shares[-1] * _POSITIONS


def target_of(rollout: Rollout, device_id: str) -> tuple[int, str]:
    """Return the version that the device should have, and the digest of its manifest."""
    if rollout.rolled_back_version is not None:
        return rollout.rolled_back_version, rollout.base_manifest_digest
    if has_new_version(rollout, device_id):
        return rollout.version, rollout.manifest_digest
    return rollout.base_version, rollout.base_manifest_digest


def plan_for(
    rollout_id: str, device_ids: Iterable[str], *, plan: RolloutPlan = DEFAULT_PLAN, canaries: int = 4
) -> RolloutPlan:
    """Return the plan with its shares raised so that at least `canaries` of these devices come first.

    A share of 5 % of a dozen devices is nobody. Of fewer than twice as many devices, half are canaries, so that some
    remain to compare with. Later shares that reach none of the devices in addition, or all of them, are left out.

    Args:
        rollout_id: The rollout's name.
        device_ids: Devices of the class that are known.
        plan: What a large fleet would get.
        canaries: Least devices of the first share.
    """
    positions = sorted(position(rollout_id, device) / _POSITIONS for device in device_ids)
    wanted = min(canaries, len(positions) // 2)
    if not wanted:
        return plan
    first = max(plan.shares[0], math.nextafter(positions[wanted - 1], 1.0))
    if first >= 1.0:
        return plan
    shares = [first]
    for share in plan.shares[1:]:
        if bisect_left(positions, shares[-1]) < bisect_left(positions, share) < len(positions):
            shares.append(share)
    return RolloutPlan(tuple(shares))
