"""Steps that judge a candidate: side by side with what devices run, on their own data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np

from quantization.assessment import AssessmentCounts, judge
from quantization.moments import ChannelMoments
from quantization.renormalization import layer_drift
from server.candidate import deliver, load_manifest
from server.folded import FieldMoments, read
from server.generation import Event, Generation
from server.tuning import ASSESSMENT, Base, Tuning
from strategies.assessment_round import assess
from strategies.messages import AssessRequest, Delivery


def assess_candidate(tuning: Tuning, generation: Generation, base: Base) -> tuple[Generation, Event]:
    """Have devices run the candidate beside what they run now."""
    manifest = load_manifest(tuning.blobs, generation.manifest_digest)
    request = AssessRequest(
        Delivery(base.manifest.to_bytes()),
        deliver(tuning.blobs, manifest, base.manifest.blobs.keys()),
        tuning.settings.batch_size,
    )
    outcome = tuning.ask(assess, request, generation, base, ASSESSMENT)
    record = {"counts": outcome.value.to_array().tolist(), "clients": outcome.replied}
    return replace(generation, assessment=json.dumps(record)), Event.ASSESSMENT_FOLDED


def judge_candidate(tuning: Tuning, generation: Generation, base: Base) -> tuple[Generation, Event]:  # noqa: ARG001  # as others
    """Publish the candidate if it is not worse."""
    record = json.loads(generation.assessment)
    moments = FieldMoments.from_bytes(read(tuning.blobs, generation.moments_digest))
    verdict = judge(
        AssessmentCounts.from_array(np.array(record["counts"], np.int64)),
        current_distance=distance(moments.plain),
        candidate_distance=distance(tuning.field_ranges(generation).moments),
    )
    record["verdict"] = asdict(verdict)
    judged = replace(generation, assessment=json.dumps(record), reason=verdict.reason)
    return judged, Event.JUDGED_NOT_WORSE if verdict.is_not_worse else Event.JUDGED_WORSE


def distance(moments: Mapping[str, ChannelMoments]) -> float | None:
    """Return how far layers are from the lab on average, in lab deviations; None where no value was seen."""
    sizes = [layer_drift(layer).size for layer in moments.values() if layer.count > 0]
    return sum(sizes) / len(sizes) if sizes else None
