"""What the rounds about precision say in Flower's records: an encode/decode pair for every message.

The rules are those of `strategies.records`: keys are spelled here (and `strategies.overrides`) alone; a request fixes
names, order and forms, and a reply holds one vector without names; whatever a reply holds is bounded, checked and
refused with MalformedError before it is used.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from quantization.arrays import IntArray
from quantization.errors import MalformedError
from quantization.input_observation import LayerInput, distinct
from quantization.second_moments import SecondMoments
from quantization.sensitivity import MAX_DIVERGENCE
from strategies.layer_geometry import LEAST_NUMBERS, MOST_NUMBERS, decode_geometry, encode_geometry
from strategies.messages import Delivery
from strategies.overrides import override_locations, override_records, read_overrides
from strategies.precision_messages import (
    DIVERGENCE_STEPS,
    InputsRequest,
    Probe,
    ProbeReply,
    ProbeRequest,
    ProfileReply,
    ProfileRequest,
)
from strategies.records import (
    MAX_NAME_LENGTH,
    MAX_NAMES,
    PHASE_INPUTS,
    PHASE_PROFILE,
    delivery_records,
    read_batch_size,
    read_delivery,
    read_recipe,
    recipe_settings,
)
from strategies.wire import (
    array_record,
    config_record,
    decode_bytes,
    decode_vector,
    encode_bytes,
    encode_vector,
    read_bool,
    read_int,
    read_texts,
)

MAX_GRAPH_BYTES = 16 << 20
MAX_COLUMNS_PER_BATCH = 1 << 20
MAX_SAMPLES = 1 << 22
MAX_RUNS = 10_000
MAX_KERNEL_NS = 10**12
"""Longest that one kernel may take: 1,000 s."""

_SETTINGS = "settings"
_LAYOUT = "layout"
_STATISTICS = "statistics"

_PHASE = "phase"
_BATCH_SIZE = "batch_size"
_COLUMNS_PER_BATCH = "columns_per_batch"
_MAX_SAMPLES = "max_samples"
_WITH_CROSS = "with_cross"
_LAYERS = "layers"
_TENSORS = "tensors"
_GEOMETRY = "geometry"
_GRAPH = "graph"
_PROBES = "probes"
_OUTPUTS = "outputs"
_RUNS = "runs"
_SAMPLE_COUNT = "sample_count"
_LEFT_OUT_COUNT = "left_out_count"
_SECOND_MOMENTS = "second_moments"
_COUNTS = "counts"
_TIMES = "times"

Settings = dict[
    str, int | float | str | bytes | bool | list[int] | list[float] | list[str] | list[bytes] | list[bool]
]

_PROBE_ROWS = 6
_PROFILE_ROWS = 4


def with_artifact(content: RecordDict, artifact: Delivery) -> RecordDict:
    """Return a request's content with another artifact; all else is shared, so that it is encoded once."""
    return RecordDict({**content, **delivery_records(artifact)})


def encode_inputs_request(request: InputsRequest) -> RecordDict:
    """Return the content of a calibrate message of phase "inputs"."""
    sets = (request.reference, {} if request.overrides is None else request.overrides)
    tensors = list(dict.fromkeys(layer.tensor for layer in request.layers))
    settings: Settings = {
        _PHASE: PHASE_INPUTS,
        _BATCH_SIZE: request.batch_size,
        _COLUMNS_PER_BATCH: request.columns_per_batch,
        _MAX_SAMPLES: request.max_samples,
        _WITH_CROSS: request.with_cross,
        _LAYERS: [layer.name for layer in request.layers],
        _TENSORS: tensors,
        **override_locations(sets),
        **recipe_settings(request.recipe, request.seed),
    }
    geometry = encode_geometry(request.layers, tensors)
    layout = ArrayRecord({_GRAPH: encode_bytes(request.graph), _GEOMETRY: encode_vector(geometry)})
    records = delivery_records(request.artifact) | override_records(sets)
    return RecordDict({_SETTINGS: ConfigRecord(settings), _LAYOUT: layout, **records})


def decode_inputs_request(content: RecordDict) -> InputsRequest:
    """Return what `encode_inputs_request` wrote.

    Raises:
        MalformedError: If anything is missing, of another type, or beyond its bounds.
    """
    settings, layout = config_record(content, _SETTINGS), array_record(content, _LAYOUT)
    artifact = read_delivery(content)
    reference, overrides = read_overrides(content, settings, artifact.manifest, 2)
    recipe, seed = read_recipe(content)
    return InputsRequest(
        artifact,
        decode_bytes(layout.get(_GRAPH), _GRAPH, MAX_GRAPH_BYTES),
        _read_layers(settings, layout),
        reference,
        overrides if read_bool(settings, _WITH_CROSS) else None,
        read_batch_size(content),
        read_int(settings, _COLUMNS_PER_BATCH, 1, MAX_COLUMNS_PER_BATCH),
        read_int(settings, _MAX_SAMPLES, 1, MAX_SAMPLES),
        recipe,
        seed,
    )


