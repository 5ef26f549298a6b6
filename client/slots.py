"""Which artifact serves, which one is on trial, and which one there is to go back to.

The rules, of which `NEXT_PHASE` holds every transition:

1. Two artifacts are never in doubt at once: one serves (`active`), one may be tried (`candidate`), and the one that
   served before it (`fallback`) is kept to go back to.
2. A candidate is written down before it is loaded and before it serves. A device that dies over it finds it so, and
   tries it `MAX_ATTEMPTS` times in all before it refuses it: it may have been a power cut.
3. A target that was refused is not tried again, nor is an older one. Whoever wants it tried again publishes it as a
   newer version.
4. The first artifact of a device has no trial: there is nothing to go back to.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from quantization.blob import check_digest
from quantization.errors import IllegalTransitionError, MalformedError

MAX_ATTEMPTS = 3
"""Times that a candidate is loaded for its test, and times that a device starts with it on trial."""

MAX_SLOTS_BYTES = 4096
MAX_VERSION = (1 << 63) - 1
_FORMAT_VERSION = 1


class Phase(StrEnum):
    """Where a device stands with the artifact that it was last told to install."""

    IDLE = "idle"
    """Nothing was tried yet."""
    STAGED = "staged"
    """Everything that the candidate names is held."""
    TESTING = "testing"
    """The candidate is being loaded and tested."""
    TRIAL = "trial"
    """The candidate serves, watched."""
    CONFIRMED = "confirmed"
    """What was the candidate serves for good."""
    REVERTED = "reverted"
    """What was the candidate was refused, and what served before it serves."""


class Event(StrEnum):
    """What happens to a device's slots."""

    TARGET_STAGED = "target_staged"
    TARGET_UNCHANGED = "target_unchanged"
    """A newer version names what serves already."""
    TEST_STARTED = "test_started"
    TEST_PASSED = "test_passed"
    TEST_FAILED = "test_failed"
    TRIAL_PASSED = "trial_passed"
    TRIAL_FAILED = "trial_failed"
    RESTARTED = "restarted"
    """The process that tested or tried the candidate ended before the end of it."""
    GIVEN_UP = "given_up"
    """It did so `MAX_ATTEMPTS` times."""
    CANDIDATE_LOST = "candidate_lost"
    """A blob of the candidate was found damaged: it is to be fetched and staged again."""
    ROLLED_BACK = "rolled_back"
    """The device's owner wants what served before."""
    FALLBACK_DROPPED = "fallback_dropped"
    """Its disk space is needed."""
    INSTALLED = "installed"
    """An artifact was made the active one without a trial."""


_RESTING = (Phase.IDLE, Phase.CONFIRMED, Phase.REVERTED)

NEXT_PHASE: dict[tuple[Phase, Event], Phase] = {
    **{(phase, Event.TARGET_STAGED): Phase.STAGED for phase in (*_RESTING, Phase.STAGED)},
    **{(phase, Event.TARGET_UNCHANGED): phase for phase in _RESTING},
    **{(phase, Event.FALLBACK_DROPPED): phase for phase in (*_RESTING, Phase.STAGED)},
    **{(phase, Event.INSTALLED): Phase.CONFIRMED for phase in (*_RESTING, Phase.STAGED)},
    **{(phase, Event.ROLLED_BACK): Phase.REVERTED for phase in _RESTING},
    (Phase.STAGED, Event.TEST_STARTED): Phase.TESTING,
    (Phase.STAGED, Event.CANDIDATE_LOST): Phase.IDLE,
    (Phase.TESTING, Event.CANDIDATE_LOST): Phase.IDLE,
    (Phase.TRIAL, Event.CANDIDATE_LOST): Phase.IDLE,
    (Phase.TESTING, Event.TEST_PASSED): Phase.TRIAL,
    (Phase.TESTING, Event.TEST_FAILED): Phase.REVERTED,
    (Phase.TESTING, Event.RESTARTED): Phase.STAGED,
    (Phase.TESTING, Event.GIVEN_UP): Phase.REVERTED,
    (Phase.TRIAL, Event.RESTARTED): Phase.TRIAL,
    (Phase.TRIAL, Event.GIVEN_UP): Phase.REVERTED,
    (Phase.TRIAL, Event.TRIAL_PASSED): Phase.CONFIRMED,
    (Phase.TRIAL, Event.TRIAL_FAILED): Phase.REVERTED,
}
"""Every transition; what happens in any other phase is our own bug."""


@dataclass(frozen=True, slots=True)
class Target:
    """An artifact that a device is told to run.

    Attributes:
        version: Grows with every publication for one model and device class; 0 for what came another way.
        manifest_digest: Names the artifact.
    """

    version: int
    manifest_digest: str

    def __post_init__(self) -> None:
        """Refuse what no target can be."""
        check_digest(self.manifest_digest)
        if not isinstance(self.version, int) or not 0 <= self.version <= MAX_VERSION:
            raise MalformedError(f"target version {self.version!r:.80}")


