"""Decoders of Flower's records with what they are told beside them, and an example of what each reads."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from flwr.app import RecordDict

from quantization.affine import params_from_range
from quantization.fixed_grid import FixedGrid
from quantization.histogram import DyadicHistogram
from quantization.input_observation import LayerInput
from quantization.moments import ChannelMoments
from quantization.second_moments import SecondMoments
from quantization.side_by_side import AssessmentCounts
from quantization.training_settings import TrainingSettings
from quantization.training_state import LayerState, TrainingGrid
from quantization.training_update import TrainedLayer, TrainingLayout, TrainingUpdate
from strategies.histogram_sum import HistogramSum
from strategies.messages import (
    AssessRequest,
    Delivery,
    DeviceHello,
    LayerLayout,
    MomentsRequest,
    RangesRequest,
    SiteLayout,
)
from strategies.moment_sum import MomentSum
from strategies.precision_messages import (
    InputsRequest,
    Probe,
    ProbeReply,
    ProbeRequest,
    ProfileReply,
    ProfileRequest,
)
from strategies.precision_records import (
    decode_inputs,
    decode_inputs_request,
    decode_probe_request,
    decode_probes,
    decode_profile,
    decode_profile_request,
    encode_inputs,
    encode_inputs_request,
    encode_probe_request,
    encode_probes,
    encode_profile,
    encode_profile_request,
)
from strategies.records import (
    PLAIN_MOMENTS,
    decode_assess_request,
    decode_assessment,
    decode_hello,
    decode_moments_request,
    decode_ranges_request,
    encode_assess_request,
    encode_assessment,
    encode_hello,
    encode_moments,
    encode_moments_request,
    encode_ranges,
    encode_ranges_request,
    read_histograms,
    read_moments,
    read_phase,
    read_sample_count,
)
from strategies.training_messages import TrainRequest
from strategies.training_records import (
    decode_train_request,
    decode_update,
    encode_train_request,
    encode_update,
)

Decode = Callable[[RecordDict], object]
Example = Callable[[Delivery], RecordDict]
"""From an artifact to what a peer would send of it."""

LAYERS = LayerLayout(("conv", "fc"), (3, 2))
SITES = SiteLayout(("x", "y"), (FixedGrid(-4, -8, 16), FixedGrid(0, 0, 4)))
TRAINED = TrainingLayout(
    (
        TrainedLayer("conv", 2, 3, TrainingGrid(1), has_bias=True, bias_unit=0.25),
        TrainedLayer("fc", 1, 4, TrainingGrid(127), has_bias=False, bias_unit=1.0),
    )
)
INPUTS = InputsRequest(Delivery(b""), b"", (LayerInput("fc", "x", None, 3),))
PROBES = ProbeRequest(Delivery(b""), {}, (Probe("a", {}), Probe("b", {})))
PROFILE = ProfileRequest(Delivery(b""), ("conv",), ("y",))


def _moments(content: RecordDict) -> object:
    read_sample_count(content)
    vector, summed = read_moments(content, PLAIN_MOMENTS, LAYERS), MomentSum(LAYERS)
    summed.add(vector, summed.check(vector))
    return summed.result()


def _ranges(content: RecordDict) -> object:
    summed = HistogramSum(SITES)
    summed.add(summed.check(read_histograms(content, SITES)))
    return summed.result()


def _calibrate(content: RecordDict) -> object:
    """Read a calibrate message as a device does: its phase, then what that phase asks."""
    decoders: dict[str, Decode] = {
        "moments": decode_moments_request,
        "ranges": decode_ranges_request,
        "inputs": decode_inputs_request,
        "profile": decode_profile_request,
    }
    return decoders[read_phase(content)](content)


def _train_request(_artifact: Delivery) -> RecordDict:
    state = {
        layer.name: LayerState(
            np.zeros((layer.rows, layer.columns), np.float32),
            np.ones(layer.rows, np.float32),
            np.zeros(layer.rows if layer.has_bias else 0, np.float32),
        )
        for layer in TRAINED.layers
    }
    settings = TrainingSettings(augmentations=("flip", "noise=0.1"))
    return encode_train_request(
        TrainRequest(b"model", TRAINED, state, {"x": params_from_range(0.0, 1.0)}, settings)
    )


def _moments_reply(_artifact: Delivery) -> RecordDict:
    empty = {name: ChannelMoments.empty(n) for name, n in zip(LAYERS.names, LAYERS.channels, strict=True)}
    return encode_moments(LAYERS, empty, empty, 4)


def _ranges_reply(_artifact: Delivery) -> RecordDict:
    found = {
        "x": DyadicHistogram.from_values(np.linspace(-0.4, 0.4, 20, dtype=np.float32)),
        "y": DyadicHistogram.from_values(np.linspace(0, 300, 20, dtype=np.float32)),
    }
    empty = {name: ChannelMoments.empty(n) for name, n in zip(LAYERS.names, LAYERS.channels, strict=True)}
    return encode_ranges(LAYERS, SITES, found, empty, 4)


def _inputs_reply(_artifact: Delivery) -> RecordDict:
    (layer,) = INPUTS.layers
    return encode_inputs(INPUTS, {layer.name: SecondMoments.empty(layer.columns, layer.exponent)}, 0, 0)


DECODERS: Mapping[str, tuple[Decode, Example]] = MappingProxyType(
    {
        "calibrate: moments": (
            _calibrate,
            lambda artifact: encode_moments_request(MomentsRequest(artifact, LAYERS)),
        ),
        "calibrate: ranges": (
            _calibrate,
            lambda artifact: encode_ranges_request(RangesRequest(artifact, LAYERS, SITES)),
        ),
        "calibrate: inputs": (
            _calibrate,
            lambda artifact: encode_inputs_request(InputsRequest(artifact, b"graph", INPUTS.layers)),
        ),
        "calibrate: profile": (
            _calibrate,
            lambda artifact: encode_profile_request(ProfileRequest(artifact, ("conv",), ("y",))),
        ),
        "probe": (
            decode_probe_request,
            lambda artifact: encode_probe_request(ProbeRequest(artifact, {}, PROBES.probes)),
        ),
        "assess": (
            decode_assess_request,
            lambda artifact: encode_assess_request(AssessRequest(artifact, artifact)),
        ),
        "train": (decode_train_request, _train_request),
        "hello reply": (
            lambda content: decode_hello(content, 7),
            lambda _artifact: encode_hello(DeviceHello(7, "arm", 3, "ab" * 32, 80, True, ("train",))),
        ),
        "moments reply": (_moments, _moments_reply),
        "ranges reply": (_ranges, _ranges_reply),
        "inputs reply": (lambda content: decode_inputs(content, INPUTS), _inputs_reply),
        "probe reply": (
            lambda content: decode_probes(content, PROBES),
            lambda _artifact: encode_probes([ProbeReply(5, 10, 2, 4, 3, 2)] * 2),
        ),
        "profile reply": (
            lambda content: decode_profile(content, PROFILE),
            lambda _artifact: encode_profile(ProfileReply((9,), (20,), (9,), (20,))),
        ),
        "assess reply": (
            decode_assessment,
            lambda _artifact: encode_assessment(AssessmentCounts.empty(devices=1, failures=1)),
        ),
        "train reply": (
            lambda content: decode_update(content, TRAINED, 100),
            lambda _artifact: encode_update(TrainingUpdate(10, np.arange(TRAINED.size), 4, 99)),
        ),
    }
)
"""By name: a decoder, and what it reads."""
