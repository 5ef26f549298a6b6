"""One generation of one device class, step by step.

Every step is a function of the generation as the registry has it, of blobs, and of a cohort. What a step finds is
in the registry before the next begins: a run that is cut off leaves an open generation, and the next run goes on
with the step that was cut off. Steps that ask no device are functions of stored facts alone, so they give the
same policy, and the same bytes, however often a run was cut off.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from flwr.serverapp import Grid

from quantization.artifact import Manifest, update_size_bytes
from quantization.assessment import AssessmentCounts, judge
from quantization.calibration import method_from_name
from quantization.errors import QuantFleetError
from quantization.fixed_grid import FixedGrid
from quantization.moments import ChannelMoments
from quantization.policy import Policy
from quantization.renormalization import DriftDecision, decide, layer_drift
from server.candidate import (
    PlannedModel,
    channels_file,
    check_budget,
    compile_artifact,
    deliver,
    load_manifest,
    store_artifact,
)
from server.cohort import sample
from server.folded import Blobs, FieldMoments, FieldRanges, LabStatistics, read, write
from server.generation import Event, Generation, Step
from server.ranges import choose_ranges
from server.registry import Registry
from server.settings import ServerSettings, to_json
from strategies.assessment_round import assess
from strategies.calibration_round import calibrate_moments, calibrate_ranges
from strategies.messages import (
    AssessRequest,
    Delivery,
    DeviceHello,
    LayerLayout,
    MomentsRequest,
    RangesRequest,
    SiteLayout,
)
from strategies.rounds import Clock, ProgressFunction, RoundProgress

CALIBRATION, ASSESSMENT = 0, 1
"""Draws of devices: both phases of a calibration ask the same ones, an assessment draws anew."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """A generation that has moved on; `generation.step` is where it stands now."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class RoundMoved:
    """Replies that came in while a generation was in a step."""

    generation: Generation
    progress: RoundProgress


EventFunction = Callable[[StepDone | RoundMoved], None]


@dataclass(frozen=True, slots=True)
class Base:
    """What a generation starts from.

    Attributes:
        policy: That devices run.
        manifest: Of its artifact.
        lab: What the lab measured.
    """

    policy: Policy
    manifest: Manifest
    lab: LabStatistics

    @classmethod
    def load(cls, generation: Generation, registry: Registry, blobs: Blobs) -> "Base":
        """Return the base of a generation."""
        model, device_class = generation.model_digest, generation.device_class
        published = registry.generations(model, device_class)[generation.base_number]
        lab = registry.lab(model, device_class)
        return cls(
            Policy.from_json_bytes(published.policy.encode()),
            load_manifest(blobs, published.manifest_digest),
            LabStatistics.from_bytes(read(blobs, lab.statistics_digest)),
        )


