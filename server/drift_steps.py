"""Steps that follow the field's drift: channel moments, histograms under the candidate's corrections, the policy."""

import json
import time
from dataclasses import asdict, replace

from quantization.artifact import Artifact, update_size_bytes
from quantization.calibration import method_from_name
from quantization.policy import Policy
from quantization.renormalization import DriftDecision
from server.candidate import (
    candidate_overrides,
    check_budget,
    compile_artifact,
    load_weights,
    store_artifact,
)
from server.folded import FieldMoments, FieldRanges, write
from server.generation import Event, Generation
from server.precision_record import PrecisionRecord
from server.ranges import choose_ranges
from server.tuning import Base, Tuning, decide_drift
from strategies.calibration_round import calibrate_moments, calibrate_ranges
from strategies.messages import Delivery, MomentsRequest, RangesRequest


def fold_moments(tuning: Tuning, generation: Generation, base: Base) -> tuple[Generation, Event]:
    """Ask for channel moments, and see how far the field has drifted."""
    settings = tuning.settings
    request = MomentsRequest(
        Delivery(base.manifest.to_bytes()),
        tuning.layers(),
        settings.batch_size,
        recipe=settings.calibration,
        seed=settings.augmentation_seed(generation.number),
    )
    outcome = tuning.ask(calibrate_moments, request, generation, base)
    field = FieldMoments(outcome.value.plain, outcome.value.sequential)
    found = replace(
        generation,
        moments_digest=write(tuning.blobs, field.to_bytes()),
        clients=outcome.replied,
        drift=_drift_json(decide_drift(field, base)),
    )
    return found, Event.MOMENTS_FOLDED


def fold_ranges(tuning: Tuning, generation: Generation, base: Base) -> tuple[Generation, Event]:
    """Ask for histograms of the model with the candidate's corrections and weights."""
    candidate = candidate_policy(tuning, generation, base)
    overrides = candidate_overrides(tuning.model, candidate, base.policy, base.manifest, tuning.blobs)
    request = RangesRequest(
        Delivery(base.manifest.to_bytes()),
        tuning.layers(),
        tuning.sites(base),
        overrides,
        tuning.settings.batch_size,
        recipe=tuning.settings.calibration,
        seed=tuning.settings.augmentation_seed(generation.number),
    )
    outcome = tuning.ask(calibrate_ranges, request, generation, base)
    field = FieldRanges(outcome.value.histograms, outcome.value.plain)
    return replace(generation, ranges_digest=write(tuning.blobs, field.to_bytes())), Event.RANGES_FOLDED


def propose(tuning: Tuning, generation: Generation, base: Base) -> tuple[Generation, Event]:
    """Make the policy that the statistics ask for, and compile it."""
    field = tuning.field_ranges(generation)
    method = method_from_name(base.policy.range_method)
    policy = replace(
        candidate_policy(tuning, generation, base),
        generation=generation.number,
        ranges=choose_ranges(tuning.model.plan, field.histograms, method, base.policy.ranges),
    )
    if policy.changes_nothing_in(base.policy):
        return replace(
            generation, reason="the field asks for what devices run already"
        ), Event.NOTHING_CHANGED
    began = time.perf_counter()
    weights = load_weights(policy, tuning.blobs)
    artifact = compile_artifact(tuning.model, policy, base.lab.references, weights)
    seconds = time.perf_counter() - began
    check_budget(artifact, tuning.registry.device_class(tuning.device_class))
    proposed = replace(
        generation,
        policy=policy.to_json_bytes().decode(),
        manifest_digest=store_artifact(tuning.blobs, artifact),
        size_bytes=artifact.size_bytes,
        update_bytes=update_size_bytes(artifact.manifest, base.manifest.blobs.keys()),
        precision=_compiled(generation.precision, artifact, seconds),
    )
    return proposed, Event.CANDIDATE_COMPILED


def candidate_policy(tuning: Tuning, generation: Generation, base: Base) -> Policy:
    """Return the candidate as far as it is decided: its corrections, and its weights where they were chosen anew."""
    corrected = replace(base.policy, corrections=tuning.decision(generation, base).corrections)
    if not generation.weights:
        return corrected
    chosen = json.loads(generation.weights)
    return replace(
        corrected,
        weights_digest=chosen["weights_digest"],
        bit_widths=chosen["bit_widths"],
        float_layers=chosen["float_layers"],
    )


def _compiled(precision: str, artifact: Artifact, seconds: float) -> str:
    """Return the record of precision, if there is one, with what compiling added."""
    if not precision:
        return ""
    record = PrecisionRecord.from_json(precision)
    stage = artifact.manifest.stages[0]
    overhead = len(artifact.manifest.to_bytes()) + stage.skeleton.stored_size_bytes
    return replace(record, overhead_bytes=overhead, tune_seconds=record.tune_seconds + seconds).to_json()


def _drift_json(decision: DriftDecision) -> str:
    layers = {name: asdict(drift) for name, drift in decision.drift.items()}
    return json.dumps({"is_drifted": decision.is_drifted, "layers": layers})
