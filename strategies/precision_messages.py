"""What the server asks devices in order to choose precision, and what they answer, as values.

`strategies.precision_records` writes them into Flower's records and reads them back. *Overrides* are decoded contents
of files by location: the int8 codes of a layer's weight, and the file "channels" with all scales and biases. They
take the place of the artifact's own files in graphs that dequantize codes, so that a device runs weights of any
bit-width, and no artifact has to be built.
"""

from dataclasses import dataclass, field

from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe
from quantization.errors import ConfigurationError
from quantization.input_observation import COLUMNS_PER_BATCH, LayerInput
from strategies.messages import Delivery, Overrides

DIVERGENCE_STEPS = 1 << 20
"""Divergences travel as whole steps of 2^-20 nats."""


@dataclass(frozen=True, slots=True)
class InputsRequest:
    """Asks for the second moments of layers' inputs.

    Attributes:
        artifact: The current generation.
        graph: Skeleton of the tap graph.
        layers: Whose inputs, and in which form; names differ.
        reference: What makes the artifact the reference model; empty where it is that already.
        overrides: What makes the reference the model with the rounded prefix, whose inputs are compared with the
            reference's; None for the moments of the reference alone.
        batch_size: Samples per batch on the device.
        columns_per_batch: Columns of im2col that a batch gives at most, per layer.
        max_samples: Most samples that one device may contribute: what bounds the influence of each. It uses so many
            of the first it has.
        recipe: Which inputs weigh more, and which augmented copies join them.
        seed: Of the copies.
    """

    artifact: Delivery
    graph: bytes
    layers: tuple[LayerInput, ...]
    reference: Overrides = field(default_factory=dict)
    overrides: Overrides | None = None
    batch_size: int = 32
    columns_per_batch: int = COLUMNS_PER_BATCH
    max_samples: int = 4096
    recipe: CalibrationRecipe = DEFAULT_RECIPE
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse requests that no reply could follow."""
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise ConfigurationError("second moments of one layer are asked for twice")
        if min(self.batch_size, self.columns_per_batch, self.max_samples) < 1:
            raise ConfigurationError("batches, columns and samples must be positive")

    @property
    def with_cross(self) -> bool:
        """Whether the reference model runs beside."""
        return self.overrides is not None


@dataclass(frozen=True, slots=True)
class Probe:
    """One change of the reference model whose cost is measured.

    Attributes:
        name: Unique in its round.
        overrides: All files in which the probed model differs from the reference.
    """

    name: str
    overrides: Overrides


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Asks for the reference model beside probes of it.

    Attributes:
        artifact: The current generation.
        reference: What makes the artifact the reference model; empty where it is that already.
        probes: What to compare it with; names differ.
        graph: Skeleton of the tap graph, which runs twice as fast as the artifact's own plain graph; empty to use that.
        batch_size: Samples per batch on the device.
        max_samples: Most samples that one device uses.
    """

    artifact: Delivery
    reference: Overrides
    probes: tuple[Probe, ...]
    graph: bytes = b""
    batch_size: int = 32
    max_samples: int = 4096

    def __post_init__(self) -> None:
        """Refuse requests that no reply could follow."""
        if len({probe.name for probe in self.probes}) != len(self.probes):
            raise ConfigurationError("two probes have the same name")
        if min(self.batch_size, self.max_samples) < 1:
            raise ConfigurationError("batches and samples must be positive")


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """What one device measured of one probe.

    Attributes:
        divergence_steps: `sensitivity.tempered_divergence` of reference and probe over the samples, in steps of
            2^-20 nats.
        count: Samples.
        disagreements: Samples for which the two choose different classes.
        labelled: Samples with a label.
        reference_hits: Of these, the reference's right answers.
        probe_hits: Of these, the probe's right answers.
    """

    divergence_steps: int
    count: int
    disagreements: int
    labelled: int
    reference_hits: int
    probe_hits: int

    @property
    def divergence_sum(self) -> float:
        """The divergence over all samples, in nats."""
        return self.divergence_steps / DIVERGENCE_STEPS


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """Asks how long each layer's kernel takes, in integers and in float, at batch 1 on one thread.

    Attributes:
        artifact: The current generation.
        layers: Names; they differ.
        outputs: What each layer's node writes (`Layer.raw_output`): where ONNX Runtime changes the memory layout of a
            float Conv, it names the new node after that.
        runs: Measured inferences of each graph, after a few to warm up.
    """

    artifact: Delivery
    layers: tuple[str, ...]
    outputs: tuple[str, ...]
    runs: int = 20

    def __post_init__(self) -> None:
        """Refuse requests that no reply could follow."""
        if len(set(self.layers)) != len(self.layers) or len(set(self.outputs)) != len(self.layers):
            raise ConfigurationError("a profile needs different layers, each with its output")
        if self.runs < 1:
            raise ConfigurationError(f"{self.runs} runs")


@dataclass(frozen=True, slots=True)
class ProfileReply:
    """Kernel times on one device, in the order of the request's layers.

    Attributes:
        integer_ns: Nanoseconds over all runs of the integer graph.
        integer_runs: Runs behind them; 0 where the layer was not found in the profile.
        float_ns: Nanoseconds over all runs of the float graph.
        float_runs: Runs behind them, likewise.
    """

    integer_ns: tuple[int, ...]
    integer_runs: tuple[int, ...]
    float_ns: tuple[int, ...]
    float_runs: tuple[int, ...]
