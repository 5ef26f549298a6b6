"""The reference model of a generation: 8-bit weights and the candidate's corrections, as overrides of an artifact."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from quantization.compile_taps import compile_taps, input_layout
from quantization.errors import ConfigurationError
from quantization.layer_codes import RoundedWeights
from quantization.policy import Policy
from server.candidate import overrides_of, weight_contents
from server.generation import Generation
from server.tuning import Base, Tuning
from strategies.messages import Delivery, Overrides
from strategies.precision_messages import InputsRequest, Probe, ProbeRequest


@dataclass(frozen=True)
class Reference:
    """What weights are rounded for and compared with.

    Layers that the base keeps in float stay so here: the types of an artifact's files are fixed.

    Attributes:
        tuning: Of the device class.
        base: The artifact that devices hold.
        policy: Of the reference.
    """

    tuning: Tuning
    base: Base
    policy: Policy

    @classmethod
    def of(cls, tuning: Tuning, generation: Generation, base: Base) -> "Reference":
        """Return the reference of a generation whose moments are folded."""
        bits = tuning.registry.device_class(tuning.device_class).max_weight_bits
        layers = [
            layer.name for layer in tuning.model.plan.layers if layer.name not in base.policy.float_layers
        ]
        policy = replace(
            base.policy,
            corrections=tuning.decision(generation, base).corrections,
            bit_widths=dict.fromkeys(layers, bits),
            weights_digest="",
        )
        return cls(tuning, base, policy)

    @cached_property
    def contents(self) -> Mapping[str, bytes]:
        """The files that the reference's weights are in, by location."""
        return weight_contents(self.tuning.model, self.policy)

    @cached_property
    def overrides(self) -> Overrides:
        """What makes the base the reference."""
        return overrides_of(self.contents, self.base.manifest)

    @cached_property
    def taps(self) -> bytes:
        """Skeleton of the graph that shows what layers read."""
        model = self.tuning.model
        return compile_taps(model.content, model.plan, self.policy.float_layers)

    def changed(self, weights: RoundedWeights) -> Overrides:
        """Return the files in which the reference with these weights differs from the reference.

        Raises:
            ConfigurationError: If a layer is one that the base keeps in float.
        """
        floats = self.policy.float_layers.keys() & weights.keys()
        if floats:
            raise ConfigurationError(f"layer {min(floats)!r} runs in float and cannot be probed with codes")
        contents = weight_contents(self.tuning.model, self.policy, weights)
        return {at: content for at, content in contents.items() if content != self.contents[at]}

    def probes_request(self, probes: Collection[Probe]) -> ProbeRequest:
        """Return the request that compares the reference with probes of it."""
        delivery = Delivery(self.base.manifest.to_bytes())
        return ProbeRequest(
            delivery, self.overrides, tuple(probes), self.taps, batch_size=self.tuning.settings.batch_size
        )

    def inputs_request(
        self, layers: Collection[str] | None = None, prefix: RoundedWeights | None = None
    ) -> InputsRequest:
        """Return the request for the second moments of layers' inputs.

        Args:
            layers: Names; None for all.
            prefix: Weights that are rounded already, for cross moments with the reference; None for plain moments.

        Raises:
            ConfigurationError: If the lab did not measure how large the layers' inputs are.
        """
        model, lab = self.tuning.model, self.base.lab.inputs
        missing = [layer.name for layer in model.plan.layers if layer.name not in lab]
        if missing:
            raise ConfigurationError(
                f"the lab did not measure the input of layer {missing[0]!r}: the model was prepared by an earlier "
                "version; prepare it again, in a new registry"
            )
        exponents = {name: seen.exponent for name, seen in lab.items()}
        layout = input_layout(model.content, model.plan, exponents)
        return InputsRequest(
            Delivery(self.base.manifest.to_bytes()),
            self.taps,
            tuple(layer for layer in layout if layers is None or layer.name in layers),
            self.overrides,
            None if prefix is None else self.changed(prefix),
            self.tuning.settings.batch_size,
            recipe=self.tuning.settings.calibration,
        )
