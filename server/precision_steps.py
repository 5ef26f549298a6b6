"""Steps that find a model's precision with its fleet: second moments, probes, and the choice of weights.

Moments are of the inputs of the reference model's layers, and probes are compared with it (`server.reference`).
"""

import json
from collections.abc import Mapping
from dataclasses import replace

from server.field_probes import FieldProbes
from server.folded import read_inputs, write, write_inputs
from server.generation import Event, Generation, Step
from server.layer_probes import probe_layers
from server.precision import LayerLatency
from server.reference import Reference
from server.tuning import Base, Tuning
from server.weight_search import WeightSearch
from strategies.inputs_round import gather_inputs
from strategies.messages import Delivery
from strategies.precision_messages import ProfileRequest
from strategies.probe_round import probe
from strategies.profile_round import profile_latency


def is_precision_due(tuning: Tuning, base: Base) -> bool:
    """Return whether precision is asked for, and what devices run was not chosen for just that."""
    asked = tuning.settings.precision
    if asked is None:
        return False
    for generation in reversed(tuning.registry.generations(tuning.model.digest, tuning.device_class)):
        if generation.weights and generation.step is Step.PUBLISHED:
            chosen = json.loads(generation.weights)
            is_served = chosen["weights_digest"] == base.policy.weights_digest
            return not (is_served and chosen["asked"] == _plain(asked.to_options()))
    return True


def fold_inputs(tuning: Tuning, generation: Generation, base: Base) -> tuple[Generation, Event]:
    """Ask for the second moments of what layers read."""
    request = Reference.of(tuning, generation, base).inputs_request()
    energies = {name: seen.energy for name, seen in base.lab.inputs.items()}
    outcome = tuning.ask(gather_inputs, request, generation, base, energies=energies)
    digest = write_inputs(tuning.blobs, outcome.value.moments)
    return replace(generation, inputs_digest=digest), Event.INPUTS_FOLDED


def fold_probes(tuning: Tuning, generation: Generation, base: Base) -> tuple[Generation, Event]:
    """Have devices run the reference with one layer rounded at a time."""
    reference = Reference.of(tuning, generation, base)
    asked = probe_layers(reference, read_inputs(tuning.blobs, generation.inputs_digest))
    outcome = tuning.ask(probe, reference.probes_request(asked.probes), generation, base)
    field = FieldProbes(asked.losses, outcome.value.replies, _latencies(tuning, generation, base))
    return replace(generation, probes_digest=write(tuning.blobs, field.to_bytes())), Event.PROBES_FOLDED


def choose_weights(tuning: Tuning, generation: Generation, base: Base) -> tuple[Generation, Event]:
    """Round every layer in many ways, and choose the ways that meet what is asked for."""
    found = WeightSearch.of(tuning, generation, base).run()
    asked = tuning.settings.precision
    record = {
        "asked": _plain(asked.to_options()) if asked is not None else {},
        "weights_digest": write(tuning.blobs, found.content),
        "bit_widths": found.bit_widths,
        "float_layers": found.float_layers,
        "gain_factors": found.gain_factors,
    }
    changed = replace(
        generation, weights=json.dumps(record, sort_keys=True), precision=found.record.to_json()
    )
    return changed, Event.WEIGHTS_CHOSEN


def _latencies(tuning: Tuning, generation: Generation, base: Base) -> Mapping[str, LayerLatency]:
    """Return the class's latency table where it matters: a budget of time is asked for."""
    asked = tuning.settings.precision
    if asked is None or asked.latency_budget_seconds is None:
        return {}
    layers = tuning.model.plan.layers
    names, outputs = tuple(layer.name for layer in layers), tuple(layer.raw_output for layer in layers)
    request = ProfileRequest(Delivery(base.manifest.to_bytes()), names, outputs)
    table = tuning.ask(profile_latency, request, generation, base).value
    return {
        name: LayerLatency(seen.integer_seconds or 0.0, seen.float_seconds or seen.integer_seconds or 0.0)
        for name, seen in table.items()
    }


def _plain(options: Mapping[str, object]) -> object:
    """Return options as JSON gives them back."""
    return json.loads(json.dumps(options))
