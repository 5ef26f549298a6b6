"""The probes of a model's layers: the reference with one layer at a time rounded coarsely."""

from collections.abc import Mapping
from dataclasses import dataclass

from quantization.second_moments import SecondMoments
from server.precision import codes_of, probe_grid, round_options
from server.reference import Reference
from strategies.precision_messages import Probe


@dataclass(frozen=True, slots=True)
class LayerProbes:
    """What devices are asked to try.

    Attributes:
        probes: One for every layer that has codes, named as the layer.
        losses: By layer: the exact loss of the probed weights.
    """

    probes: tuple[Probe, ...]
    losses: Mapping[str, float]


def probe_layers(reference: Reference, moments: Mapping[str, SecondMoments]) -> LayerProbes:
    """Return the probes of all layers, rounded by the moments of their inputs."""
    tuning, policy = reference.tuning, reference.policy
    bits = tuning.registry.device_class(tuning.device_class).max_weight_bits
    options = round_options(tuning.model, policy, moments, [probe_grid(bits)])
    rounded = {name: of[0] for name, of in options.items() if name not in policy.float_layers}
    weights = codes_of(rounded, policy)
    probes = tuple(Probe(name, reference.changed({name: weights[name]})) for name in rounded)
    return LayerProbes(probes, {name: option.loss for name, option in rounded.items()})
