"""The check that a fleet's weights are those of all its data in one place.

It goes another way than the rounds: second moments are summed in float64 over the inputs of all devices and rounded
once, and divergences are computed from the inputs themselves. Allocation and rounding then run again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from client.precision_answers import compare
from client.tap_observer import TapObserver
from quantization.arrays import FloatArray
from quantization.im2col import sample_columns
from quantization.input_observation import LayerInput
from quantization.layer_codes import LayerCodes
from quantization.observation import finite_rows, mixed_batches
from quantization.second_moments import FRACTION_BITS, SecondMoments
from server.field_probes import FieldProbes
from server.layer_probes import LayerProbes, probe_layers
from server.precision import codes_of
from server.weight_search import WeightSearch
from strategies.precision_messages import InputsRequest, ProbeReply

InputsFunction = Callable[[int], FloatArray]
"""The node id of a device to its inputs."""


@dataclass(frozen=True, slots=True)
class WeightsComparison:
    """How alike two sets of weights are.

    Attributes:
        has_same_bits: Whether the grids of all layers are the same.
        equal_share: Part of all weights whose codes are the same.
    """

    has_same_bits: bool
    equal_share: float


def compare_weights(
    federated: Mapping[str, LayerCodes], pooled: Mapping[str, LayerCodes]
) -> WeightsComparison:
    """Return how alike the weights of a fleet and of pooled data are."""
    pairs = [(federated[name].codes, pooled[name].codes) for name in federated if name in pooled]
    same = sum(int((a == b).sum()) for a, b in pairs)
    total = sum(a.size for a, _ in pairs)
    widths = [{name: codes.bit_width for name, codes in of.items()} for of in (federated, pooled)]
    return WeightsComparison(widths[0] == widths[1], same / max(total, 1))


def pooled_weights(
    search: WeightSearch,
    request: InputsRequest,
    observer: TapObserver,
    inputs: InputsFunction,
    nodes: Sequence[int],
    *,
    node_of: Callable[[str], int],
) -> dict[str, LayerCodes]:
    """Return the weights from the inputs of all devices in one place.

    Args:
        search: That found the fleet's weights.
        request: By which devices gave their second moments.
        observer: Of the artifact that they held, with the request's graph.
        inputs: Of a device.
        nodes: Devices whose second moments were folded.
        node_of: From what a device's probes are kept under (`DeviceHello.key`) to its node.
    """
    moments = pooled_moments(request, observer, inputs, nodes)
    asked = probe_layers(search.reference, moments)
    probes = pooled_probes(search, asked, observer, lambda key: inputs(node_of(key)))
    again = search.with_statistics(moments, probes)
    return dict(codes_of(again.first_choice(), search.reference.policy))


def pooled_moments(
    request: InputsRequest, observer: TapObserver, inputs: InputsFunction, nodes: Sequence[int]
) -> dict[str, SecondMoments]:
    """Return the second moments of all inputs, summed in float64 and rounded once."""
    sums = {layer.name: _FloatSums.of(layer) for layer in request.layers}
    tensors = tuple(layer.tensor for layer in request.layers)
    with observer.taps(tensors, request.reference) as run:
        for node in nodes:
            rows = finite_rows(inputs(node)[: request.max_samples])
            for batch in mixed_batches(rows, request.batch_size):
                taps = run(batch)
                for layer in request.layers:
                    x = sample_columns(taps[layer.tensor], layer.window, request.columns_per_batch)
                    sums[layer.name].add(x)
    return {name: total.rounded() for name, total in sums.items()}


def pooled_probes(
    search: WeightSearch, asked: LayerProbes, observer: TapObserver, inputs: Callable[[str], FloatArray]
) -> FieldProbes:
    """Return what the probes cost on the inputs of the devices that measured them."""
    reference = search.reference.overrides
    expected: dict[str, FloatArray] = {}
    replies: dict[str, dict[str, ProbeReply]] = {}
    for probe in asked.probes:
        replies[probe.name] = {}
        for device in search.probes.replies[probe.name]:
            rows = finite_rows(inputs(device))
            if device not in expected:
                expected[device] = observer.logits(rows, reference)
            found = observer.logits(rows, {**reference, **probe.overrides})
            replies[probe.name][device] = compare(expected[device], found, None)
    return FieldProbes(asked.losses, replies, search.probes.latencies)


@dataclass(slots=True)
class _FloatSums:
    """Sums of one layer in float64."""

    layer: LayerInput
    gram: FloatArray
    total: FloatArray
    count: int = 0

    @classmethod
    def of(cls, layer: LayerInput) -> "_FloatSums":
        empty = layer.empty()
        return cls(layer, np.zeros(empty.gram.shape), np.zeros(empty.total.shape))

    def add(self, x: FloatArray) -> None:
        """Add columns (G, P, K)."""
        groups, blocks, block = self.total.shape
        padded = np.zeros((groups, x.shape[1], blocks * block))
        padded[..., : x.shape[2]] = x
        split = np.moveaxis(padded.reshape(groups, x.shape[1], blocks, block), 2, 1)
        self.gram = self.gram + np.swapaxes(split, 2, 3) @ split
        self.total = self.total + split.sum(2)
        self.count += x.shape[1]

    def rounded(self) -> SecondMoments:
        """Return the sums in the steps of the layer."""
        exponent = self.layer.exponent
        steps = 2.0 ** (FRACTION_BITS - exponent), 2.0 ** (FRACTION_BITS - -(-exponent // 2))
        return replace(
            self.layer.empty(),
            count=self.count,
            gram=np.rint(self.gram * steps[0]).astype(np.int64),
            total=np.rint(self.total * steps[1]).astype(np.int64),
        )
