"""What rounds say in Flower's records: every key, and an encode/decode pair for every message.

The rules (docs/formats/records.md has the layout):

1. Keys are spelled here and nowhere else.
2. A request fixes the names and their order (layers with their channels, sites with their grids); a reply
   holds one vector per kind of statistics in that order, and no names.
3. Requests come from the operator, replies from anyone: whatever a reply holds is bounded, checked and
   refused with MalformedError before it is used.
4. `decode(encode(x)) == x`, bit for bit.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from quantization.arrays import AnyArray, IntArray
from quantization.assessment import AssessmentCounts
from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe
from quantization.errors import ConfigurationError, MalformedError
from quantization.fixed_grid import FixedGrid
from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments
from strategies.messages import (
    AssessRequest,
    Delivery,
    DeviceHello,
    LayerLayout,
    MomentsRequest,
    RangesRequest,
    SiteLayout,
)
from strategies.moment_sum import pack_moments, vector_size
from strategies.overrides import override_locations, override_records, read_overrides
from strategies.packed_histograms import (
    MAX_FREE_LENGTH,
    SHIFTS,
    SUMMARY_ROWS,
    DensePart,
    FreePart,
    PackedHistograms,
    pack_histograms,
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
    read_text,
    read_texts,
)

HELLO = "query.hello"
CALIBRATE = "query.calibrate"
ASSESS = "query.assess"
PROBE = "query.probe"
"""Types of message; the part behind the dot is the action a ClientApp registers."""

PHASE_MOMENTS = "moments"
PHASE_RANGES = "ranges"
PHASE_INPUTS = "inputs"
PHASE_PROFILE = "profile"
PHASES = (PHASE_MOMENTS, PHASE_RANGES, PHASE_INPUTS, PHASE_PROFILE)

MAX_NAMES = 1 << 14
MAX_NAME_LENGTH = 512
MAX_MANIFEST_BYTES = 1 << 20
MAX_BLOB_BYTES = (256 << 20) + 8
MAX_BATCH = 1 << 16
MAX_SAMPLES = 1 << 40
MAX_CAPABILITIES = 64
MAX_DEVICE_NAME = 128
MAX_RECIPE_LENGTH = 512
MAX_SEED = (1 << 63) - 1

_UNSIGNED = ("uint16", "uint32")

_SETTINGS = "settings"
_MANIFEST = "manifest"
_BLOBS = "blobs"
_CANDIDATE_MANIFEST = "candidate_manifest"
_CANDIDATE_BLOBS = "candidate_blobs"
_DATA = "data"
_LAYOUT = "layout"
_STATISTICS = "statistics"

_PHASE = "phase"
_BATCH_SIZE = "batch_size"
_RECIPE = "calibration"
_SEED = "calibration_seed"
_LAYERS = "layers"
_SITES = "sites"
_HAS_GRIDS = "has_grids"
_HAS_OVERRIDES = "has_overrides"
_CHANNEL_COUNTS = "channel_counts"
_GRIDS = "grids"
_SAMPLE_COUNT = "sample_count"
_HAS_LABELS = "has_labels"
_DEVICE_CLASS = "device_class"
_GENERATION = "generation"
_MANIFEST_DIGEST = "manifest_digest"
_CAPABILITIES = "capabilities"
_DEVICE_NAME = "device_name"
_COUNTS = "counts"
_SHIFT = "shift"
_DENSE_COUNTS = "dense_counts"
_DENSE_SUMMARY = "dense_summary"
_DENSE_BOUNDS = "dense_bounds"
_FREE_SITES = "free_sites"
_FREE_LENGTHS = "free_lengths"
_FREE_HISTOGRAMS = "free_histograms"

PLAIN_MOMENTS = "plain_moments"
SEQUENTIAL_MOMENTS = "sequential_moments"


def encode_hello_request() -> RecordDict:
    """Return the content of a hello, which asks nothing in particular."""
    return RecordDict({_SETTINGS: ConfigRecord({_PHASE: "hello"})})


def encode_hello(hello: DeviceHello) -> RecordDict:
    """Return the reply to a hello; the node's id travels in the message itself."""
    settings = ConfigRecord(
        {
            _DEVICE_CLASS: hello.device_class,
            _GENERATION: hello.generation,
            _MANIFEST_DIGEST: hello.manifest_digest,
            _SAMPLE_COUNT: hello.sample_count,
            _HAS_LABELS: hello.has_labels,
            _CAPABILITIES: list(hello.capabilities),
        }
    )
    if hello.name:
        settings[_DEVICE_NAME] = hello.name
    return RecordDict({_SETTINGS: settings})


