"""The candidate beside the current model on the devices' own data, as counts."""

from collections.abc import Sequence
from dataclasses import replace

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from quantization.assessment import AssessmentCounts
from quantization.errors import MalformedError
from strategies.calibration_round import DeliverFunction, messages_by_manifest
from strategies.messages import AssessRequest, DeviceHello
from strategies.records import ASSESS, decode_assessment, encode_assess_request
from strategies.rounds import (
    DEFAULT_SETTINGS,
    SYSTEM_CLOCK,
    Clock,
    ProgressFunction,
    RoundOutcome,
    RoundSettings,
    run_round,
)


def assess(
    grid: Grid,
    cohort: Sequence[DeviceHello],
    request: AssessRequest,
    settings: RoundSettings = DEFAULT_SETTINGS,
    *,
    deliver: DeliverFunction | None = None,
    deliver_candidate: DeliverFunction | None = None,
    clock: Clock = SYSTEM_CLOCK,
    on_progress: ProgressFunction | None = None,
) -> RoundOutcome[AssessmentCounts]:
    """Return the merged counts of the cohort; `quantization.assessment.judge` says what they mean.

    Args:
        grid: Flower's way to the devices.
        cohort: The devices to ask.
        request: What to ask; its artifacts go to every device, unless `deliver` and `deliver_candidate`
            choose.
        settings: Quorum, deadline and batch sizes.
        deliver: What a device needs of the current artifact, by the digest of the manifest it holds.
        deliver_candidate: What it needs of the candidate, likewise.
        clock: Time that the deadline is measured in.
        on_progress: Called after every batch of replies.

    Raises:
        RoundFailedError: If fewer than the quorum answered.
    """

    def content(digest: str) -> RecordDict:
        current = request.artifact if deliver is None else deliver(digest)
        candidate = request.candidate if deliver_candidate is None else deliver_candidate(digest)
        return encode_assess_request(replace(request, artifact=current, candidate=candidate))

    messages = messages_by_manifest(cohort, content, ASSESS)
    initial = AssessmentCounts.empty()
    return run_round(grid, messages, _fold, initial, settings, clock=clock, on_progress=on_progress)


def _fold(counts: AssessmentCounts, reply: Message) -> AssessmentCounts:
    device = decode_assessment(reply.content)
    if device.devices != 1:
        raise MalformedError(f"counts of {device.devices} devices in the reply of one")
    return counts.merge(device)
