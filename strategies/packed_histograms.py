"""One device's histograms as the vectors that travel.

A reply has two parts. *Dense*: for sites whose bins the round fixed, all counts on one vector, as small
unsigned integers, with three numbers and the bounds of each site beside it. Such vectors add in one pass over
contiguous memory. *Free*: sites without a fixed grid, or whose values do not fit it, each as the histogram
itself. Both may occur in one reply, and no value is lost.

Dense counts are the histogram's, in steps of 1/256 weight, shifted right by `shift`: 8 where no sample is
weighted, which is the rule, so that 16 bits are enough for 65,535 values in a bin.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from quantization.arrays import AnyArray, IntArray
from quantization.dyadic import MAX_BINS
from quantization.errors import IncompatibleStatsError
from quantization.fixed_grid import FixedGrid
from quantization.histogram import WEIGHT_STEPS, DyadicHistogram
from strategies.messages import SiteLayout

SUMMARY_ROWS = 3
"""Rows of the dense summary: weight (the sum of the site's dense counts), count and nonfinite count."""

SHIFTS = (0, 8)
MAX_DEVICE_COUNT = 1 << 40
MAX_DEVICE_WEIGHT = 1 << 48
"""Most values and weight (steps of 1/256) of a site in one reply; int64 holds 32,768 such."""

MAX_FREE_LENGTH = 7 + MAX_BINS
_NO_VALUES = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class DensePart:
    """The sites that fit their grids, for S sites in all.

    Attributes:
        counts: uint16 or uint32, bins of all grids one after another; zeros for sites that did not fit.
        shift: How many bits the counts were shifted right.
        summary: int64 (3, S): weight, count and nonfinite count of each site.
        bounds: float32 (2, S): minimum and maximum; +inf and -inf for sites that saw no value.
    """

    counts: AnyArray
    shift: int
    summary: IntArray
    bounds: AnyArray


@dataclass(frozen=True, slots=True, eq=False)
class FreePart:
    """The sites that are sent as they are.

    Attributes:
        sites: int64, their positions in the layout, ascending.
        lengths: int64, length of each of their histograms' vectors.
        histograms: int64, these vectors one after another.
    """

    sites: IntArray = field(default_factory=lambda: _NO_VALUES)
    lengths: IntArray = field(default_factory=lambda: _NO_VALUES)
    histograms: IntArray = field(default_factory=lambda: _NO_VALUES)


@dataclass(frozen=True, slots=True, eq=False)
class PackedHistograms:
    """One device's histograms as they travel: dense if the round fixes grids, free where needed."""

    dense: DensePart | None
    free: FreePart


def pack_histograms(layout: SiteLayout, histograms: Mapping[str, DyadicHistogram]) -> PackedHistograms:
    """Return the histograms of the layout's sites as vectors; sites not observed count as empty."""
    ordered = [histograms.get(name, DyadicHistogram.empty()) for name in layout.names]
    if layout.grids is None:
        return PackedHistograms(None, _pack_free(dict(enumerate(ordered))))
    is_unweighted = not any((histogram.counts % WEIGHT_STEPS).any() for histogram in ordered)
    shift = SHIFTS[1] if is_unweighted else SHIFTS[0]
    free: dict[int, DyadicHistogram] = {}
    summary = np.zeros((SUMMARY_ROWS, len(ordered)), np.int64)
    bounds = np.array([[np.inf], [-np.inf]], np.float32).repeat(len(ordered), axis=1)
    parts = [np.zeros(grid.bins, np.int64) for grid in layout.grids]
    for site, (grid, histogram) in enumerate(zip(layout.grids, ordered, strict=True)):
        counts = _on_grid(grid, histogram, shift)
        if counts is None:
            free[site] = histogram
            continue
        parts[site] = counts
        summary[:, site] = counts.sum(), histogram.count, histogram.nonfinite_count
        bounds[:, site] = histogram.minimum, histogram.maximum
    joined = np.concatenate([_NO_VALUES, *parts])
    narrow = np.uint16 if int(joined.max(initial=0)) < 1 << 16 else np.uint32
    return PackedHistograms(DensePart(joined.astype(narrow), shift, summary, bounds), _pack_free(free))


def _on_grid(grid: FixedGrid, histogram: DyadicHistogram, shift: int) -> IntArray | None:
    """Return the shifted counts on the grid; None where the histogram does not fit it or 32 bits."""
    if max(histogram.count, histogram.nonfinite_count) > MAX_DEVICE_COUNT:
        return None
    try:
        counts = grid.counts(histogram) >> shift
    except IncompatibleStatsError:
        return None
    return counts if int(counts.max(initial=0)) < 1 << 32 else None


def _pack_free(free: Mapping[int, DyadicHistogram]) -> FreePart:
    vectors = [histogram.to_array() for histogram in free.values()]
    lengths = np.array([vector.size for vector in vectors], np.int64)
    return FreePart(np.array(list(free), np.int64), lengths, np.concatenate([_NO_VALUES, *vectors]))