def decode_hello(content: RecordDict, node_id: int) -> DeviceHello:
    """Return what `encode_hello` wrote.

    Raises:
        MalformedError: If a field is missing, of another type, or too long.
    """
    settings = config_record(content, _SETTINGS)
    digest = read_text(settings, _MANIFEST_DIGEST, 64)
    if digest and not _is_digest(digest):
        raise MalformedError(f"{_MANIFEST_DIGEST} {digest!r} is not a SHA-256 in hex")
    return DeviceHello(
        node_id,
        read_text(settings, _DEVICE_CLASS, 63),
        read_int(settings, _GENERATION, -1, 1 << 40),
        digest,
        read_int(settings, _SAMPLE_COUNT, 0, MAX_SAMPLES),
        read_bool(settings, _HAS_LABELS),
        read_texts(settings, _CAPABILITIES, MAX_CAPABILITIES, 64),
        read_text(settings, _DEVICE_NAME, MAX_DEVICE_NAME) if _DEVICE_NAME in settings else "",
    )


def read_phase(content: RecordDict) -> str:
    """Return which phase of calibration a request is for.

    Raises:
        MalformedError: If it is none that this version knows.
    """
    phase = read_text(config_record(content, _SETTINGS), _PHASE, 32)
    if phase not in PHASES:
        raise MalformedError(f"unknown calibration phase {phase!r}; update the device's software")
    return phase


def encode_moments_request(request: MomentsRequest) -> RecordDict:
    """Return the content of a calibrate message of phase "moments"."""
    settings = _settings(PHASE_MOMENTS, request)
    records = delivery_records(request.artifact, _MANIFEST, _BLOBS)
    return RecordDict({_SETTINGS: settings, _LAYOUT: _layout_record(request.layers, None), **records})


def decode_moments_request(content: RecordDict) -> MomentsRequest:
    """Return what `encode_moments_request` wrote.

    Raises:
        MalformedError: If anything is missing, of another type, or beyond its bounds.
    """
    return MomentsRequest(
        read_delivery(content, _MANIFEST, _BLOBS),
        _read_layers(content),
        read_batch_size(content),
        *read_recipe(content),
    )


def encode_ranges_request(request: RangesRequest) -> RecordDict:
    """Return the content of a calibrate message of phase "ranges"."""
    settings = _settings(PHASE_RANGES, request)
    settings[_SITES] = list(request.sites.names)
    settings[_HAS_GRIDS] = request.sites.grids is not None
    settings[_HAS_OVERRIDES] = bool(request.overrides)
    records = delivery_records(request.artifact, _MANIFEST, _BLOBS)
    layout = _layout_record(request.layers, request.sites.grids)
    if request.overrides:
        settings.update(override_locations([request.overrides]))
        records |= override_records([request.overrides])
    return RecordDict({_SETTINGS: settings, _LAYOUT: layout, **records})


def decode_ranges_request(content: RecordDict) -> RangesRequest:
    """Return what `encode_ranges_request` wrote.

    Raises:
        MalformedError: If anything is missing, of another type, or beyond its bounds.
    """
    settings, layout = config_record(content, _SETTINGS), array_record(content, _LAYOUT)
    names = read_texts(settings, _SITES, MAX_NAMES, MAX_NAME_LENGTH)
    grids = _read_grids(layout, len(names)) if read_bool(settings, _HAS_GRIDS) else None
    delivery, overrides = read_delivery(content, _MANIFEST, _BLOBS), {}
    if read_bool(settings, _HAS_OVERRIDES):
        (overrides,) = read_overrides(content, settings, delivery.manifest, 1)
    return RangesRequest(
        delivery,
        _read_layers(content),
        SiteLayout(names, grids),
        overrides,
        read_batch_size(content),
        *read_recipe(content),
    )


def encode_assess_request(request: AssessRequest) -> RecordDict:
    """Return the content of an assess message."""
    settings = ConfigRecord({_BATCH_SIZE: request.batch_size})
    records = delivery_records(request.artifact, _MANIFEST, _BLOBS)
    records |= delivery_records(request.candidate, _CANDIDATE_MANIFEST, _CANDIDATE_BLOBS)
    return RecordDict({_SETTINGS: settings, **records})


def decode_assess_request(content: RecordDict) -> AssessRequest:
    """Return what `encode_assess_request` wrote.

    Raises:
        MalformedError: If anything is missing, of another type, or beyond its bounds.
    """
    return AssessRequest(
        read_delivery(content, _MANIFEST, _BLOBS),
        read_delivery(content, _CANDIDATE_MANIFEST, _CANDIDATE_BLOBS),
        read_batch_size(content),
    )


def encode_moments(
    layout: LayerLayout,
    plain: Mapping[str, ChannelMoments],
    sequential: Mapping[str, ChannelMoments],
    sample_count: int,
) -> RecordDict:
    """Return the reply to a calibrate message of phase "moments"."""
    return encode_moment_vectors(
        {PLAIN_MOMENTS: pack_moments(layout, plain), SEQUENTIAL_MOMENTS: pack_moments(layout, sequential)},
        sample_count,
    )


