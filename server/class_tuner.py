"""One generation of one device class, step by step.

Every step is a function of the generation as the registry has it, of blobs, and of a cohort. What a step finds is
in the registry before the next begins: a run that is cut off leaves an open generation, and the next run goes on
with the step that was cut off. Steps that ask no device are functions of stored facts alone, so they give the
same policy, and the same bytes, however often a run was cut off.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from quantization.errors import QuantFleetError
from server.drift_steps import fold_moments, fold_ranges, propose
from server.generation import Event, Generation, Step
from server.precision_steps import choose_weights, fold_inputs, fold_probes, is_precision_due
from server.settings import to_json
from server.tuning import Base, StepDone, Tuning, Work
from server.verdict_steps import assess_candidate, judge_candidate


def tune_class(tuning: Tuning) -> tuple[Generation, QuantFleetError | None]:
    """Return the generation once it is closed (published, unchanged, rejected or failed), and what made it fail.

    What Quantfleet raises on purpose closes it as failed, with the message as reason; what is published stays.
    Anything else leaves it open, for the next run to go on.

    Raises:
        IllegalTransitionError: Another run tunes this class now.
    """
    return advance_until(tuning, frozenset())


def advance_until(tuning: Tuning, steps: Collection[Step]) -> tuple[Generation, QuantFleetError | None]:
    """Return the generation once it is in one of the steps, or closed; see `tune_class`."""
    generation, failure = _resume_or_start(tuning), None
    while generation.is_open and generation.step not in steps:
        try:
            base = Base.load(generation, tuning.registry, tuning.blobs)
            changed, event = WORK[generation.step](tuning, generation, base)
        except QuantFleetError as error:
            changed, event, failure = replace(generation, reason=str(error)), Event.GAVE_UP, error
        generation = tuning.registry.advance(changed, event)
        tuning.on_event(StepDone(generation))
    return generation, failure


def _resume_or_start(tuning: Tuning) -> Generation:
    """Return the open generation, or a new one that starts from the published one."""
    registry, digest, device_class = tuning.registry, tuning.model.digest, tuning.device_class
    published = registry.published(digest, device_class)
    opened = registry.open_generation(digest, device_class)
    if opened is not None:
        age_seconds = registry.now() - opened.started_at_seconds
        if age_seconds <= tuning.settings.resume_seconds and opened.base_number == published.number:
            return opened
        reason = f"left open for {age_seconds:.0f} s; what devices said then no longer holds"
        tuning.on_event(StepDone(registry.advance(replace(opened, reason=reason), Event.GAVE_UP)))
    return registry.start_generation(
        digest, device_class, base_number=published.number, settings=to_json(tuning.settings)
    )


def _fold_inputs_or_ranges(tuning: Tuning, generation: Generation, base: Base) -> tuple[Generation, Event]:
    """Go on with precision where it is asked for and not there yet, else with ranges."""
    step = fold_inputs if is_precision_due(tuning, base) else fold_ranges
    return step(tuning, generation, base)


WORK: Mapping[Step, Work] = {
    Step.STARTED: fold_moments,
    Step.MOMENTS: _fold_inputs_or_ranges,
    Step.INPUTS: fold_probes,
    Step.PROBES: choose_weights,
    Step.WEIGHTS: fold_ranges,
    Step.RANGES: propose,
    Step.PROPOSED: assess_candidate,
    Step.ASSESSED: judge_candidate,
}
"""What is done in each open step; the event that it returns is looked up in `generation.NEXT_STEP`."""