@dataclass(frozen=True, slots=True)
class Slots:
    """What a device has installed.

    Attributes:
        phase: Where it stands.
        active: Serves, but while a candidate is on trial; None before the first.
        candidate: Is staged, tested or tried; None in other phases.
        fallback: Served before `active`; None where there is none.
        attempts: Times that the candidate was tested, or that a process started with it on trial.
        refused_version: Of the last target that was refused; 0 before the first.
    """

    phase: Phase = Phase.IDLE
    active: Target | None = None
    candidate: Target | None = None
    fallback: Target | None = None
    attempts: int = 0
    refused_version: int = 0

    def __post_init__(self) -> None:
        """Refuse slots that no transition leads to."""
        if (self.candidate is None) is not (self.phase in _RESTING):
            raise MalformedError(f"slots of phase {self.phase} and candidate {self.candidate}")
        if self.phase is Phase.TRIAL and self.active is None:
            raise MalformedError("slots of a trial with nothing to go back to")

    @property
    def serving(self) -> Target | None:
        """What serves after a restart; None before the first artifact."""
        return self.candidate if self.phase is Phase.TRIAL else self.active

    @property
    def targets(self) -> tuple[Target, ...]:
        """Whatever has content on this device that must stay, what serves first."""
        named = (self.serving, self.active, self.candidate, self.fallback)
        return tuple(dict.fromkeys(target for target in named if target is not None))

    def wants(self, target: Target) -> bool:
        """Return whether a target is newer than whatever this device runs, tries or refused."""
        known = max((slot.version for slot in (self.active, self.candidate) if slot), default=-1)
        return target.version > max(known, self.refused_version)

    def advance(self, event: Event, target: Target | None = None) -> "Slots":
        """Return the slots after an event.

        Args:
            event: What happened.
            target: Which one was staged, installed, or found unchanged; None for other events.

        Raises:
            IllegalTransitionError: If it cannot happen in this phase, or there is nothing to roll back to.
        """
        phase = NEXT_PHASE.get((self.phase, event))
        if phase is None:
            raise IllegalTransitionError(f"{event} cannot happen while {self.phase}")
        if event in (Event.TARGET_STAGED, Event.TARGET_UNCHANGED, Event.INSTALLED):
            return self._with_target(phase, event, target)
        if event is Event.FALLBACK_DROPPED:
            return replace(self, fallback=None)
        if event is Event.ROLLED_BACK:
            if self.active is None or self.fallback is None:
                raise IllegalTransitionError("there is no earlier artifact on this device to go back to")
            refused = max(self.active.version, self.refused_version)
            return Slots(phase, active=self.fallback, refused_version=refused)
        return self._with_candidate(phase, event)

    def _with_target(self, phase: Phase, event: Event, target: Target | None) -> "Slots":
        if target is None:
            raise IllegalTransitionError(f"{event} needs a target")
        if event is Event.TARGET_STAGED:
            return replace(self, phase=phase, candidate=target, attempts=0)
        fallback = self.fallback if event is Event.TARGET_UNCHANGED else self.active
        return replace(self, phase=phase, active=target, candidate=None, fallback=fallback, attempts=0)

    def _with_candidate(self, phase: Phase, event: Event) -> "Slots":
        """Return the slots after an event of the candidate."""
        candidate = self.candidate
        if candidate is None:
            raise IllegalTransitionError(f"{event} needs a candidate")
        if event is Event.TEST_PASSED and self.active is None:
            return Slots(Phase.CONFIRMED, active=candidate, refused_version=self.refused_version)
        if event is Event.TRIAL_PASSED:
            return replace(
                self, phase=phase, active=candidate, candidate=None, fallback=self.active, attempts=0
            )
        if phase is Phase.REVERTED:
            refused = max(candidate.version, self.refused_version)
            return replace(self, phase=phase, candidate=None, attempts=0, refused_version=refused)
        if phase is Phase.IDLE:
            return replace(self, phase=phase, candidate=None, attempts=0)
        starts = event is Event.TEST_STARTED or (phase is Phase.TRIAL and event is Event.RESTARTED)
        attempts = 0 if event is Event.TEST_PASSED else self.attempts + starts
        return replace(self, phase=phase, attempts=attempts)

    def after_restart(self) -> "Slots":
        """Return the slots as a process that starts must see them: rule 2."""
        if self.phase not in (Phase.TESTING, Phase.TRIAL):
            return self
        return self.advance(Event.GIVEN_UP if self.attempts >= MAX_ATTEMPTS else Event.RESTARTED)

    def to_bytes(self) -> bytes:
        """Return the slots as JSON, with the SHA-256 of it in front."""
        text = json.dumps({"format": _FORMAT_VERSION, **asdict(self)}, sort_keys=True).encode()
        return hashlib.sha256(text).hexdigest().encode() + b"\n" + text

    @classmethod
    def from_bytes(cls, data: bytes) -> "Slots":
        """Return what `to_bytes` wrote.

        Raises:
            MalformedError: If the bytes are anything else.
        """
        digest, _, text = data.partition(b"\n")
        if len(data) > MAX_SLOTS_BYTES or hashlib.sha256(text).hexdigest().encode() != digest:
            raise MalformedError("the slots are damaged: their digest is not that of their content")
        try:
            fields = json.loads(text)
            if fields.pop("format") != _FORMAT_VERSION:
                raise MalformedError("slots of another format; update this software")
            targets = {
                name: None if fields[name] is None else Target(**fields[name])
                for name in ("active", "candidate", "fallback")
            }
            return cls(**{**fields, **targets, "phase": Phase(fields["phase"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise MalformedError(f"not the slots of a device: {error}") from error