def encode_moment_vectors(vectors: Mapping[str, IntArray], sample_count: int) -> RecordDict:
    """Return the reply to a calibrate message of phase "moments" from packed moments."""
    return _statistics({_SAMPLE_COUNT: sample_count}, vectors)


def read_moments(content: RecordDict, key: str, layout: LayerLayout) -> IntArray:
    """Return the packed moments under `key`, of the right length and otherwise unchecked.

    Raises:
        MalformedError: If they are missing, of another type or length.
    """
    size = vector_size(layout)
    return decode_vector(array_record(content, _STATISTICS).get(key), key, ("int64",), (size, size))


def encode_ranges(
    layers: LayerLayout,
    sites: SiteLayout,
    histograms: Mapping[str, DyadicHistogram],
    plain: Mapping[str, ChannelMoments],
    sample_count: int,
) -> RecordDict:
    """Return the reply to a calibrate message of phase "ranges"."""
    packed = pack_histograms(sites, histograms)
    vectors: dict[str, AnyArray] = {PLAIN_MOMENTS: pack_moments(layers, plain)}
    settings = {_SAMPLE_COUNT: sample_count}
    if packed.dense is not None:
        settings[_SHIFT] = packed.dense.shift
        vectors[_DENSE_COUNTS] = packed.dense.counts
        vectors[_DENSE_SUMMARY] = packed.dense.summary
        vectors[_DENSE_BOUNDS] = packed.dense.bounds
    if packed.free.sites.size:
        vectors[_FREE_SITES] = packed.free.sites
        vectors[_FREE_LENGTHS] = packed.free.lengths
        vectors[_FREE_HISTOGRAMS] = packed.free.histograms
    return _statistics(settings, vectors)


def read_histograms(content: RecordDict, layout: SiteLayout) -> PackedHistograms:
    """Return the packed histograms of a reply, with vectors of the right lengths and otherwise unchecked.

    Raises:
        MalformedError: If a vector is missing, of another type or length.
    """
    statistics = array_record(content, _STATISTICS)
    dense = None
    if layout.grids is not None:
        sites, bins = len(layout.names), layout.bins
        counts = decode_vector(statistics.get(_DENSE_COUNTS), _DENSE_COUNTS, _UNSIGNED, (bins, bins))
        rows = SUMMARY_ROWS * sites
        summary = decode_vector(statistics.get(_DENSE_SUMMARY), _DENSE_SUMMARY, ("int64",), (rows, rows))
        pairs = (2 * sites, 2 * sites)
        bounds = decode_vector(statistics.get(_DENSE_BOUNDS), _DENSE_BOUNDS, ("float32",), pairs)
        shift = read_int(config_record(content, _SETTINGS), _SHIFT, min(SHIFTS), max(SHIFTS))
        dense = DensePart(counts, shift, summary.reshape(SUMMARY_ROWS, sites), bounds.reshape(2, sites))
    if _FREE_SITES not in statistics:
        return PackedHistograms(dense, FreePart())
    most = len(layout.names)
    free_sites = decode_vector(statistics.get(_FREE_SITES), _FREE_SITES, ("int64",), (1, most))
    exactly = (free_sites.size, free_sites.size)
    lengths = decode_vector(statistics.get(_FREE_LENGTHS), _FREE_LENGTHS, ("int64",), exactly)
    joined = (free_sites.size, free_sites.size * MAX_FREE_LENGTH)
    histograms = decode_vector(statistics.get(_FREE_HISTOGRAMS), _FREE_HISTOGRAMS, ("int64",), joined)
    return PackedHistograms(dense, FreePart(free_sites, lengths, histograms))


def read_sample_count(content: RecordDict) -> int:
    """Return how many samples a reply was taken from.

    Raises:
        MalformedError: If it does not say, or says nonsense.
    """
    return read_int(config_record(content, _SETTINGS), _SAMPLE_COUNT, 0, MAX_SAMPLES)


def encode_assessment(counts: AssessmentCounts) -> RecordDict:
    """Return the reply to an assess message."""
    return _statistics({_SAMPLE_COUNT: counts.samples}, {_COUNTS: counts.to_array()})


def decode_assessment(content: RecordDict) -> AssessmentCounts:
    """Return what `encode_assessment` wrote.

    Raises:
        MalformedError: If the counts are not ones that a device can have counted.
    """
    array = array_record(content, _STATISTICS).get(_COUNTS)
    vector: IntArray = decode_vector(array, _COUNTS, ("int64",), (0, AssessmentCounts.MAX_ELEMENTS))
    return AssessmentCounts.from_array(vector)


