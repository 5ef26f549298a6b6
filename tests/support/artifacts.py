"""Real artifacts of small models, for tests of what builds, carries and runs them."""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import models
import numpy as np

from quantization.artifact import Artifact, build_artifact
from quantization.calibration import Range
from quantization.compile import compile_inference
from quantization.compile_observation import compile_observation
from quantization.graph import GraphPlan, analyze, canonicalize
from quantization.moments import ChannelReference
from quantization.policy import Policy
from quantization.renormalization import ChannelCorrection


@dataclass(frozen=True, slots=True)
class Example:
    """A canonical model with its plan and the lab's moments (of nowhere, but different in every channel)."""

    model: bytes
    plan: GraphPlan
    references: dict[str, ChannelReference]

    def artifact(
        self,
        generation: int = 0,
        *,
        width: float = 4.0,
        bits: int = 8,
        corrections: dict[str, ChannelCorrection] | None = None,
        is_observed: bool = True,
    ) -> Artifact:
        """Return an artifact whose sites all have the range -width to width."""
        policy = Policy(
            model_digest=sha256(self.model).hexdigest(),
            device_class="x86-vnni",
            generation=generation,
            ranges={site.name: Range(-width, width) for site in self.plan.sites},
            bit_widths={layer.name: bits for layer in self.plan.layers},
            corrections=corrections or {},
            range_method="mse",
        )
        inference = compile_inference(self.model, self.plan, policy)
        observation = None
        if is_observed:
            observation = compile_observation(self.model, self.plan, policy, self.references)
        return build_artifact(inference, observation, policy, self.plan)

    def inputs(self, count: int, seed: int = 0) -> np.ndarray:
        """Return normal inputs, float32 (count, ...)."""
        return models.example_inputs(self.model, count, seed)


@cache
def example(name: str = "residual_cnn") -> Example:
    """Return one of `models.ALL_MODELS`, made canonical."""
    model = canonicalize(models.ALL_MODELS[name]())
    plan = analyze(model)
    rng = np.random.default_rng(7)
    references = {
        layer.name: ChannelReference(
            rng.normal(size=layer.channels), rng.uniform(0.5, 1.5, layer.channels), 1000 + layer.channels
        )
        for layer in plan.corrected_layers
    }
    return Example(model, plan, references)
