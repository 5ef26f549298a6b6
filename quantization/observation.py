"""One device's statistics, from running an observation graph over its inputs.

An observation graph has outputs "mean:<layer>", "var:<layer>" and "count:<layer>" (moments of one batch,
per channel) and "values:<site>" (a strided sample of the tensor, and its exact minimum and maximum). What
cannot be used is left out and counted, so that a device with one sample, or with a broken sensor, contributes
nothing rather than garbage.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import AnyArray, FloatArray, IntArray
from quantization.errors import InvalidDataError, MalformedError
from quantization.histogram import WEIGHT_STEPS, DyadicHistogram
from quantization.moments import ChannelMoments, ChannelReference

RunFunction = Callable[[FloatArray], Mapping[str, AnyArray]]
"""One batch of inputs, shape (n, ...), to the graph's outputs by name."""

ValuesSink = Callable[[str, FloatArray, IntArray | None], None]
"""Is handed every site's name, the values that go into its histogram, and their weights, batch by batch.

Weights are in steps of 1/256, int64, one for each value; None where all count the same.
"""

MEAN, VARIANCE, COUNT, VALUES = "mean:", "var:", "count:", "values:"
"""Prefixes of output names."""


@dataclass(frozen=True, slots=True)
class BatchFloor:
    """What a batch needs before its own moments may normalise it; one of the two is enough.

    Attributes:
        samples: Inputs in the batch.
        values: Values per channel, in the layer that has the fewest. Neighbouring positions of one input are
            correlated, so this is much more than `samples`.
    """

    samples: int = 8
    values: int = 512


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What one device saw.

    Attributes:
        moments: By layer, as the contribution of one device (nothing where no batch was usable).
        histograms: By site.
        sample_count: Inputs that the moments and histograms are of.
        left_out_count: Inputs that were left out: not finite, in a batch too small to normalise, or in one
            whose moments cannot be summed (such a batch is still in the histograms).
    """

    moments: Mapping[str, ChannelMoments]
    histograms: Mapping[str, DyadicHistogram]
    sample_count: int
    left_out_count: int


def observe(
    run: RunFunction,
    inputs: FloatArray,
    references: Mapping[str, ChannelReference],
    batch_size: int,
    *,
    sites: Iterable[str] = (),
    floor: BatchFloor | None = None,
    values_sink: ValuesSink | None = None,
    weights: IntArray | None = None,
) -> Observation:
    """Return the moments of every layer in `references` and the histogram of every site in `sites`.

    Args:
        run: The observation graph.
        inputs: Shape (N, ...), float32; N may be 0.
        references: The lab's moments by layer; empty to observe none.
        batch_size: Most inputs at a time; batches are of nearly equal size.
        sites: Activation sites to observe.
        floor: For a graph that normalises by the batch's own moments: what a batch needs to be used.
        values_sink: Sees what the histograms see.
        weights: How much each input counts in the histograms, in steps of 1/256, int64 (N,); None: all the same.
            Moments have no weights: they are compared with the lab's, whose inputs all weigh the same.

    Raises:
        MalformedError: If the graph does not give the outputs that are asked for.
    """
    moments = {layer: ChannelMoments.empty(ref.channels) for layer, ref in references.items()}
    histograms = dict.fromkeys(sites, DyadicHistogram.empty())
    used = 0
    is_finite = finite_inputs(inputs)
    rows = inputs if is_finite.all() else inputs[is_finite]
    steps = np.full(len(inputs), WEIGHT_STEPS, np.int64) if weights is None else weights
    batch_steps = mixed_batches(steps[is_finite], batch_size)
    for batch, of_rows in zip(mixed_batches(rows, batch_size), batch_steps, strict=True):
        outputs = run(batch)
        seen = _batch_moments(outputs, references, len(batch), floor)
        if seen is not None:
            used += len(batch)
            moments = {layer: moments[layer].merge(seen[layer]) for layer in moments}
        for site, histogram in histograms.items():
            values = _output(outputs, VALUES + site)
            of_values = None if weights is None else value_weights(of_rows, values.size)
            histograms[site] = histogram.merge(histogram_of(values, of_values))
            if values_sink is not None:
                values_sink(site, values, of_values)
    device = {layer: layer_moments.as_device() for layer, layer_moments in moments.items()}
    return Observation(device, histograms, used, len(inputs) - used)


def observe_moments(
    run: RunFunction,
    inputs: FloatArray,
    references: Mapping[str, ChannelReference],
    batch_size: int,
    floor: BatchFloor | None = None,
) -> dict[str, ChannelMoments]:
    """Return the moments alone; see `observe`."""
    return dict(observe(run, inputs, references, batch_size, floor=floor).moments)


def observe_ranges(
    run: RunFunction,
    inputs: FloatArray,
    sites: Iterable[str],
    batch_size: int,
    values_sink: ValuesSink | None = None,
) -> dict[str, DyadicHistogram]:
    """Return the histograms alone; see `observe`."""
    return dict(observe(run, inputs, {}, batch_size, sites=sites, values_sink=values_sink).histograms)


def batches(inputs: AnyArray, batch_size: int) -> Iterator[AnyArray]:
    """Yield the inputs in as few batches as `batch_size` allows, whose sizes differ by at most one."""
    if batch_size < 1:
        raise InvalidDataError(f"batch size {batch_size} is not positive")
    parts = -(-len(inputs) // batch_size)
    for part in range(parts):
        yield inputs[len(inputs) * part // parts : len(inputs) * (part + 1) // parts]


def mixed_batches(inputs: AnyArray, batch_size: int) -> Iterator[AnyArray]:
    """Yield the inputs in batches of every k-th row, as many and as large as those of `batches`.

    What a device sees comes in runs (a person walks for a minute, then sits): a batch of neighbours would show one
    of its activities, and its own moments would hide all the rest.
    """
    parts = len(list(batches(inputs, batch_size)))
    for part in range(parts):
        yield inputs[part::parts]


def finite_inputs(inputs: FloatArray) -> NDArray[np.bool_]:
    """Return which inputs hold no NaN and no infinity, bool (N,); one that does would poison its whole batch."""
    return np.asarray(np.isfinite(inputs).all(axis=tuple(range(1, inputs.ndim))))


def finite_rows(inputs: FloatArray) -> FloatArray:
    """Return the inputs without those that hold a NaN or an infinity."""
    is_finite = finite_inputs(inputs)
    return inputs if is_finite.all() else inputs[is_finite]


def histogram_of(values: FloatArray, steps: IntArray | None) -> DyadicHistogram:
    """Return the histogram of values that count as many steps of 1/256 as given; None: 256 each."""
    return DyadicHistogram.from_values(values, None if steps is None else steps / WEIGHT_STEPS)


def value_weights(steps: IntArray, values: int) -> IntArray:
    """Return what each value of a site's sample counts, int64 (values,).

    A sample is every k-th value of the batch's tensor, batch axis first, and behind them its minimum and maximum. A
    value counts as much as the input that it comes from, which its place tells; at a border between two inputs one
    value (of 128 or more of each) may go to the neighbour, as the tensor's own size is not among the outputs.
    Minimum and maximum may come from any input: they count 256.

    Args:
        steps: Of the inputs of the batch, (N,), N at least 1.
        values: Length of the sample, at least 2.
    """
    picked = values - 2
    owners = np.arange(picked) * len(steps) // max(picked, 1)
    return np.append(steps[owners], np.full(2, WEIGHT_STEPS, np.int64))


def _batch_moments(
    outputs: Mapping[str, AnyArray],
    references: Mapping[str, ChannelReference],
    samples: int,
    floor: BatchFloor | None,
) -> dict[str, ChannelMoments] | None:
    """Return the moments of one batch by layer; None if the batch must be left out."""
    counts = {layer: int(_output(outputs, COUNT + layer).reshape(())) for layer in references}
    if floor and samples < floor.samples and min(counts.values(), default=0) < floor.values:
        return None
    seen = {}
    for layer, reference in references.items():
        mean, variance = _output(outputs, MEAN + layer), _output(outputs, VARIANCE + layer)
        if mean.shape != reference.mean.shape or variance.shape != reference.mean.shape:
            raise MalformedError(f"layer {layer}: moments of {mean.size} channels, not {reference.channels}")
        try:
            seen[layer] = ChannelMoments.from_batch(mean, variance, counts[layer], reference)
        except MalformedError:  # not finite, or too far from the reference to be summed
            return None
    return seen


def _output(outputs: Mapping[str, AnyArray], name: str) -> AnyArray:
    if name not in outputs:
        raise MalformedError(f"the observation graph has no output {name!r}")
    return outputs[name]
