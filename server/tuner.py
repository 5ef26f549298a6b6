"""One generation, end to end: who is there, then each device class's own calibration, assessment and verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.serverapp import Grid

from quantization.augmentation import require_augmentations
from quantization.errors import ConfigurationError, NotFoundError, QuantFleetError, RoundFailedError
from server.candidate import PlannedModel
from server.class_tuner import tune_class
from server.cohort import by_class
from server.folded import Blobs
from server.generation import Generation, Step
from server.registry import NO_CLASS, NO_GENERATION, Registry
from server.settings import ServerSettings
from server.tuning import EventFunction, RoundMoved, StepDone, Tuning
from strategies.hello_round import hello, wait_for_nodes
from strategies.rounds import SYSTEM_CLOCK, Clock

__all__ = ["GenerationReport", "RoundMoved", "StepDone", "run_generation"]


@dataclass(frozen=True, slots=True)
class GenerationReport:
    """What one run brought.

    Attributes:
        model_digest: The model.
        nodes: Devices that were there.
        devices: Devices that said hello.
        generations: The closed generation of each class, by the class's name.
        unprepared: Devices of classes that the model was not prepared for, by the class's name; they were not asked.
    """

    model_digest: str
    nodes: int
    devices: int
    generations: Mapping[str, Generation]
    unprepared: Mapping[str, int]

    @property
    def is_published(self) -> bool:
        """Whether some class got a new generation."""
        return any(generation.step is Step.PUBLISHED for generation in self.generations.values())


def run_generation(
    grid: Grid,
    registry: Registry,
    blobs: Blobs,
    settings: ServerSettings,
    *,
    clock: Clock = SYSTEM_CLOCK,
    on_event: EventFunction = lambda _: None,
) -> GenerationReport:
    """Run one generation of every device class that is there, or finish the one that was cut off.

    A class whose rounds fail keeps what it runs, and the others go on.

    Args:
        grid: Flower's way to the devices.
        registry: Has the model, prepared for the classes.
        blobs: Has its content.
        settings: Names the model; says which devices to ask, and for how long.
        clock: Measures waits and rounds.
        on_event: Told of every step, and of replies as they come.

    Raises:
        ConfigurationError: Inputs are to be augmented in a way that the model's input does not allow.
        NotFoundError: The registry has no such model, or it was prepared for none of the classes that are there.
        RoundFailedError: No device is there, too few said hello, or every class failed.
        ConfigurationError: Every class failed because what is asked for cannot be had, such as a size.
        IllegalTransitionError: Another run tunes one of the classes now.
    """
    met = meet(grid, registry, blobs, settings, clock=clock, on_event=on_event)
    closed = {name: tune_class(tuning) for name, tuning in met.tunings.items()}
    generations = {name: generation for name, (generation, _) in closed.items()}
    failures = [failure for _, failure in closed.values() if failure is not None]
    _check_any_succeeded(generations, failures, met.unprepared, settings.model_name)
    return GenerationReport(met.model_digest, met.nodes, met.devices, generations, met.unprepared)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Who is there.

    Attributes:
        model_digest: The model that is to be tuned.
        nodes: Devices that were there.
        devices: Devices that said hello.
        tunings: What to tune each class with, by its name.
        unprepared: Devices of classes that the model was not prepared for, by the class's name.
    """

    model_digest: str
    nodes: int
    devices: int
    tunings: Mapping[str, Tuning]
    unprepared: Mapping[str, int]


def meet(
    grid: Grid,
    registry: Registry,
    blobs: Blobs,
    settings: ServerSettings,
    *,
    clock: Clock = SYSTEM_CLOCK,
    on_event: EventFunction = lambda _: None,
) -> Meeting:
    """Return who said hello, by device class; arguments and errors are those of `run_generation`."""
    model = PlannedModel.load(registry.model(settings.model_name).digest, blobs)
    require_augmentations(settings.calibration.parsed, model.plan.input_shape[1:])
    cohort, rounds = settings.cohort, settings.rounds
    nodes = wait_for_nodes(grid, cohort.expected_nodes, cohort.wait_seconds, clock=clock)
    devices = hello(
        grid,
        nodes,
        rounds,
        clock=clock,
        on_end=lambda end: registry.add_round(model.digest, NO_CLASS, NO_GENERATION, end),
    ).value
    groups = by_class(devices)
    prepared = {device_class.name for device_class in registry.device_classes(model.digest)}
    tunings = {
        name: Tuning(grid, registry, blobs, settings, clock, model, name, groups[name], on_event)
        for name in sorted(groups.keys() & prepared)
    }
    unprepared = {name: len(group) for name, group in groups.items() if name not in prepared}
    return Meeting(model.digest, len(nodes), len(devices), tunings, unprepared)


def _check_any_succeeded(
    generations: Mapping[str, Generation],
    failures: Sequence[QuantFleetError],
    unprepared: Mapping[str, int],
    model_name: str,
) -> None:
    if not generations:
        raise NotFoundError(
            f"model '{model_name}' was prepared for none of the classes that are there "
            f"({', '.join(unprepared)}); prepare it with the lab's inputs first"
        )
    if all(generation.step is Step.FAILED for generation in generations.values()):
        reasons = "; ".join(f"{name}: {generation.reason}" for name, generation in generations.items())
        is_misconfigured = failures and all(isinstance(failure, ConfigurationError) for failure in failures)
        kind = ConfigurationError if is_misconfigured else RoundFailedError
        raise kind(f"no device class finished its generation: {reasons}")
