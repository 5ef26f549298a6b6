from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from artifacts import example
from flwr.app import ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe, Strategy
from quantization.errors import ConfigurationError, MalformedError
from quantization.im2col import ConvWindow
from quantization.input_observation import LayerInput, distinct
from quantization.second_moments import SecondMoments
from strategies.messages import Delivery
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
    with_artifact,
)
from strategies.records import read_phase
from strategies.wire import encode_vector

ARTIFACT = example("mlp").artifact()
DELIVERY = Delivery(ARTIFACT.manifest.to_bytes())
SIZES = {ref.location: ref.decoded_size_bytes for ref in ARTIFACT.manifest.stages[0].files}

names = st.lists(st.text(max_size=9), max_size=4, unique=True)
sizes = st.integers(1, 1 << 16)
overrides = st.sets(st.sampled_from(sorted(SIZES))).map(
    lambda locations: {location: bytes(SIZES[location]) for location in locations}
)


@st.composite
def windows(draw: st.DrawFn) -> ConvWindow | None:
    axes = draw(st.integers(0, 3))
    if not axes:
        return None
    parts = [tuple(draw(st.integers(1, 9)) for _ in range(axes)) for _ in range(3)]
    pads = tuple(draw(st.integers(0, 9)) for _ in range(2 * axes))
    return ConvWindow(parts[0], parts[1], pads, parts[2], draw(st.integers(1, 3)))


@st.composite
def layer_inputs(draw: st.DrawFn) -> tuple[LayerInput, ...]:
    layers = []
    for name in draw(names):
        columns = draw(st.integers(1, 9))
        block = draw(st.none() | st.integers(1, columns))
        tensor = draw(st.sampled_from(["x", "y"]))
        layers.append(LayerInput(name, tensor, draw(windows()), columns, draw(st.integers(-9, 9)), block))
    return tuple(layers)


recipes = st.builds(
    CalibrationRecipe,
    st.sampled_from(Strategy),
    st.floats(1, 8),
    st.sampled_from([(), ("flip",), ("noise=0.05", "flip")]),
)


@settings(deadline=None)
@given(
    st.builds(
        InputsRequest,
        artifact=st.just(DELIVERY),
        graph=st.binary(max_size=9),
        layers=layer_inputs(),
        reference=overrides,
        overrides=st.none() | overrides,
        batch_size=sizes,
        columns_per_batch=sizes,
        max_samples=sizes,
        recipe=recipes,
        seed=st.integers(0, 1 << 40),
    )
)
def test_an_inputs_request_comes_back(request: InputsRequest) -> None:
    content = encode_inputs_request(request)
    assert read_phase(content) == "inputs"
    assert decode_inputs_request(content) == request


@settings(deadline=None)
@given(
    st.builds(
        ProbeRequest,
        artifact=st.just(DELIVERY),
        reference=overrides,
        probes=st.dictionaries(st.text(max_size=9), overrides, max_size=4).map(
            lambda files: tuple(Probe(name, changes) for name, changes in files.items())
        ),
        graph=st.binary(max_size=9),
        batch_size=sizes,
        max_samples=sizes,
    )
)
def test_a_probe_request_comes_back(request: ProbeRequest) -> None:
    assert decode_probe_request(encode_probe_request(request)) == request


@given(names, st.integers(1, 10_000))
def test_a_profile_request_comes_back(layers: list[str], runs: int) -> None:
    request = ProfileRequest(DELIVERY, tuple(layers), tuple(f"{name}:out" for name in layers), runs)
    content = encode_profile_request(request)
    assert read_phase(content) == "profile"
    assert decode_profile_request(content) == request


def test_requests_that_no_reply_could_follow_are_refused() -> None:
    layer = LayerInput("a", "x", None, 3)
    for make in (
        lambda: InputsRequest(DELIVERY, b"", (layer, layer)),
        lambda: InputsRequest(DELIVERY, b"", (layer,), batch_size=0),
        lambda: ProbeRequest(DELIVERY, {}, (Probe("a", {}), Probe("a", {}))),
        lambda: ProfileRequest(DELIVERY, ("a", "a"), ("x", "y")),
        lambda: ProfileRequest(DELIVERY, ("a", "b"), ("x",)),
        lambda: ProfileRequest(DELIVERY, ("a",), ("x",), 0),
    ):
        with pytest.raises(ConfigurationError):
            make()


