"""Ranges of all sites from their merged histograms: the one rule that lab, fleet and pooled checks share."""

from collections.abc import Mapping

from quantization.calibration import MinMax, Range, RangeMethod, choose_range
from quantization.errors import IncompatibleStatsError
from quantization.graph import GraphPlan, Site
from quantization.histogram import DyadicHistogram


def choose_ranges(
    plan: GraphPlan,
    histograms: Mapping[str, DyadicHistogram],
    method: RangeMethod,
    previous: Mapping[str, Range] | None = None,
) -> dict[str, Range]:
    """Return the range of every site of the plan.

    A function of the merged histograms alone, so a fleet's ranges are bit for bit those of its pooled data.
    Logits keep all they hold, by min-max; what is never negative starts at 0, and behind a ReLU6 ends at 6 at
    most, or ONNX Runtime does not fuse. A site at which the fleet saw no finite value keeps the range it has.

    Args:
        plan: The model's sites.
        histograms: By site.
        method: For all sites but the logits.
        previous: The ranges of the last generation, by site, which a moving average continues.

    Raises:
        IncompatibleStatsError: A site has neither a finite value nor a previous range.
    """
    chosen = {}
    for site in plan.sites:
        histogram = histograms.get(site.name, DyadicHistogram.empty())
        before = (previous or {}).get(site.name)
        chosen[site.name] = _choose(site, histogram, MinMax() if site.is_output else method, before)
    return chosen


def _choose(site: Site, histogram: DyadicHistogram, method: RangeMethod, before: Range | None) -> Range:
    if histogram.count == 0 and before is not None:
        return before
    try:
        return _constrained(choose_range(histogram, method, previous=before), site)
    except IncompatibleStatsError as error:
        raise IncompatibleStatsError(f"site '{site.name}': {error}") from error


def _constrained(found: Range, site: Site) -> Range:
    lo = 0.0 if site.minimum_is_zero else found.lo
    hi = found.hi if site.maximum is None else min(found.hi, site.maximum)
    return Range(lo, hi)