@dataclass(frozen=True, slots=True)
class ClassTuner:
    """Tunes one device class.

    Attributes:
        grid: Flower's way to the devices.
        registry: Facts.
        blobs: Content.
        settings: Of the run.
        clock: Measures rounds.
        model: The float model.
        device_class: Name of the class.
        devices: Those of the class that said hello.
        on_event: Told what happens.
    """

    grid: Grid
    registry: Registry
    blobs: Blobs
    settings: ServerSettings
    clock: Clock
    model: PlannedModel
    device_class: str
    devices: tuple[DeviceHello, ...]
    on_event: EventFunction

    def tune(self) -> Generation:
        """Return the generation once it is closed: published, unchanged, rejected or failed.

        What Quantfleet raises on purpose closes it as failed, with the message as reason; what is published stays.
        Anything else leaves it open, for the next run to go on.

        Raises:
            IllegalTransitionError: Another run tunes this class now.
        """
        generation = self.resume_or_start()
        while generation.is_open:
            try:
                base = Base.load(generation, self.registry, self.blobs)
                changed, event = WORK[generation.step](self, generation, base)
            except QuantFleetError as error:
                changed, event = replace(generation, reason=str(error)), Event.GAVE_UP
            generation = self.registry.advance(changed, event)
            self.on_event(StepDone(generation))
        return generation

    def resume_or_start(self) -> Generation:
        """Return the open generation, or a new one that starts from the published one."""
        published = self.registry.published(self.model.digest, self.device_class)
        opened = self.registry.open_generation(self.model.digest, self.device_class)
        if opened is not None:
            age_seconds = self.registry.now() - opened.started_at_seconds
            if age_seconds <= self.settings.resume_seconds and opened.base_number == published.number:
                return opened
            reason = f"left open for {age_seconds:.0f} s; what devices said then no longer holds"
            self.on_event(StepDone(self.registry.advance(replace(opened, reason=reason), Event.GAVE_UP)))
        return self.registry.start_generation(
            self.model.digest,
            self.device_class,
            base_number=published.number,
            settings=to_json(self.settings),
        )

    def fold_moments(self, generation: Generation, base: Base) -> tuple[Generation, Event]:
        """Ask for channel moments, and see how far the field has drifted."""
        request = MomentsRequest(Delivery(base.manifest.to_bytes()), self.layers(), self.settings.batch_size)
        outcome = calibrate_moments(
            self.grid,
            self.cohort(generation, CALIBRATION),
            request,
            self.settings.rounds,
            deliver=self.deliver_to(base.manifest),
            clock=self.clock,
            on_progress=self.progress(generation),
        )
        field = FieldMoments(outcome.value.plain, outcome.value.sequential)
        found = replace(
            generation,
            moments_digest=write(self.blobs, field.to_bytes()),
            clients=outcome.replied,
            drift=_drift_json(_decide(field, base)),
        )
        return found, Event.MOMENTS_FOLDED

    def fold_ranges(self, generation: Generation, base: Base) -> tuple[Generation, Event]:
        """Ask for histograms of the model with the candidate's corrections."""
        decision = self.decision(generation, base)
        corrected = replace(base.policy, corrections=decision.corrections)
        is_corrected_anew = dict(corrected.corrections) != dict(base.policy.corrections)
        request = RangesRequest(
            Delivery(base.manifest.to_bytes()),
            self.layers(),
            self.sites(base),
            channels_file(self.model, corrected) if is_corrected_anew else None,
            self.settings.batch_size,
        )
        outcome = calibrate_ranges(
            self.grid,
            self.cohort(generation, CALIBRATION),
            request,
            self.settings.rounds,
            deliver=self.deliver_to(base.manifest),
            clock=self.clock,
            on_progress=self.progress(generation),
        )
        field = FieldRanges(outcome.value.histograms, outcome.value.plain)
        return replace(generation, ranges_digest=write(self.blobs, field.to_bytes())), Event.RANGES_FOLDED

    def propose(self, generation: Generation, base: Base) -> tuple[Generation, Event]:
        """Make the policy that the statistics ask for, and compile it."""
        field = self.field_ranges(generation)
        method = method_from_name(base.policy.range_method)
        policy = replace(
            base.policy,
            generation=generation.number,
            ranges=choose_ranges(self.model.plan, field.histograms, method, base.policy.ranges),
            corrections=self.decision(generation, base).corrections,
        )
        if policy.changes_nothing_in(base.policy):
            return replace(
                generation, reason="the field asks for what devices run already"
            ), Event.NOTHING_CHANGED
        artifact = compile_artifact(self.model, policy, base.lab.references)
        check_budget(artifact, self.registry.device_class(self.device_class))
        proposed = replace(
            generation,
            policy=policy.to_json_bytes().decode(),
            manifest_digest=store_artifact(self.blobs, artifact),
            size_bytes=artifact.size_bytes,
            update_bytes=update_size_bytes(artifact.manifest, base.manifest.blobs.keys()),
        )
        return proposed, Event.CANDIDATE_COMPILED

    def assess(self, generation: Generation, base: Base) -> tuple[Generation, Event]:
        """Have devices run the candidate beside what they run now."""
        manifest = load_manifest(self.blobs, generation.manifest_digest)
        request = AssessRequest(
            Delivery(base.manifest.to_bytes()),
            deliver(self.blobs, manifest, base.manifest.blobs.keys()),
            self.settings.batch_size,
        )
        outcome = assess(
            self.grid,
            self.cohort(generation, ASSESSMENT),
            request,
            self.settings.rounds,
            deliver=self.deliver_to(base.manifest),
            clock=self.clock,
            on_progress=self.progress(generation),
        )
        record = {"counts": outcome.value.to_array().tolist(), "clients": outcome.replied}
        return replace(generation, assessment=json.dumps(record)), Event.ASSESSMENT_FOLDED

    def judge(self, generation: Generation, base: Base) -> tuple[Generation, Event]:  # noqa: ARG002  # as others
        """Publish the candidate if it is not worse."""
        record = json.loads(generation.assessment)
        moments = FieldMoments.from_bytes(read(self.blobs, generation.moments_digest))
        verdict = judge(
            AssessmentCounts.from_array(np.array(record["counts"], np.int64)),
            current_distance=distance(moments.plain),
            candidate_distance=distance(self.field_ranges(generation).moments),
        )
        record["verdict"] = asdict(verdict)
        judged = replace(generation, assessment=json.dumps(record), reason=verdict.reason)
        return judged, Event.JUDGED_NOT_WORSE if verdict.is_not_worse else Event.JUDGED_WORSE

    def decision(self, generation: Generation, base: Base) -> DriftDecision:
        """Return what the stored moments ask for."""
        return _decide(FieldMoments.from_bytes(read(self.blobs, generation.moments_digest)), base)

    def field_ranges(self, generation: Generation) -> FieldRanges:
        """Return the stored statistics of the candidate."""
        return FieldRanges.from_bytes(read(self.blobs, generation.ranges_digest))

    def cohort(self, generation: Generation, draw: int) -> tuple[DeviceHello, ...]:
        """Return the devices to ask."""
        return sample(self.devices, self.settings.cohort, (generation.number, draw))

    def layers(self) -> LayerLayout:
        """Return the layers whose moments devices observe."""
        return LayerLayout.of({layer.name: layer.channels for layer in self.model.plan.corrected_layers})

    def sites(self, base: Base) -> SiteLayout:
        """Return the sites whose values devices count, and on which bins if those are fixed."""
        names = tuple(site.name for site in self.model.plan.sites)
        if not self.settings.fixed_grids:
            return SiteLayout(names)
        return SiteLayout(names, tuple(FixedGrid.around(base.lab.histograms[name]) for name in names))

    def deliver_to(self, manifest: Manifest) -> Callable[[str], Delivery]:
        """Return the function from the manifest that a device holds to what it lacks of `manifest`."""
        known = {
            generation.manifest_digest
            for generation in self.registry.generations(self.model.digest, self.device_class)
        }

        def lacking(held_digest: str) -> Delivery:
            is_known = held_digest and held_digest in known
            held = load_manifest(self.blobs, held_digest).blobs.keys() if is_known else ()
            return deliver(self.blobs, manifest, held)

        return lacking

    def progress(self, generation: Generation) -> ProgressFunction:
        """Return the function that rounds tell their progress."""
        return lambda progress: self.on_event(RoundMoved(generation, progress))


WORK: Mapping[Step, Callable[[ClassTuner, Generation, Base], tuple[Generation, Event]]] = {
    Step.STARTED: ClassTuner.fold_moments,
    Step.MOMENTS: ClassTuner.fold_ranges,
    Step.RANGES: ClassTuner.propose,
    Step.PROPOSED: ClassTuner.assess,
    Step.ASSESSED: ClassTuner.judge,
}
"""What is done in each open step; the event that it returns is looked up in `generation.NEXT_STEP`."""


def distance(moments: Mapping[str, ChannelMoments]) -> float | None:
    """Return how far layers are from the lab on average, in lab deviations; None where no value was seen."""
    sizes = [layer_drift(layer).size for layer in moments.values() if layer.count > 0]
    return sum(sizes) / len(sizes) if sizes else None


def _decide(field: FieldMoments, base: Base) -> DriftDecision:
    return decide(field.plain, field.sequential, base.lab.references, base.policy.corrections)


def _drift_json(decision: DriftDecision) -> str:
    layers = {name: asdict(drift) for name, drift in decision.drift.items()}
    return json.dumps({"is_drifted": decision.is_drifted, "layers": layers})