def test_another_artifact_shares_the_rest_of_a_request() -> None:
    request = InputsRequest(DELIVERY, b"graph", (), {"channels": bytes(SIZES["channels"])})
    content = encode_inputs_request(request)
    other = Delivery(DELIVERY.manifest, {"0" * 64: b"blob"})
    sent = with_artifact(content, other)
    assert decode_inputs_request(sent) == replace(request, artifact=other)
    assert sent["override_blobs"] is content["override_blobs"]


LAYERS = (
    LayerInput("conv", "x", ConvWindow((3,), (1,), (1, 1), (1,), 2), 3, exponent=1),
    LayerInput("q", "y", None, 5, exponent=2, block=2),
    LayerInput("k", "y", None, 5, exponent=2, block=2),
)
ASKED = InputsRequest(DELIVERY, b"", LAYERS, batch_size=4, columns_per_batch=10, max_samples=20)


def some_moments(request: InputsRequest = ASKED, columns: int = 7, seed: int = 0) -> dict[str, SecondMoments]:
    rng = np.random.default_rng(seed)
    by_source = {}
    for layer in distinct(request.layers):
        x, reference = rng.normal(size=(2, layer.groups, columns, layer.columns))
        empty = layer.empty(with_cross=request.with_cross)
        by_source[layer.source] = empty.add_columns(x, reference if request.with_cross else None)
    return {layer.name: by_source[layer.source] for layer in request.layers}


@pytest.mark.parametrize("prefix", [None, {}])
def test_moments_come_back_and_survive_flowers_own_serialisation(prefix: dict | None) -> None:
    request = replace(ASKED, overrides=prefix)
    moments = some_moments(request)
    content = encode_inputs(request, moments, 5, 2)
    for reply in (content, recorddict_from_proto(recorddict_to_proto(content))):
        seen, samples = decode_inputs(reply, request)
        assert seen == (moments["conv"], moments["q"])
        assert samples == 5


def test_a_device_that_saw_nothing_sends_nothing() -> None:
    empty = {layer.name: layer.empty() for layer in LAYERS}
    seen, samples = decode_inputs(encode_inputs(ASKED, empty, 0), ASKED)
    assert samples == 0
    assert seen == (empty["conv"], empty["q"])


def tampered(change: Callable[[np.ndarray], None]) -> RecordDict:
    content = encode_inputs(ASKED, some_moments(), 5)
    vector = np.concatenate([some_moments()[name].to_array() for name in ("conv", "q")])
    change(vector)
    content["statistics"] = ArrayRecord({"second_moments": encode_vector(vector)})
    return content


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 1),  # groups
        (1, 4),  # columns
        (2, 2),  # block
        (3, 2),  # exponent
        (4, -1),  # count
        (4, 0),
        (4, 21),  # more columns than two batches give
        (4, 1 << 60),
        (5, 1),  # cross
        (6, -(1 << 30)),  # a negative square
        (7, 1 << 40),  # a correlation beyond 1
        (6, (1 << 63) - 1),
    ],
)
def test_moments_of_another_form_or_of_no_columns_are_refused_and_named(index: int, value: int) -> None:
    def change(vector: np.ndarray) -> None:
        vector[index] = value

    assert decode_inputs(tampered(lambda _: None), ASKED)
    with pytest.raises(MalformedError, match="layer 'conv'"):
        decode_inputs(tampered(change), ASKED)


def test_replies_of_another_length_type_or_without_counts_are_refused() -> None:
    good = encode_inputs(ASKED, some_moments(), 5)
    vector = np.frombuffer(good["statistics"]["second_moments"].data, np.int64)
    broken = []
    for array in (vector[:-1], vector.astype(np.float64), np.zeros(0, np.int64)):
        content = encode_inputs(ASKED, some_moments(), 5)
        content["statistics"] = ArrayRecord({"second_moments": encode_vector(array)})
        broken.append(content)
    for samples, left_out in ((-1, 0), (21, 0), (5, 16), (0, 0)):
        broken.append(encode_inputs(ASKED, some_moments(), samples, left_out))
    broken.append(RecordDict({"settings": good["settings"]}))
    broken.append(RecordDict({"statistics": good["statistics"]}))
    for content in broken:
        with pytest.raises(MalformedError):
            decode_inputs(content, ASKED)


