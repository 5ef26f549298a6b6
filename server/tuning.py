"""What the steps of a generation work with: the way to the devices, stored facts, and the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flwr.serverapp import Grid

from quantization.artifact import Manifest
from quantization.fixed_grid import FixedGrid
from quantization.policy import Policy
from quantization.renormalization import DriftDecision, decide
from server.candidate import PlannedModel, deliver, load_manifest
from server.cohort import sample
from server.folded import Blobs, FieldMoments, FieldRanges, LabStatistics, read
from server.generation import Event, Generation
from server.registry import Registry
from server.settings import ServerSettings
from strategies.messages import Delivery, DeviceHello, LayerLayout, SiteLayout
from strategies.rounds import Clock, RoundContext, RoundOutcome, RoundProgress

CALIBRATION, ASSESSMENT, TRAINING = 0, 1, 2
"""Draws of devices: all phases of a calibration ask the same ones, an assessment draws anew, training too."""


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

Result = TypeVar("Result")


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
class Tuning:
    """The tuning of one device class.

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

    def decision(self, generation: Generation, base: Base) -> DriftDecision:
        """Return what the stored moments ask for."""
        return decide_drift(FieldMoments.from_bytes(read(self.blobs, generation.moments_digest)), base)

    def field_ranges(self, generation: Generation) -> FieldRanges:
        """Return the stored statistics of the candidate."""
        return FieldRanges.from_bytes(read(self.blobs, generation.ranges_digest))

    def ask(
        self,
        round_function: Callable[..., RoundOutcome[Result]],
        request: object,
        generation: Generation,
        base: Base,
        draw: int = CALIBRATION,
        **more: object,
    ) -> RoundOutcome[Result]:
        """Return what a round of `strategies` brings.

        Args:
            round_function: The round.
            request: What it asks.
            generation: For which.
            base: The artifact that devices shall have first.
            draw: Which devices are asked.
            **more: Further arguments of the round.
        """
        context = self.context(generation, base)
        return round_function(context, self.cohort(generation, draw), request, **more)

    def context(self, generation: Generation, base: Base) -> RoundContext:
        """Return where the rounds of a generation run; devices get the base first."""
        return RoundContext(
            self.grid,
            self.settings.rounds,
            self.deliver_to(base.manifest),
            self.clock,
            lambda progress: self.on_event(RoundMoved(generation, progress)),
            lambda end: self.registry.add_round(self.model.digest, self.device_class, generation.number, end),
        )

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


Work = Callable[[Tuning, Generation, Base], tuple[Generation, Event]]
"""What is done in one step: the generation with what was found, and the event to look up in `NEXT_STEP`."""


def decide_drift(field: FieldMoments, base: Base) -> DriftDecision:
    """Return the corrections that a field's moments ask for."""
    return decide(field.plain, field.sequential, base.lab.references, base.policy.corrections)