def _statistics(settings: Mapping[str, int], vectors: Mapping[str, AnyArray]) -> RecordDict:
    arrays = ArrayRecord({key: encode_vector(vector) for key, vector in vectors.items()})
    return RecordDict({_SETTINGS: ConfigRecord(dict(settings)), _STATISTICS: arrays})


def _settings(phase: str, request: MomentsRequest | RangesRequest) -> ConfigRecord:
    settings = ConfigRecord(
        {_PHASE: phase, _BATCH_SIZE: request.batch_size, _LAYERS: list(request.layers.names)}
    )
    settings.update(recipe_settings(request.recipe, request.seed))
    return settings


def recipe_settings(recipe: CalibrationRecipe, seed: int) -> dict[str, str | int]:
    """Return the settings that say a recipe and the seed of its copies; none for the defaults."""
    settings: dict[str, str | int] = {} if recipe == DEFAULT_RECIPE else {_RECIPE: str(recipe)}
    return settings | ({_SEED: seed} if seed else {})


def _layout_record(layers: LayerLayout, grids: Iterable[FixedGrid] | None) -> ArrayRecord:
    arrays = {_CHANNEL_COUNTS: encode_vector(np.array(layers.channels, np.int64))}
    if grids is not None:
        table = [(grid.exponent, grid.first_bin, grid.bins) for grid in grids]
        arrays[_GRIDS] = encode_vector(np.array(table, np.int64))
    return ArrayRecord(arrays)


def delivery_records(
    delivery: Delivery, manifest_key: str = _MANIFEST, blobs_key: str = _BLOBS
) -> dict[str, ArrayRecord]:
    """Return the records of an artifact in a request."""
    blobs = {digest: encode_bytes(stored) for digest, stored in sorted(delivery.blobs.items())}
    return {
        manifest_key: ArrayRecord({_DATA: encode_bytes(delivery.manifest)}),
        blobs_key: ArrayRecord(blobs),
    }


def read_delivery(content: RecordDict, manifest_key: str = _MANIFEST, blobs_key: str = _BLOBS) -> Delivery:
    """Return the artifact that `delivery_records` wrote.

    Raises:
        MalformedError: If anything is missing, of another type, or beyond its bounds.
    """
    manifest = decode_bytes(array_record(content, manifest_key).get(_DATA), manifest_key, MAX_MANIFEST_BYTES)
    arrays = array_record(content, blobs_key)
    if len(arrays) > MAX_NAMES or not all(_is_digest(digest) for digest in arrays):
        raise MalformedError(f"{blobs_key} must be named by SHA-256 in hex, at most {MAX_NAMES} of them")
    blobs = {
        digest: decode_bytes(array, f"blob {digest}", MAX_BLOB_BYTES) for digest, array in arrays.items()
    }
    return Delivery(manifest, blobs)


def _read_layers(content: RecordDict) -> LayerLayout:
    names = read_texts(config_record(content, _SETTINGS), _LAYERS, MAX_NAMES, MAX_NAME_LENGTH)
    counts = array_record(content, _LAYOUT).get(_CHANNEL_COUNTS)
    channels = decode_vector(counts, _CHANNEL_COUNTS, ("int64",), (len(names), len(names))).tolist()
    try:
        return LayerLayout(names, tuple(channels))
    except ConfigurationError as error:
        raise MalformedError(str(error)) from error


def _read_grids(layout: Mapping[str, Array], sites: int) -> tuple[FixedGrid, ...]:
    table = decode_vector(layout.get(_GRIDS), _GRIDS, ("int64",), (3 * sites, 3 * sites))
    try:
        return tuple(FixedGrid(*row) for row in table.reshape(-1, 3).tolist())
    except ConfigurationError as error:
        raise MalformedError(str(error)) from error


def read_batch_size(content: RecordDict) -> int:
    """Return how many samples a request wants in a batch.

    Raises:
        MalformedError: If it does not say, or says nonsense.
    """
    return read_int(config_record(content, _SETTINGS), _BATCH_SIZE, 1, MAX_BATCH)


def read_recipe(content: RecordDict) -> tuple[CalibrationRecipe, int]:
    """Return a request's recipe and the seed of its copies.

    Raises:
        MalformedError: If they are none that this version knows.
    """
    settings = config_record(content, _SETTINGS)
    seed = read_int(settings, _SEED, 0, MAX_SEED) if _SEED in settings else 0
    if _RECIPE not in settings:
        return DEFAULT_RECIPE, seed
    try:
        return CalibrationRecipe.from_text(read_text(settings, _RECIPE, MAX_RECIPE_LENGTH)), seed
    except ConfigurationError as error:
        raise MalformedError(f"{error}; or update the device's software") from error


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)
