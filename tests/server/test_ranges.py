"""Ranges of all sites from histograms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.calibration import MinMax, MovingAverage, Percentile, Range
from quantization.errors import IncompatibleStatsError
from quantization.graph import GraphPlan, Site
from quantization.histogram import DyadicHistogram
from server.ranges import choose_ranges


def site(
    name: str, *, is_positive: bool = False, maximum: float | None = None, is_output: bool = False
) -> Site:
    return Site(
        name=name,
        minimum_is_zero=is_positive,
        maximum=maximum,
        is_output=is_output,
        is_computed_in_integers=True,
        sample_size=None,
        row_lengths=(),
    )


def plan(*sites: Site) -> GraphPlan:
    return GraphPlan((), sites, (), frozenset(), frozenset(), "x", (None,), ("y",))


def histogram(*values: float) -> DyadicHistogram:
    return DyadicHistogram.from_values(np.array(values, np.float32))


def test_a_site_gets_what_the_method_chooses() -> None:
    chosen = choose_ranges(plan(site("a"), site("b")), {"a": histogram(-1, 2), "b": histogram(3)}, MinMax())
    assert chosen == {"a": Range(-1.0, 2.0), "b": Range(0.0, 3.0)}


def test_what_is_never_negative_starts_at_zero() -> None:
    chosen = choose_ranges(plan(site("a", is_positive=True)), {"a": histogram(-1e-9, 2)}, MinMax())
    assert chosen == {"a": Range(0.0, 2.0)}


def test_a_range_ends_where_the_activation_does() -> None:
    sites = plan(site("a", is_positive=True, maximum=6.0))
    assert choose_ranges(sites, {"a": histogram(0, 6.0000005)}, MinMax()) == {"a": Range(0.0, 6.0)}
    assert choose_ranges(sites, {"a": histogram(0, 3)}, MinMax()) == {"a": Range(0.0, 3.0)}


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=200))
def test_the_logits_are_never_shrunk(values: list[float]) -> None:
    chosen = choose_ranges(plan(site("y", is_output=True)), {"y": histogram(*values)}, Percentile(0.5))
    assert chosen["y"].lo == min(0.0, *values)
    assert chosen["y"].hi == max(0.0, *values)


def test_a_moving_average_continues_the_last_ranges() -> None:
    method = MovingAverage(MinMax(), 0.75)
    chosen = choose_ranges(plan(site("a")), {"a": histogram(0, 8)}, method, {"a": Range(0.0, 4.0)})
    assert chosen == {"a": Range(0.0, 5.0)}


def test_a_site_that_saw_nothing_keeps_its_range() -> None:
    before = {"a": Range(-1.0, 1.0)}
    assert choose_ranges(plan(site("a")), {}, MinMax(), before) == before
    nothing = DyadicHistogram.from_values(np.array([np.nan, np.inf], np.float32))
    assert choose_ranges(plan(site("a")), {"a": nothing}, MinMax(), before) == before


def test_a_site_without_any_value_or_range_is_named() -> None:
    with pytest.raises(IncompatibleStatsError, match="site 'a': no finite value was observed"):
        choose_ranges(plan(site("a")), {}, MinMax())
