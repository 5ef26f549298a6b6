"""How a canonical model is quantized: its layers, its sites, and what stays float."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layer:
    """An operator with weights whose codes travel.

    Attributes:
        name: Name of its node.
        op: "Conv", "Gemm" or "MatMul".
        weight: Name of its weight: (O, I/groups, ...) for Conv, (O, I) for Gemm, (I, O) for MatMul.
        bias: Name of its bias (O,); None for MatMul, whose bias is added in float.
        input: Tensor it reads.
        input_site: Site that this tensor's values are of.
        raw_output: Tensor it writes, before the activation.
        output_site: Site of its result behind the activation; None where the result stays float.
        channels: Number of output channels, O.
        weight_axis: Axis of the output channels in the weight.
        groups: Groups of a Conv, else 1.
        is_corrected: Its raw output is observed and corrected: every Conv and Gemm that another layer
            follows.
    """

    name: str
    op: str
    weight: str
    bias: str | None
    input: str
    input_site: str
    raw_output: str
    output_site: str | None
    channels: int
    weight_axis: int
    groups: int
    is_corrected: bool


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor with quantization parameters of its own.

    Attributes:
        name: Name of the tensor.
        minimum_is_zero: It is never negative; its range must start at 0 or operators would not fuse.
        maximum: Its range must end here at most (6 behind ReLU6); None for no limit.
        is_output: No layer follows: logits, whose range is never shrunk.
        is_computed_in_integers: Its producer writes codes; False for the input and results of float
            operators.
        sample_size: Values per example, where the shape is known.
        row_lengths: Lengths of its axes but the batch, where they are known; a sampling step must not divide
            them.
    """

    name: str
    minimum_is_zero: bool
    maximum: float | None
    is_output: bool
    is_computed_in_integers: bool
    sample_size: int | None
    row_lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FloatOp:
    """An operator that stays float, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """How a canonical model is quantized.

    Attributes:
        layers: In the order of the graph.
        sites: In the order of the graph; each has a range in a policy.
        float_ops: What stays float, with the reason.
        integer_ops: Names of the nodes besides layers that compute on codes.
        moving_ops: Names of the nodes that move codes.
        input_name: Name of the input, float32.
        input_shape: Length of its axes, None where dynamic (the first always is).
        output_names: Names of the outputs, in order.
    """

    layers: tuple[Layer, ...]
    sites: tuple[Site, ...]
    float_ops: tuple[FloatOp, ...]
    integer_ops: frozenset[str]
    moving_ops: frozenset[str]
    input_name: str
    input_shape: tuple[int | None, ...]
    output_names: tuple[str, ...]

    @property
    def corrected_layers(self) -> tuple[Layer, ...]:
        """The layers whose output channels are observed and corrected."""
        return tuple(layer for layer in self.layers if layer.is_corrected)