def test_weighted_moments_may_count_as_much_as_the_heaviest_samples() -> None:
    recipe = CalibrationRecipe(Strategy.MARGIN, 4.0, ("flip",))
    request = replace(ASKED, recipe=recipe)
    columns = 7
    moments = {
        layer.name: layer.empty().add_columns(
            np.ones((layer.groups, columns, layer.columns)), weights=np.full(columns, 1000)
        )
        for layer in LAYERS
    }
    assert decode_inputs(encode_inputs(request, moments, 30), request)
    with pytest.raises(MalformedError, match="7000 columns"):
        decode_inputs(encode_inputs(replace(request, recipe=DEFAULT_RECIPE), moments, 5), ASKED)


PROBES = ProbeRequest(DELIVERY, {}, (Probe("a", {}), Probe("b", {})), max_samples=50)
GOOD = (ProbeReply(1 << 20, 20, 4, 10, 9, 8), ProbeReply(0, 20, 0, 10, 9, 9))


@st.composite
def probe_replies(draw: st.DrawFn) -> tuple[ProbeReply, ProbeReply]:
    count = draw(st.integers(0, 50))
    labelled = draw(st.integers(0, count))
    reference_hits = draw(st.integers(0, labelled))

    def reply() -> ProbeReply:
        hits = draw(st.integers(0, labelled))
        disagreements = draw(st.integers(abs(hits - reference_hits), count))
        divergence = draw(st.integers(0, count * 10**6 << 20))
        return ProbeReply(divergence, count, disagreements, labelled, reference_hits, hits)

    return reply(), reply()


@given(probe_replies())
def test_probe_replies_come_back(replies: tuple[ProbeReply, ProbeReply]) -> None:
    assert decode_probes(encode_probes(replies), PROBES) == replies


@pytest.mark.parametrize(
    "change",
    [
        {"divergence_steps": -1},
        {"divergence_steps": 1 << 62},
        {"count": -1},
        {"count": 51},
        {"count": 19},  # not the other probe's samples
        {"disagreements": 21},
        {"disagreements": 0},  # yet different hits
        {"labelled": 21},
        {"labelled": 8},
        {"reference_hits": 11},
        {"probe_hits": -1},
        {"probe_hits": 20},
    ],
)
def test_numbers_that_no_probe_can_have_given_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(MalformedError):
        decode_probes(encode_probes((replace(GOOD[0], **change), GOOD[1])), PROBES)


def test_replies_to_other_probes_are_refused() -> None:
    for replies in (GOOD[:1], (*GOOD, GOOD[0])):
        with pytest.raises(MalformedError):
            decode_probes(encode_probes(replies), PROBES)


PROFILE = ProfileRequest(DELIVERY, ("a", "b"), ("x", "y"), runs=5)


def test_profiles_come_back() -> None:
    reply = ProfileReply((5000, 0), (5, 0), (7000, 12), (5, 5))
    assert decode_profile(encode_profile(reply), PROFILE) == reply


@pytest.mark.parametrize(
    "reply",
    [
        ProfileReply((-1, 0), (5, 0), (0, 0), (0, 0)),
        ProfileReply((1, 1), (5, 0), (0, 0), (0, 0)),
        ProfileReply((1, 1), (5, 4), (0, 0), (0, 0)),
        ProfileReply((10**13, 1), (5, 5), (0, 0), (0, 0)),
        ProfileReply((1,), (5,), (1,), (5,)),
    ],
)
def test_times_that_no_kernels_can_have_taken_are_refused(reply: ProfileReply) -> None:
    with pytest.raises(MalformedError):
        decode_profile(encode_profile(reply), PROFILE)


@pytest.mark.parametrize("change", ["geometry", "short", "tensor", "kernel", "groups", "long"])
def test_geometries_that_are_none_are_refused(change: str) -> None:
    content = encode_inputs_request(ASKED)
    numbers = [[0, 3, 1, 0, 2, 1, 3, 1, 1, 1, 1], [1, 5, 2, 2, 1, 0], [1, 5, 2, 2, 1, 0]]
    assert decode_inputs_request(content).layers == LAYERS
    if change == "geometry":
        numbers[0][5] = 100
    elif change == "short":
        numbers[2].pop()
    elif change == "tensor":
        numbers[1][0] = 2
    elif change == "kernel":
        numbers[0][6] = 0
    elif change == "groups":
        numbers[1][4] = 3
    else:
        numbers.append([0])
    flat = np.array([number for row in numbers for number in row], np.int64)
    content["layout"]["geometry"] = encode_vector(flat)
    with pytest.raises(MalformedError):
        decode_inputs_request(content)