def encode_inputs(
    request: InputsRequest, moments: Mapping[str, SecondMoments], sample_count: int, left_out_count: int = 0
) -> RecordDict:
    """Return the reply to a calibrate message of phase "inputs".

    Args:
        request: That it answers.
        moments: By layer, of the request's forms.
        sample_count: Inputs behind them, copies included.
        left_out_count: Inputs that could not be summed.
    """
    parts = [moments[layer.name].to_array() for layer in distinct(request.layers)]
    vector = np.concatenate([np.zeros(0, np.int64), *parts])
    settings = {_SAMPLE_COUNT: sample_count, _LEFT_OUT_COUNT: left_out_count}
    return _reply(settings, _SECOND_MOMENTS, vector)


def decode_inputs(content: RecordDict, request: InputsRequest) -> tuple[tuple[SecondMoments, ...], int]:
    """Return what `encode_inputs` wrote: moments of the request's distinct sources, in order, and the samples.

    Raises:
        MalformedError: If they are of another form than asked for, not sums of any columns, or of more columns than
            so many samples have; the message names the layer.
    """
    settings = config_record(content, _SETTINGS)
    most = request.max_samples * (1 + request.recipe.copies)
    samples = read_int(settings, _SAMPLE_COUNT, 0, most)
    left_out = read_int(settings, _LEFT_OUT_COUNT, 0, most - samples)
    batches = min(samples, -(-(samples + left_out) // request.batch_size) + request.recipe.copies)
    heaviest = request.recipe.hard_weight_steps if request.recipe.is_weighted else 1
    sources = distinct(request.layers)
    sizes = [layer.elements(with_cross=request.with_cross) for layer in sources]
    vector = _vector(content, _SECOND_MOMENTS, sum(sizes))
    parts = np.split(vector, np.cumsum(sizes)[:-1]) if sources else []
    moments = tuple(
        _read_moments(part, layer, request.with_cross) for part, layer in zip(parts, sources, strict=True)
    )
    for layer, seen in zip(sources, moments, strict=True):
        if seen.count > batches * request.columns_per_batch * heaviest or (seen.count > 0) != (samples > 0):
            raise MalformedError(f"layer {layer.name!r}: {seen.count} columns of {samples} samples")
    return moments, samples


def encode_probe_request(request: ProbeRequest) -> RecordDict:
    """Return the content of a probe message."""
    sets = (request.reference, *(probe.overrides for probe in request.probes))
    settings: Settings = {
        _BATCH_SIZE: request.batch_size,
        _MAX_SAMPLES: request.max_samples,
        _PROBES: [probe.name for probe in request.probes],
        **override_locations(sets),
    }
    layout = ArrayRecord({_GRAPH: encode_bytes(request.graph)})
    records = delivery_records(request.artifact) | override_records(sets)
    return RecordDict({_SETTINGS: ConfigRecord(settings), _LAYOUT: layout, **records})


def decode_probe_request(content: RecordDict) -> ProbeRequest:
    """Return what `encode_probe_request` wrote.

    Raises:
        MalformedError: If anything is missing, of another type, or beyond its bounds.
    """
    settings = config_record(content, _SETTINGS)
    artifact = read_delivery(content)
    names = read_texts(settings, _PROBES, MAX_NAMES, MAX_NAME_LENGTH)
    reference, *probes = read_overrides(content, settings, artifact.manifest, 1 + len(names))
    return ProbeRequest(
        artifact,
        reference,
        tuple(Probe(name, overrides) for name, overrides in zip(names, probes, strict=True)),
        decode_bytes(array_record(content, _LAYOUT).get(_GRAPH), _GRAPH, MAX_GRAPH_BYTES),
        read_batch_size(content),
        read_int(settings, _MAX_SAMPLES, 1, MAX_SAMPLES),
    )


def encode_probes(replies: Sequence[ProbeReply]) -> RecordDict:
    """Return the reply to a probe message, in the order of the request's probes."""
    rows = [
        [
            reply.divergence_steps,
            reply.count,
            reply.disagreements,
            reply.labelled,
            reply.reference_hits,
            reply.probe_hits,
        ]
        for reply in replies
    ]
    return _reply({}, _COUNTS, np.array(rows, np.int64).reshape(-1, _PROBE_ROWS).T)


def decode_probes(content: RecordDict, request: ProbeRequest) -> tuple[ProbeReply, ...]:
    """Return what `encode_probes` wrote.

    Raises:
        MalformedError: If no probes of one reference on one device's samples can have given these numbers.
    """
    vector = _vector(content, _COUNTS, _PROBE_ROWS * len(request.probes))
    table = vector.reshape(_PROBE_ROWS, -1).T.tolist()
    replies = tuple(ProbeReply(*row) for row in table)
    for probe, reply in zip(request.probes, replies, strict=True):
        _check_probe(probe.name, reply, request.max_samples)
    if len({(reply.count, reply.labelled, reply.reference_hits) for reply in replies}) > 1:
        raise MalformedError("probes of one device that are not of the same samples")
    return replies


def encode_profile_request(request: ProfileRequest) -> RecordDict:
    """Return the content of a calibrate message of phase "profile"."""
    settings: Settings = {
        _PHASE: PHASE_PROFILE,
        _LAYERS: list(request.layers),
        _OUTPUTS: list(request.outputs),
        _RUNS: request.runs,
    }
    return RecordDict({_SETTINGS: ConfigRecord(settings), **delivery_records(request.artifact)})


def decode_profile_request(content: RecordDict) -> ProfileRequest:
    """Return what `encode_profile_request` wrote.

    Raises:
        MalformedError: If anything is missing, of another type, or beyond its bounds.
    """
    settings = config_record(content, _SETTINGS)
    layers = read_texts(settings, _LAYERS, MAX_NAMES, MAX_NAME_LENGTH)
    outputs = read_texts(settings, _OUTPUTS, MAX_NAMES, MAX_NAME_LENGTH)
    if len(outputs) != len(layers):
        raise MalformedError(f"{len(outputs)} outputs of {len(layers)} layers")
    return ProfileRequest(read_delivery(content), layers, outputs, read_int(settings, _RUNS, 1, MAX_RUNS))


def encode_profile(reply: ProfileReply) -> RecordDict:
    """Return the reply to a calibrate message of phase "profile"."""
    rows = (reply.integer_ns, reply.integer_runs, reply.float_ns, reply.float_runs)
    return _reply({}, _TIMES, np.array(rows, np.int64))


def decode_profile(content: RecordDict, request: ProfileRequest) -> ProfileReply:
    """Return what `encode_profile` wrote.

    Raises:
        MalformedError: If no kernels can have taken these times in so many runs.
    """
    vector = _vector(content, _TIMES, _PROFILE_ROWS * len(request.layers))
    rows = vector.reshape(_PROFILE_ROWS, -1)
    for times, runs in (rows[:2], rows[2:]):
        if ((runs != 0) & (runs != request.runs)).any() or (times < 0).any():
            raise MalformedError("kernel times that are negative, or of other runs than asked for")
        if (times > runs * MAX_KERNEL_NS).any():
            raise MalformedError("kernel times beyond 1,000 s, or of no run")
    return ProfileReply(*(tuple(row.tolist()) for row in rows))


def _read_layers(settings: Mapping[str, object], layout: Mapping[str, Array]) -> tuple[LayerInput, ...]:
    names = read_texts(settings, _LAYERS, MAX_NAMES, MAX_NAME_LENGTH)
    tensors = read_texts(settings, _TENSORS, MAX_NAMES, MAX_NAME_LENGTH)
    sizes = (len(names) * LEAST_NUMBERS, len(names) * MOST_NUMBERS)
    numbers: IntArray = decode_vector(layout.get(_GEOMETRY), _GEOMETRY, ("int64",), sizes)
    return decode_geometry(numbers, names, tensors)


def _read_moments(vector: IntArray, layer: LayerInput, with_cross: bool) -> SecondMoments:
    asked = layer.groups, layer.columns, layer.width, layer.exponent, int(with_cross)
    said = *vector[:4].tolist(), int(vector[5])
    if said != asked:
        raise MalformedError(
            f"layer {layer.name!r}: moments of form {said}, not {asked} (groups, columns, block, exponent, cross)"
        )
    try:
        return SecondMoments.from_array(vector)
    except MalformedError as error:
        raise MalformedError(f"layer {layer.name!r}: {error}") from error


def _check_probe(name: str, reply: ProbeReply, max_samples: int) -> None:
    counts = reply.disagreements, reply.labelled, reply.reference_hits, reply.probe_hits
    if not 0 <= reply.count <= max_samples or min(counts) < 0 or max(counts) > reply.count:
        raise MalformedError(f"probe {name!r:.80}: counts {counts} of {reply.count} samples")
    if max(reply.reference_hits, reply.probe_hits) > reply.labelled:
        raise MalformedError(f"probe {name!r:.80}: more hits than labels")
    if abs(reply.reference_hits - reply.probe_hits) > reply.disagreements:
        raise MalformedError(f"probe {name!r:.80}: hits that differ in more samples than the answers do")
    if not 0 <= reply.divergence_steps <= reply.count * int(MAX_DIVERGENCE) * DIVERGENCE_STEPS:
        raise MalformedError(f"probe {name!r:.80}: a divergence of {reply.divergence_sum:.3g} nats")


def _reply(settings: Mapping[str, int], key: str, vector: IntArray) -> RecordDict:
    arrays = ArrayRecord({key: encode_vector(vector)})
    return RecordDict({_SETTINGS: ConfigRecord(dict(settings)), _STATISTICS: arrays})


def _vector(content: RecordDict, key: str, size: int) -> IntArray:
    return decode_vector(array_record(content, _STATISTICS).get(key), key, ("int64",), (size, size))
