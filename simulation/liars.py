"""Devices that lie: well-formed statistics of data that nobody has.

What is malformed is refused by the rounds, and needs no simulation. These replies pass for those of an honest device:
moments are scaled, or of noise with as much energy, and costs of probes are off by up to a thousand times either way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import Context, Message, RecordDict

from quantization.arrays import FloatArray, IntArray
from quantization.input_observation import LayerInput, distinct
from quantization.second_moments import SecondMoments
from simulation.grid import FIRST_NODE_ID
from strategies.precision_records import (
    decode_inputs,
    decode_inputs_request,
    decode_probe_request,
    decode_probes,
    encode_inputs,
    encode_probes,
)
from strategies.records import (
    CALIBRATE,
    PHASE_INPUTS,
    PHASE_MOMENTS,
    PLAIN_MOMENTS,
    PROBE,
    SEQUENTIAL_MOMENTS,
    decode_moments_request,
    encode_moment_vectors,
    read_moments,
    read_phase,
    read_sample_count,
)

LARGEST_SCALE = 3.5
"""Most that a liar scales second moments by: more would be refused as implausible."""

_NOISE_COLUMNS = 64
_DECADES = 3.0  # that the cost of a probe may be off by, either way

App = Callable[[Message, Context], Message]


class LyingApp:
    """A ClientApp some of whose devices lie, always the same ones."""

    def __init__(self, app: App, devices: int, share: float, seed: int) -> None:
        """Choose the liars.

        Args:
            app: What honest devices run.
            devices: Size of the fleet.
            share: Part of the devices that lie, 0 to 1.
            seed: Of who lies, and how.
        """
        self._app = app
        self._seed = seed
        order = np.random.default_rng([seed, 5]).permutation(devices)
        self.liars = frozenset(order[: round(share * devices)].tolist())

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the device's reply, or a lie in its place."""
        reply = self._app(message, context)
        position = context.node_id - FIRST_NODE_ID
        if position not in self.liars or reply.has_error():
            return reply
        lie = self._lie(message, reply.content, np.random.default_rng([self._seed, 6, position]))
        return reply if lie is None else Message(lie, reply_to=message)

    def _lie(self, message: Message, content: RecordDict, rng: np.random.Generator) -> RecordDict | None:
        if message.metadata.message_type == PROBE:
            asked = decode_probe_request(message.content)
            seen = decode_probes(content, asked)
            factors = 10.0 ** rng.uniform(-_DECADES, _DECADES, len(seen))
            return encode_probes(
                [
                    replace(r, divergence_steps=int(r.divergence_steps * f))
                    for r, f in zip(seen, factors, strict=True)
                ]
            )
        phase = read_phase(message.content) if message.metadata.message_type == CALIBRATE else ""
        if phase == PHASE_MOMENTS:
            return _lied_channels(message.content, content, rng)
        if phase == PHASE_INPUTS:
            request = decode_inputs_request(message.content)
            moments, samples = decode_inputs(content, request)
            names = [layer.name for layer in distinct(request.layers)]
            lies = {name: _lied(true, rng) for name, true in zip(names, moments, strict=True)}
            return encode_inputs(request, _shared(request.layers, lies), samples)
        return None


def _lied_channels(asked: RecordDict, content: RecordDict, rng: np.random.Generator) -> RecordDict:
    """Return channel moments as if every value had been larger or smaller by one factor."""
    layers = decode_moments_request(asked).layers
    vectors = {}
    for key in (PLAIN_MOMENTS, SEQUENTIAL_MOMENTS):
        true = read_moments(content, key, layers)
        counts, sums = np.split(true, [2 * len(layers.names)])
        scale = float(rng.uniform(0.3, LARGEST_SCALE))
        factors = np.repeat([scale, scale**2, scale, scale**2], sum(layers.channels))
        vectors[key] = np.concatenate([counts, np.rint(sums * factors).astype(np.int64)])
    return encode_moment_vectors(vectors, read_sample_count(content))


def _shared(layers: Sequence[LayerInput], lies: Mapping[str, SecondMoments]) -> dict[str, SecondMoments]:
    """Return the lies by layer; layers that share their moments tell the same."""
    by_source = {layer.source: layer.name for layer in reversed(distinct(layers))}
    return {layer.name: lies[by_source[layer.source]] for layer in layers}


def _lied(true: SecondMoments, rng: np.random.Generator) -> SecondMoments:
    """Return the moments scaled, or those of noise with the same energy and count."""
    if true.count == 0:
        return true
    if rng.random() < 0.5:
        scale = float(rng.uniform(0.05, LARGEST_SCALE))
        gram, total = np.rint(true.gram * scale), np.rint(true.total * scale**0.5 * 0.99)
        return replace(true, gram=_symmetric(gram), total=total.astype(np.int64))
    variance = true.energy() / (true.groups * true.columns)
    noise: FloatArray = rng.normal(0, variance**0.5, (true.groups, _NOISE_COLUMNS, true.columns))
    empty = SecondMoments.empty(true.columns, true.exponent, groups=true.groups, block=true.block)
    found = empty.add_columns(noise)
    repeats = max(true.count // _NOISE_COLUMNS, 1)
    return replace(found, count=found.count * repeats, gram=found.gram * repeats, total=found.total * repeats)


def _symmetric(gram: FloatArray) -> IntArray:
    return np.asarray((gram + np.swapaxes(gram, 2, 3)) // 2, np.int64)
