from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_strategies import histograms

from quantization.fixed_grid import FixedGrid
from quantization.histogram import DyadicHistogram
from strategies.histogram_sum import HistogramSum
from strategies.messages import SiteLayout
from strategies.packed_histograms import pack_histograms

SITES = ("a", "b", "c")
GRIDS = (FixedGrid(-3, -100, 200), FixedGrid(-7, 0, 2048), FixedGrid(0, -4, 9))
devices = st.lists(st.fixed_dictionaries(dict.fromkeys(SITES, histograms())), min_size=1, max_size=6)


def _summed(layout: SiteLayout, fleet: list[dict[str, DyadicHistogram]]) -> dict[str, DyadicHistogram]:
    total = HistogramSum(layout)
    for device in fleet:
        total.add(total.check(pack_histograms(layout, device)))
    return total.result()


def _merged(fleet: list[dict[str, DyadicHistogram]], site: str) -> DyadicHistogram:
    return reduce(DyadicHistogram.merge, (device[site] for device in fleet))


@given(devices, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_free_sum_is_the_merge_of_all_in_any_order(fleet: list, random: object) -> None:
    expected = {site: _merged(fleet, site) for site in SITES}
    random.shuffle(fleet)
    assert _summed(SiteLayout(SITES), fleet) == expected


@given(devices, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_sum_on_grids_is_the_merge_on_bins_no_finer_than_theirs(fleet: list, random: object) -> None:
    merged = {site: _merged(fleet, site) for site in SITES}
    expected = {
        site: merged[site].coarsen(max(merged[site].exponent, grid.exponent))
        for site, grid in zip(SITES, GRIDS, strict=True)
    }
    random.shuffle(fleet)
    assert _summed(SiteLayout(SITES, GRIDS), fleet) == expected


def test_the_sum_of_many_devices_does_not_overflow_its_narrow_parts() -> None:
    grid = FixedGrid(0, 0, 4)
    layout = SiteLayout(("a",), (grid,))
    heavy = DyadicHistogram.from_values(np.ones(60_000, np.float32))
    heavier = DyadicHistogram.from_values(np.full(4_000, 2.0, np.float32), 65_000.5)
    total = HistogramSum(layout)
    for _ in range(200):
        for histogram in (heavy, heavier):
            total.add(total.check(pack_histograms(layout, {"a": histogram})))
    counts = dict(zip((1, 2), total.result()["a"].counts, strict=True))
    assert counts == {1: 200 * 60_000 * 256, 2: 200 * 4_000 * 16_640_128}


def test_small_unweighted_counts_travel_in_16_bits_and_others_do_not_lose_any() -> None:
    layout = SiteLayout(("a",), (FixedGrid(0, 0, 4),))
    values = np.ones(60_000, np.float32)
    narrow = pack_histograms(layout, {"a": DyadicHistogram.from_values(values)}).dense
    wide = pack_histograms(layout, {"a": DyadicHistogram.from_values(values, 0.37)}).dense
    assert narrow is not None
    assert (narrow.counts.dtype, narrow.shift, narrow.counts[1]) == (np.uint16, 8, 60_000)
    assert wide is not None
    assert (wide.counts.dtype, wide.shift, wide.counts[1]) == (np.uint32, 0, 60_000 * 95)


def test_a_site_that_does_not_fit_its_grid_travels_free_and_the_others_dense() -> None:
    layout = SiteLayout(("in", "out"), (FixedGrid(0, 0, 4), FixedGrid(0, 0, 4)))
    inside = DyadicHistogram.from_values(np.float32([1, 2]))
    outside = DyadicHistogram.from_values(np.float32([1, 9]))
    packed = pack_histograms(layout, {"in": inside, "out": outside})
    assert packed.free.sites.tolist() == [1]
    assert packed.dense is not None
    assert packed.dense.counts.tolist() == [0, 1, 1, 0, 0, 0, 0, 0]


def test_a_site_that_was_not_observed_counts_as_empty() -> None:
    assert _summed(SiteLayout(SITES, GRIDS), [{}]) == dict.fromkeys(SITES, DyadicHistogram.empty())


@pytest.mark.parametrize("layout", [SiteLayout(()), SiteLayout((), ())])
def test_a_layout_without_sites_is_fine(layout: SiteLayout) -> None:
    assert _summed(layout, [{}, {}]) == {}
