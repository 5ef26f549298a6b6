"""What came of a run, as plain values for JSON."""

from dataclasses import asdict
from typing import Any

from quantization.errors import NotFoundError
from server.generation import Generation
from server.tuning_runs import RunState, TuningRun
from server.tuning_situation import Facts


def result_of(facts: Facts, model_name: str, run: TuningRun) -> dict[str, Any]:
    """Return a run, and the newest generation of each class with the target that it became."""
    shown = {key: value for key, value in asdict(run).items() if key != "marker"}
    generations = []
    try:
        digest = facts.registry.model(model_name).digest
    except NotFoundError:
        digest = ""
    for device_class in facts.registry.device_classes(digest) if digest else ():
        known = facts.registry.generations(digest, device_class.name)
        if known:
            generations.append(_generation(facts, known[-1]))
    return {
        "model": model_name,
        "model_digest": digest,
        "is_completed": run.state is RunState.COMPLETED,
        "run": shown,
        "generations": generations,
    }


def _generation(facts: Facts, generation: Generation) -> dict[str, Any]:
    model, device_class = generation.model_digest, generation.device_class
    targets = facts.rollouts.targets(model, device_class)
    version = next(
        (t.version for t in reversed(targets) if t.manifest_digest == generation.manifest_digest), None
    )
    rollouts = [
        r for r in facts.rollouts.rollouts() if (r.model_digest, r.device_class) == (model, device_class)
    ]
    rollout = next((r for r in rollouts if r.version == version), None)
    return {
        "device_class": device_class,
        "number": generation.number,
        "base_number": generation.base_number,
        "step": str(generation.step),
        "reason": generation.reason,
        "clients": generation.clients,
        "manifest_digest": generation.manifest_digest,
        "size_bytes": generation.size_bytes,
        "update_bytes": generation.update_bytes,
        "version": version,
        "rollout_id": None if rollout is None else rollout.rollout_id,
        "phase": None if version is None else "complete" if rollout is None else str(rollout.phase),
    }
