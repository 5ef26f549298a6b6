import numpy as np
from flwr.app import RecordDict
from statistics_strategies import app_that

from quantization.fixed_grid import FixedGrid
from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments, ChannelReference
from simulation.grid import Dropout, InProcessGrid
from strategies.calibration_round import calibrate_moments, calibrate_ranges
from strategies.messages import Delivery, DeviceHello, LayerLayout, MomentsRequest, RangesRequest, SiteLayout
from strategies.records import (
    decode_moments_request,
    decode_ranges_request,
    encode_moments,
    encode_ranges,
)
from strategies.rounds import RoundContext

LAYERS = LayerLayout(("conv",), (2,))
SITES = SiteLayout(("act", "out"), (FixedGrid(-4, -64, 128), FixedGrid(-4, -64, 128)))
REFERENCE = ChannelReference(np.zeros(2), np.ones(2), 10)


def _values(position: int) -> np.ndarray:
    return np.random.default_rng(position).normal(scale=1 + position % 5, size=50).astype(np.float32)


def _moments(position: int) -> ChannelMoments:
    values = _values(position).astype(np.float64)
    return ChannelMoments.from_batch(
        np.full(2, values.mean()), np.full(2, values.var()), values.size, REFERENCE
    ).as_device()


def _context(grid: InProcessGrid) -> RoundContext:
    return RoundContext(grid, clock=grid.clock)


def _cohort(grid: InProcessGrid, digests: tuple[str, ...] = ("",)) -> tuple[DeviceHello, ...]:
    return tuple(
        DeviceHello(node_id, "arm", 0, digests[node_id % len(digests)], 50, False)
        for node_id in grid.get_node_ids()
    )


def _answer_moments(position: int, content: RecordDict) -> RecordDict:
    layers = decode_moments_request(content).layers
    seen = {"conv": _moments(position)}
    return encode_moments(layers, seen, {"conv": ChannelMoments.empty(2)}, 50)


def _answer_ranges(position: int, content: RecordDict) -> RecordDict:
    request = decode_ranges_request(content)
    histograms = {name: DyadicHistogram.from_values(_values(position)) for name in request.sites.names}
    return encode_ranges(request.layers, request.sites, histograms, {"conv": _moments(position)}, 50)


def test_moments_of_the_cohort_are_merged() -> None:
    grid = InProcessGrid(app_that("calibrate", _answer_moments), 20)
    outcome = calibrate_moments(_context(grid), _cohort(grid), MomentsRequest(Delivery(b"m"), LAYERS))
    expected = ChannelMoments.empty(2)
    for position in range(20):
        expected = expected.merge(_moments(position))
    assert outcome.value.plain == {"conv": expected}
    assert outcome.value.sequential == {"conv": ChannelMoments.empty(2)}
    assert outcome.value.sample_count == 1000


def test_histograms_with_dropouts_equal_those_of_all_values_that_came() -> None:
    app = app_that("calibrate", _answer_ranges)
    grid = InProcessGrid(app, 20, fault=lambda position, _: Dropout() if position % 4 == 0 else None)
    request = RangesRequest(Delivery(b"m"), LAYERS, SiteLayout(SITES.names))
    outcome = calibrate_ranges(_context(grid), _cohort(grid), request)
    pooled = np.concatenate([_values(position) for position in range(20) if position % 4])
    assert outcome.replied == 15
    assert outcome.value.histograms == dict.fromkeys(SITES.names, DyadicHistogram.from_values(pooled))


def test_fixed_grids_change_the_bins_and_nothing_else() -> None:
    grid = InProcessGrid(app_that("calibrate", _answer_ranges), 20)
    request = RangesRequest(Delivery(b"m"), LAYERS, SITES)
    outcome = calibrate_ranges(_context(grid), _cohort(grid), request)
    pooled = DyadicHistogram.from_values(np.concatenate([_values(position) for position in range(20)]))
    assert pooled.maximum > 4  # so that some devices do not fit the grid
    assert outcome.value.histograms["act"] == pooled.coarsen(-4)


def test_a_malformed_reply_leaves_no_part_of_itself_behind() -> None:
    def answer(position: int, content: RecordDict) -> RecordDict:
        reply = _answer_ranges(position, content)
        if position == 1:  # good moments, broken histograms
            del reply["statistics"]["dense_bounds"]
        return reply

    grid = InProcessGrid(app_that("calibrate", answer), 3)
    outcome = calibrate_ranges(_context(grid), _cohort(grid), RangesRequest(Delivery(b"m"), LAYERS, SITES))
    assert outcome.failed == {"malformed": 1}
    assert outcome.value.plain["conv"] == _moments(0).merge(_moments(2))
    assert outcome.value.sample_count == 100


def test_each_group_of_devices_gets_what_it_lacks_and_shares_it() -> None:
    seen: dict[int, tuple[bytes, int]] = {}

    def answer(position: int, content: RecordDict) -> RecordDict:
        seen[position] = (decode_moments_request(content).artifact.manifest, id(content))
        return _answer_moments(position, content)

    grid = InProcessGrid(app_that("calibrate", answer), 6)
    cohort = _cohort(grid, ("aa", "bb"))
    request = MomentsRequest(Delivery(b"unused"), LAYERS)
    calibrate_moments(
        RoundContext(grid, deliver=lambda held: Delivery(f"for {held}".encode()), clock=grid.clock),
        cohort,
        request,
    )
    assert {manifest for manifest, _ in seen.values()} == {b"for aa", b"for bb"}
    assert len({content for _, content in seen.values()}) == 2
