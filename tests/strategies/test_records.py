import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_strategies import device_counts, device_moments, histograms

from quantization.calibration_recipe import CalibrationRecipe, Strategy
from quantization.errors import ConfigurationError, MalformedError
from quantization.fixed_grid import FixedGrid
from quantization.histogram import DyadicHistogram
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
from strategies.records import (
    PLAIN_MOMENTS,
    SEQUENTIAL_MOMENTS,
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
from strategies.wire import encode_bytes, encode_vector

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.lists(st.text(max_size=9), max_size=5, unique=True).map(tuple)
deliveries = st.builds(
    Delivery, st.binary(max_size=40), st.dictionaries(digests, st.binary(max_size=9), max_size=3)
)
layer_layouts = st.dictionaries(st.text(max_size=9), st.integers(1, 9), max_size=4).map(LayerLayout.of)
grids = st.builds(FixedGrid, st.integers(-20, 20), st.integers(-50, 50), st.integers(1, 64))
batch_sizes = st.integers(1, 1 << 16)
augmentations = st.lists(st.sampled_from(["flip", "noise=0.05", "rotation=7.5"]), unique=True).map(tuple)
recipes = st.builds(CalibrationRecipe, st.sampled_from(Strategy), st.floats(1, 256), augmentations)
seeds = st.integers(0, (1 << 63) - 1)


@st.composite
def site_layouts(draw: st.DrawFn) -> SiteLayout:
    sites = draw(names)
    has_grids = draw(st.booleans())
    return SiteLayout(sites, tuple(draw(grids) for _ in sites) if has_grids else None)


@given(
    st.builds(
        DeviceHello,
        node_id=st.just(7),
        device_class=st.text(max_size=63),
        generation=st.integers(-1, 1 << 40),
        manifest_digest=st.just("") | digests,
        sample_count=st.integers(0, 1 << 40),
        has_labels=st.booleans(),
        capabilities=names,
    )
)
def test_a_hello_comes_back(hello: DeviceHello) -> None:
    assert decode_hello(encode_hello(hello), 7) == hello


@given(st.builds(MomentsRequest, deliveries, layer_layouts, batch_sizes, recipes, seeds))
def test_a_moments_request_comes_back(request: MomentsRequest) -> None:
    content = encode_moments_request(request)
    assert read_phase(content) == "moments"
    assert decode_moments_request(content) == request


@given(
    st.builds(
        RangesRequest,
        deliveries,
        layer_layouts,
        site_layouts(),
        st.just({}),  # tests of the overrides themselves need a manifest
        batch_sizes,
        recipes,
        seeds,
    )
)
def test_a_ranges_request_comes_back(request: RangesRequest) -> None:
    content = encode_ranges_request(request)
    assert read_phase(content) == "ranges"
    assert decode_ranges_request(content) == request


def test_a_request_without_a_recipe_says_nothing_of_one() -> None:
    layers, sites = LayerLayout(("a",), (3,)), SiteLayout(("x",))
    for content in (
        encode_moments_request(MomentsRequest(Delivery(b"m"), layers)),
        encode_ranges_request(RangesRequest(Delivery(b"m"), layers, sites)),
    ):
        assert not [key for key in content["settings"] if key.startswith("calibration")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("calibration", "entropy 2.0"),
        ("calibration", "margin nan"),
        ("calibration", "margin 0.5"),
        ("calibration", "uniform 2.0 sharpen=2"),
        ("calibration", "margin 2.0" + " " * 600),
        ("calibration", 4),
        ("calibration_seed", -1),
        ("calibration_seed", "1"),
    ],
)
def test_a_recipe_that_this_version_cannot_follow_is_refused(key: str, value: str | int) -> None:
    content = encode_moments_request(MomentsRequest(Delivery(b"m"), LayerLayout(("a",), (3,))))
    content["settings"][key] = value
    with pytest.raises(MalformedError):
        decode_moments_request(content)


@given(st.builds(AssessRequest, deliveries, deliveries, batch_sizes))
def test_an_assess_request_comes_back(request: AssessRequest) -> None:
    assert decode_assess_request(encode_assess_request(request)) == request


LAYERS = LayerLayout(("a", "b"), (3, 1))


@given(device_moments(3), device_moments(1), st.integers(0, 99))
def test_moments_come_back(first: object, second: object, samples: int) -> None:
    moments = {"a": first, "b": second}
    content = encode_moments(LAYERS, moments, moments, samples)
    for key in (PLAIN_MOMENTS, SEQUENTIAL_MOMENTS):
        total, vector = MomentSum(LAYERS), read_moments(content, key, LAYERS)
        total.add(vector, total.check(vector))
        assert total.result() == moments
    assert read_sample_count(content) == samples


@given(st.fixed_dictionaries({"x": histograms(), "y": histograms()}), grids, grids, st.booleans())
@settings(deadline=None)
def test_histograms_come_back(seen: dict, x: FixedGrid, y: FixedGrid, has_grids: bool) -> None:
    layout = SiteLayout(("x", "y"), (x, y) if has_grids else None)
    content = encode_ranges(LayerLayout((), ()), layout, seen, {}, 5)
    total = HistogramSum(layout)
    total.add(total.check(read_histograms(content, layout)))
    for name, grid in zip("xy", (x, y), strict=True):
        exponent = max(seen[name].exponent, grid.exponent) if has_grids else seen[name].exponent
        assert total.result()[name] == seen[name].coarsen(exponent)


