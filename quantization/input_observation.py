"""Second moments of layers' inputs on one device, from running a tap graph over its own inputs; numpy alone.

A tap graph (`compile_taps`) outputs the tensors that layers read. What a batch shows is sampled (`im2col`), summed
and dropped. The rules:

1. Positions depend on shapes alone, never on values: the reference model's columns are of the same positions.
2. Layers that read the same tensor the same way have the same moments, which are summed, and travel, once.
3. A batch that cannot be summed (not finite, or beyond a layer's exponent) is left out for all layers, and counted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantization.arrays import AnyArray, FloatArray, IntArray
from quantization.errors import IncompatibleStatsError, MalformedError
from quantization.im2col import ConvWindow, sample_with_examples
from quantization.observation import RunFunction, finite_inputs
from quantization.second_moments import MAX_COLUMNS, MAX_ELEMENTS, MAX_GROUPS, SecondMoments, exponent_for

COLUMNS_PER_BATCH = 1600
"""Columns of im2col that one batch gives at most, per layer."""

HEADER_ELEMENTS = 6

Source = tuple[object, ...]
"""What makes the moments of two layers the same: tensor, window and form."""

WeightedBlock = tuple[FloatArray, IntArray | None]
"""Inputs (N, ...) and what each weighs, (N,), in steps of 1/256; None where weights are not used."""


@dataclass(frozen=True, slots=True)
class LayerInput:
    """How a layer reads its input, and the form of that input's second moments.

    Attributes:
        name: Of the layer.
        tensor: That it reads.
        window: The convolution; None for Gemm and MatMul.
        columns: Inputs of one output value within a group, K.
        exponent: Fixes the step of the sums; see `second_moments.exponent_for`.
        block: Columns of a block on the diagonal; None for the full matrix.
    """

    name: str
    tensor: str
    window: ConvWindow | None
    columns: int
    exponent: int = 0
    block: int | None = None

    def __post_init__(self) -> None:
        """Refuse forms that no moments have."""
        if not (0 < self.columns <= MAX_COLUMNS and 0 < self.groups <= MAX_GROUPS):
            raise MalformedError(f"layer {self.name!r}: {self.groups} groups of {self.columns} columns")
        if self.block is not None and not 0 < self.block <= self.columns:
            raise MalformedError(f"layer {self.name!r}: blocks of {self.block} of {self.columns} columns")
        if not -126 <= self.exponent <= 127:
            raise MalformedError(f"layer {self.name!r}: exponent {self.exponent} is not in -126 to 127")
        if self.matrices * self.width**2 > MAX_ELEMENTS:
            raise MalformedError(f"layer {self.name!r}: too many columns; choose narrower blocks")

    @property
    def groups(self) -> int:
        """Groups of the convolution, G; 1 for Gemm and MatMul."""
        return 1 if self.window is None else self.window.groups

    @property
    def width(self) -> int:
        """Columns of a block on the diagonal, B."""
        return self.block or self.columns

    @property
    def matrices(self) -> int:
        """Groups times blocks of each."""
        return self.groups * -(-self.columns // self.width)

    @property
    def source(self) -> Source:
        """What the moments depend on; equal for layers that share them."""
        return self.tensor, self.window, self.columns, self.exponent, self.block

    def empty(self, *, with_cross: bool = False) -> SecondMoments:
        """Return moments of this form, of nothing."""
        return SecondMoments.empty(
            self.columns, self.exponent, groups=self.groups, block=self.block, with_cross=with_cross
        )

    def elements(self, *, with_cross: bool = False) -> int:
        """Return the length of `SecondMoments.to_array`; times 8, the bytes that they take in a reply."""
        width = self.width
        sums = width * (width + 3) // 2 + (width * (width + 1) if with_cross else 0)
        return HEADER_ELEMENTS + self.matrices * sums


@dataclass(frozen=True, slots=True, eq=False)
class InputObservation:
    """What one device saw.

    Attributes:
        moments: By layer.
        sample_count: Inputs behind them.
        left_out_count: Inputs in batches that could not be summed.
    """

    moments: Mapping[str, SecondMoments]
    sample_count: int
    left_out_count: int


def distinct(layers: Iterable[LayerInput]) -> tuple[LayerInput, ...]:
    """Return the first layer of each source, in order."""
    first: dict[Source, LayerInput] = {}
    for layer in layers:
        first.setdefault(layer.source, layer)
    return tuple(first.values())


def with_exponents(layers: Iterable[LayerInput], lab: Mapping[str, SecondMoments]) -> tuple[LayerInput, ...]:
    """Return the layers with the exponents that the lab's moments ask for; others keep theirs."""
    return tuple(
        replace(layer, exponent=exponent_for(lab[layer.name].largest_mean_square()))
        if layer.name in lab
        else layer
        for layer in layers
    )


