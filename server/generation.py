"""The life of one generation as a table of steps.

A generation is one attempt to give one model on one device class a better policy. Each step's result is in
the registry before the step counts as done, so that a run which ends in the middle is resumed after the last
finished step, and no device is asked twice.
"""

from dataclasses import dataclass
from enum import StrEnum

from quantization.errors import IllegalTransitionError

__all__ = [
    "FINAL_STEPS",
    "NEXT_STEP",
    "Event",
    "Generation",
    "IllegalTransitionError",
    "Step",
    "next_step",
]


class Step(StrEnum):
    """Where a generation stands; the value is what the registry stores."""

    STARTED = "started"
    MOMENTS = "moments"
    INPUTS = "inputs"
    PROBES = "probes"
    WEIGHTS = "weights"
    RANGES = "ranges"
    PROPOSED = "proposed"
    ASSESSED = "assessed"
    PUBLISHED = "published"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"
    FAILED = "failed"
    RECALLED = "recalled"


class Event(StrEnum):
    """What happened to a generation."""

    MOMENTS_FOLDED = "moments_folded"
    INPUTS_FOLDED = "inputs_folded"
    PROBES_FOLDED = "probes_folded"
    WEIGHTS_CHOSEN = "weights_chosen"
    RANGES_FOLDED = "ranges_folded"
    CANDIDATE_COMPILED = "candidate_compiled"
    NOTHING_CHANGED = "nothing_changed"
    ASSESSMENT_FOLDED = "assessment_folded"
    JUDGED_NOT_WORSE = "judged_not_worse"
    JUDGED_WORSE = "judged_worse"
    LAB_CALIBRATED = "lab_calibrated"
    GAVE_UP = "gave_up"
    RECALLED = "recalled"


NEXT_STEP: dict[tuple[Step, Event], Step] = {
    (Step.STARTED, Event.LAB_CALIBRATED): Step.PUBLISHED,  # generation 0: the lab's own calibration
    (Step.STARTED, Event.MOMENTS_FOLDED): Step.MOMENTS,
    (Step.MOMENTS, Event.RANGES_FOLDED): Step.RANGES,
    (Step.MOMENTS, Event.INPUTS_FOLDED): Step.INPUTS,  # precision is asked for
    (Step.INPUTS, Event.PROBES_FOLDED): Step.PROBES,
    (Step.PROBES, Event.WEIGHTS_CHOSEN): Step.WEIGHTS,
    (Step.WEIGHTS, Event.RANGES_FOLDED): Step.RANGES,
    (Step.RANGES, Event.CANDIDATE_COMPILED): Step.PROPOSED,
    (Step.RANGES, Event.NOTHING_CHANGED): Step.UNCHANGED,
    (Step.PROPOSED, Event.ASSESSMENT_FOLDED): Step.ASSESSED,
    (Step.ASSESSED, Event.JUDGED_NOT_WORSE): Step.PUBLISHED,
    (Step.ASSESSED, Event.JUDGED_WORSE): Step.REJECTED,
    (Step.STARTED, Event.GAVE_UP): Step.FAILED,
    (Step.MOMENTS, Event.GAVE_UP): Step.FAILED,
    (Step.INPUTS, Event.GAVE_UP): Step.FAILED,
    (Step.PROBES, Event.GAVE_UP): Step.FAILED,
    (Step.WEIGHTS, Event.GAVE_UP): Step.FAILED,
    (Step.RANGES, Event.GAVE_UP): Step.FAILED,
    (Step.PROPOSED, Event.GAVE_UP): Step.FAILED,
    (Step.ASSESSED, Event.GAVE_UP): Step.FAILED,
    (Step.PUBLISHED, Event.RECALLED): Step.RECALLED,  # its rollout was rolled back
}
"""Every transition there is; a pair that is not here is illegal."""

FINAL_STEPS = frozenset({Step.PUBLISHED, Step.UNCHANGED, Step.REJECTED, Step.FAILED, Step.RECALLED})
"""Steps in which a generation is closed: no run goes on with it. What was published may still be recalled."""


def next_step(step: Step, event: Event) -> Step:
    """Return the step that follows.

    Raises:
        IllegalTransitionError: `event` cannot happen in `step`.
    """
    try:
        return NEXT_STEP[step, event]
    except KeyError:
        known = ", ".join(sorted(e for s, e in NEXT_STEP if s is step)) or "none, the step is final"
        raise IllegalTransitionError(
            f"event '{event}' cannot happen in step '{step}'; possible: {known}"
        ) from None


@dataclass(frozen=True, slots=True)
class Generation:
    """One row of the registry: a generation and everything known of it so far.

    Attributes:
        model_digest: SHA-256 of the canonical float model, hex.
        device_class: Name of the device class.
        number: Counts from 0 (the lab's calibration) by one, rejected and failed ones included.
        base_number: The published generation that it starts from; itself for generation 0.
        step: Where it stands.
        settings: The run's settings as JSON, for the record.
        moments_digest: Blob with the merged channel moments; empty before step `moments`.
        inputs_digest: Blob with the merged second moments of layers' inputs; empty before step `inputs`.
        probes_digest: Blob with what devices measured in probes; empty before step `probes`.
        weights: The weights that were chosen as JSON (digest, bit-widths, float layers); empty before step `weights`.
        precision: What allocating brought, as `server.precision_record` writes it; empty before step `weights`.
        ranges_digest: Blob with the merged histograms; empty before step `ranges`.
        policy: The policy as JSON; empty before step `proposed`.
        manifest_digest: Blob with the artifact's manifest; empty before step `proposed`.
        drift: Drift per layer as JSON.
        assessment: Merged assessment and the verdict as JSON.
        reason: Why it was published, rejected, unchanged or failed, in words.
        clients: Devices whose moments were folded.
        size_bytes: Stored bytes of the whole artifact.
        update_bytes: What a device with the base generation downloads.
        started_at_seconds: When it started, seconds since 1970 (UTC).
        finished_at_seconds: When it was closed; None while it is open.
    """

    model_digest: str
    device_class: str
    number: int
    base_number: int
    step: Step = Step.STARTED
    settings: str = "{}"
    moments_digest: str = ""
    inputs_digest: str = ""
    probes_digest: str = ""
    weights: str = ""
    precision: str = ""
    ranges_digest: str = ""
    policy: str = ""
    manifest_digest: str = ""
    drift: str = "{}"
    assessment: str = "{}"
    reason: str = ""
    clients: int = 0
    size_bytes: int = 0
    update_bytes: int = 0
    started_at_seconds: float = 0.0
    finished_at_seconds: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether a run goes on with it."""
        return self.step not in FINAL_STEPS