def test_replies_survive_flowers_own_serialisation() -> None:
    layout = SiteLayout(("x",), (FixedGrid(0, 0, 4),))
    seen = {"x": DyadicHistogram.from_values(np.float32([1, 2, 9]))}
    reply = encode_ranges(LayerLayout((), ()), layout, seen, {}, 5)
    back = recorddict_from_proto(recorddict_to_proto(reply))
    objects = get_all_nested_objects(reply)
    inflated = inflate_object_from_contents(reply.object_id, {id_: o.deflate() for id_, o in objects.items()})
    for content in (back, inflated):
        total = HistogramSum(layout)
        total.add(total.check(read_histograms(content, layout)))
        assert total.result() == seen | {"x": seen["x"].coarsen(0)}


@given(device_counts())
def test_assessments_come_back(counts: object) -> None:
    assert decode_assessment(encode_assessment(counts)) == counts


HELLO = DeviceHello(1, "arm", 3, "a" * 64, 10, True, ("int4",))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device_class", "x" * 64),
        ("device_class", 3),
        ("generation", -2),
        ("generation", 1.0),
        ("manifest_digest", "A" * 64),
        ("manifest_digest", "../../etc/passwd"),
        ("sample_count", -1),
        ("sample_count", 1 << 50),
        ("has_labels", 1),
        ("capabilities", ["x"] * 2),
        ("capabilities", [str(k) for k in range(65)]),
    ],
)
def test_a_hello_with_a_field_out_of_bounds_is_refused(key: str, value: object) -> None:
    content = encode_hello(HELLO)
    content["settings"][key] = value
    with pytest.raises(MalformedError, match=key):
        decode_hello(content, 1)


@pytest.mark.parametrize("key", ["device_class", "generation", "sample_count", "has_labels", "capabilities"])
def test_a_hello_without_a_field_is_refused(key: str) -> None:
    content = encode_hello(HELLO)
    del content["settings"][key]
    with pytest.raises(MalformedError, match=key):
        decode_hello(content, 1)


def _moments_request(**arrays: object) -> RecordDict:
    content = encode_moments_request(MomentsRequest(Delivery(b"m", {"a" * 64: b"x"}), LAYERS))
    for record, value in arrays.items():
        content[record] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RecordDict(), "missing"),
        (_moments_request(manifest=ArrayRecord()), "manifest is missing"),
        (_moments_request(manifest=ConfigRecord()), "holds no arrays"),
        (_moments_request(blobs=ArrayRecord({"../x": encode_bytes(b"")})), "named by SHA-256"),
        (_moments_request(layout=ArrayRecord()), "channel_counts is missing"),
        (
            _moments_request(layout=ArrayRecord({"channel_counts": encode_vector(np.array([3]))})),
            "expected 2",
        ),
        (_moments_request(layout=ArrayRecord({"channel_counts": encode_vector(np.array([3, 0]))})), "1 to"),
        (_moments_request(settings=ConfigRecord({"layers": ["a", "a"], "batch_size": 1})), "twice"),
        (_moments_request(settings=ConfigRecord({"layers": ["a", "b"], "batch_size": 0})), "batch_size"),
    ],
)
def test_malformed_requests_are_refused(content: RecordDict, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        decode_moments_request(content)


def test_an_unknown_phase_says_what_to_do() -> None:
    with pytest.raises(MalformedError, match="unknown calibration phase 'probe'; update"):
        read_phase(RecordDict({"settings": ConfigRecord({"phase": "probe"})}))


def test_a_grid_that_is_none_is_refused() -> None:
    request = RangesRequest(Delivery(b""), LAYERS, SiteLayout(("x",), (FixedGrid(0, 0, 4),)))
    content = encode_ranges_request(request)
    content["layout"]["grids"] = encode_vector(np.array([0, 0, 5000]))
    with pytest.raises(MalformedError, match="bins"):
        decode_ranges_request(content)


@pytest.mark.parametrize("vector", [np.zeros(5), np.zeros(16, np.int32), np.zeros((4, 4), np.int64)[0]])
def test_moments_of_another_type_or_length_are_refused(vector: np.ndarray) -> None:
    content = RecordDict({"statistics": ArrayRecord({PLAIN_MOMENTS: encode_vector(vector)})})
    with pytest.raises(MalformedError, match=PLAIN_MOMENTS):
        read_moments(content, PLAIN_MOMENTS, LAYERS)


def test_counts_of_impossible_length_are_refused() -> None:
    counts = ArrayRecord({"counts": encode_vector(np.zeros(9, np.int64))})
    with pytest.raises(MalformedError, match="9 elements"):
        decode_assessment(RecordDict({"statistics": counts}))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LayerLayout(("a", "a"), (1, 1)),
        lambda: LayerLayout(("a",), (1, 1)),
        lambda: LayerLayout(("a",), (0,)),
        lambda: SiteLayout(("a", "a")),
        lambda: SiteLayout(("a",), ()),
    ],
)
def test_layouts_that_no_reply_could_follow_are_refused(make: object) -> None:
    with pytest.raises(ConfigurationError):
        make()