def split_layers(
    layers: Sequence[LayerInput], most_bytes: int, *, with_cross: bool = False
) -> Iterator[tuple[LayerInput, ...]]:
    """Yield the layers in runs, in order, whose replies take at most `most_bytes` each (or are of one source)."""
    part: list[LayerInput] = []
    for layer in layers:
        size = 8 * sum(one.elements(with_cross=with_cross) for one in distinct([*part, layer]))
        if part and size > most_bytes and layer.source not in {one.source for one in part}:
            yield tuple(part)
            part = []
        part.append(layer)
    if part:
        yield tuple(part)


def observe_inputs(
    run: RunFunction,
    inputs: FloatArray | Iterable[WeightedBlock],
    layers: Sequence[LayerInput],
    batch_size: int,
    *,
    reference_run: RunFunction | None = None,
    columns_per_batch: int = COLUMNS_PER_BATCH,
) -> InputObservation:
    """Return the second moments of the layers' inputs.

    Args:
        run: The tap graph: a batch to the tensors that the layers read, by name (the model's own input among them).
        inputs: Shape (N, ...), float32; or blocks of finite ones with weights, as `calibration_recipe.prepared_blocks`
            gives them.
        layers: Of the model, all or some.
        batch_size: Most inputs at a time.
        reference_run: The tap graph of the reference model, for cross moments; None for plain ones.
        columns_per_batch: Columns that a batch gives at most, per layer.

    Raises:
        MalformedError: If the graph does not give a tensor, or gives one of another shape.
    """
    sources = distinct(layers)
    sums = {layer.source: layer.empty(with_cross=reference_run is not None) for layer in sources}
    used = seen = 0
    for batch, weights in _mixed_batches(inputs, batch_size):
        seen += len(batch)
        if np.isfinite(batch).all():
            taps = run(batch), None if reference_run is None else reference_run(batch)
            added = _added(sums, sources, taps, weights, columns_per_batch)
            if added is not None:
                sums, used = added, used + len(batch)
    return InputObservation({layer.name: sums[layer.source] for layer in layers}, used, seen - used)


Taps = tuple[Mapping[str, AnyArray], Mapping[str, AnyArray] | None]
"""Tensors of one batch by name, and those of the reference model where it runs beside."""


def _added(
    sums: Mapping[Source, SecondMoments],
    layers: Iterable[LayerInput],
    taps: Taps,
    weights: IntArray | None,
    max_columns: int,
) -> dict[Source, SecondMoments] | None:
    """Return the sums with one batch added; None where that is impossible for any layer."""
    added: dict[Source, SecondMoments] = {}
    for layer in layers:
        x, examples = sample_with_examples(_tap(taps[0], layer), layer.window, max_columns)
        reference = None
        if taps[1] is not None:
            reference = sample_with_examples(_tap(taps[1], layer), layer.window, max_columns)[0]
        column_weights = None if weights is None else weights[examples]
        try:
            added[layer.source] = sums[layer.source].add_columns(x, reference, column_weights)
        except (MalformedError, IncompatibleStatsError):
            return None
    return added


def _tap(tensors: Mapping[str, AnyArray], layer: LayerInput) -> FloatArray:
    """Return the tensor that a layer reads.

    Raises:
        MalformedError: If it is not there, or cannot be the input of this layer.
    """
    tensor = tensors.get(layer.tensor)
    if tensor is None or tensor.dtype.kind != "f":
        raise MalformedError(f"the graph has no float tensor {layer.tensor!r} for layer {layer.name!r}")
    if layer.window is None:
        fits = tensor.ndim >= 2 and tensor.shape[-1] == layer.columns
    else:
        taps = int(np.prod(layer.window.kernel)) * tensor.shape[1] if tensor.ndim > 2 else 0
        fits = tensor.ndim == len(layer.window.kernel) + 2 and taps == layer.columns * layer.groups
    if not fits:
        raise MalformedError(
            f"tensor {layer.tensor!r} of shape {tensor.shape} is no input of layer {layer.name!r}"
        )
    return tensor


def _mixed_batches(
    inputs: FloatArray | Iterable[WeightedBlock], batch_size: int
) -> Iterator[tuple[FloatArray, IntArray | None]]:
    """Yield batches of every k-th row, as `observation.mixed_batches` does, with their weights.

    Rows that are not finite come alone, for the caller to leave out.
    """
    blocks: Iterable[WeightedBlock] = [(inputs, None)] if isinstance(inputs, np.ndarray) else inputs
    for rows, weights in blocks:
        is_finite = finite_inputs(rows)
        if not is_finite.all():
            yield rows[~is_finite], None
        usable = rows[is_finite]
        usable_weights = None if weights is None else weights[is_finite]
        parts = -(-len(usable) // batch_size)
        for part in range(parts):
            yield usable[part::parts], None if usable_weights is None else usable_weights[part::parts]
