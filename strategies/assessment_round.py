"""The candidate beside the current model on the devices' own data, as counts."""

from collections.abc import Sequence
from dataclasses import replace

from flwr.app import Message, RecordDict

from quantization.assessment import AssessmentCounts
from quantization.errors import MalformedError
from strategies.calibration_round import messages_by_manifest
from strategies.messages import AssessRequest, DeviceHello
from strategies.records import ASSESS, decode_assessment, encode_assess_request
from strategies.rounds import DeliverFunction, RoundContext, RoundOutcome


def assess(
    context: RoundContext,
    cohort: Sequence[DeviceHello],
    request: AssessRequest,
    *,
    deliver_candidate: DeliverFunction | None = None,
) -> RoundOutcome[AssessmentCounts]:
    """Return the merged counts of the cohort; `quantization.assessment.judge` says what they mean.

    Args:
        context: Where the round runs.
        cohort: The devices to ask.
        request: What to ask; its candidate goes to every device, unless `deliver_candidate` chooses.
        deliver_candidate: What a device needs of the candidate, by the digest of the manifest that it holds.

    Raises:
        RoundFailedError: If fewer than the quorum answered.
    """

    def content(digest: str) -> RecordDict:
        current = context.artifact_for(digest, request.artifact)
        candidate = request.candidate if deliver_candidate is None else deliver_candidate(digest)
        return encode_assess_request(replace(request, artifact=current, candidate=candidate))

    messages = messages_by_manifest(cohort, content, ASSESS)
    return context.run("assess", messages, _fold, AssessmentCounts.empty())


def _fold(counts: AssessmentCounts, reply: Message) -> AssessmentCounts:
    device = decode_assessment(reply.content)
    if device.devices != 1:
        raise MalformedError(f"counts of {device.devices} devices in the reply of one")
    return counts.merge(device)
