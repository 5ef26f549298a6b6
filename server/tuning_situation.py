"""What the registry shows of a model, for the tuner to decide on."""

from dataclasses import dataclass

from quantization.errors import NotFoundError
from server.field_drift import DriftRules, observe
from server.generation import Step
from server.registry import Registry
from server.rollout_registry import RolloutRegistry
from server.target_versions import ServedTarget
from server.tuning_registry import GenerationOutline, TuningRegistry
from server.tuning_triggers import ClassSituation, TuningSituation


@dataclass(frozen=True, slots=True)
class Facts:
    """The registry's three faces, of one database.

    Attributes:
        registry: Models and generations.
        rollouts: Targets and rollouts.
        tuning: Runs of the tuner, and what telemetry shows.
    """

    registry: Registry
    rollouts: RolloutRegistry
    tuning: TuningRegistry


def situation(facts: Facts, model_name: str) -> TuningSituation:
    """Return what there is to decide on; a model that the registry does not have yet has no classes."""
    tuning = facts.tuning
    runs = tuning.runs(model_name, most=1)
    last = runs[0] if runs else None
    asked = tuple(
        f"{request.actor} asked" + (f": {request.reason}" if request.reason else "")
        for request in tuning.waiting_requests(model_name)
    )
    has_progressed = last is not None and last.marker != tuning.marker(model_name)
    return TuningSituation(last, has_progressed, asked, _classes(facts, model_name))


def waiting_generation(facts: Facts, model_digest: str, device_class: str) -> GenerationOutline | None:
    """Return the newest published generation of a class, if it is newer than what devices are served.

    One whose content was a target before, in whatever rollout, does not wait for anything.
    """
    outlines = facts.tuning.outlines(model_digest, device_class)
    published = [outline for outline in outlines if outline.step is Step.PUBLISHED and outline.number > 0]
    if not published:
        return None
    targets = facts.rollouts.targets(model_digest, device_class)
    contents = {target.manifest_digest for target in targets}
    newest = published[-1]
    if newest.manifest_digest in contents:
        return None
    served = _served(facts, model_digest, device_class)
    current = "" if served is None else _common(served)[1]
    number = max((outline.number for outline in outlines if outline.manifest_digest == current), default=-1)
    return newest if newest.number > number else None


def watch_drift(facts: Facts, model_name: str, rules: DriftRules) -> None:
    """Look at what devices have counted under the versions that they run, and keep what it shows."""
    for digest, device_class in _prepared(facts, model_name):
        served = _served(facts, digest, device_class)
        if served is None:
            continue
        version, manifest_digest = _common(served)
        totals = facts.tuning.totals(digest, device_class, version)
        known = facts.tuning.drift(digest, device_class)
        seen = observe(known, version, manifest_digest, totals, rules)
        if seen != known:
            facts.tuning.store_drift(digest, device_class, seen)


def _classes(facts: Facts, model_name: str) -> tuple[ClassSituation, ...]:
    return tuple(_class(facts, digest, name) for digest, name in _prepared(facts, model_name))


def _class(facts: Facts, model_digest: str, device_class: str) -> ClassSituation:
    drift = facts.tuning.drift(model_digest, device_class)
    served = _served(facts, model_digest, device_class)
    rollout = None if served is None else served.rollout
    fruitless, closed_seconds = _harvest(facts.tuning.outlines(model_digest, device_class))
    waiting = None if served is None else waiting_generation(facts, model_digest, device_class)
    return ClassSituation(
        device_class=device_class,
        is_drifting=drift.is_drifting,
        drop=drift.drop or 0.0,
        fruitless=fruitless,
        last_closed_seconds=closed_seconds,
        open_rollout=rollout.rollout_id if rollout is not None and rollout.is_open else "",
        unsigned_generation=None if waiting is None else waiting.number,
    )


def _prepared(facts: Facts, model_name: str) -> tuple[tuple[str, str], ...]:
    """Return the model's digest with each class that it was prepared for."""
    try:
        digest = facts.registry.model(model_name).digest
    except NotFoundError:
        return ()
    return tuple((digest, device_class.name) for device_class in facts.registry.device_classes(digest))


def _served(facts: Facts, model_digest: str, device_class: str) -> ServedTarget | None:
    try:
        return facts.rollouts.served(model_digest, device_class)
    except NotFoundError:
        return None


def _common(served: ServedTarget) -> tuple[int, str]:
    """Return the version, and its content, of devices that no open rollout has reached."""
    rollout = served.rollout
    if rollout is not None and rollout.is_open:
        return rollout.base_version, rollout.base_manifest_digest
    return served.versions[0].version, served.versions[0].manifest_digest


def _harvest(generations: tuple[GenerationOutline, ...]) -> tuple[int, float]:
    """Return how many generations were closed since the last good one, and when the last one was."""
    fruitless, closed_seconds = 0, 0.0
    for generation in generations:
        if generation.is_open:
            continue
        closed_seconds = generation.finished_at_seconds or closed_seconds
        fruitless = 0 if generation.step is Step.PUBLISHED else fruitless + 1
    return fruitless, closed_seconds
