"""From one histogram to the range that a site is quantized in.

Every method is a pure function of the histogram, and merged histograms equal pooled ones bit for bit: so do
the ranges. Values are taken as spread evenly within a bin, about a thousandth of their own range wide.
"""

import math
from dataclasses import dataclass

import numpy as np

from quantization.errors import ConfigurationError, IncompatibleStatsError
from quantization.histogram import DyadicHistogram
from quantization.range_search import Bins, Cost, divergence, expected_squared_error, search_range


@dataclass(frozen=True, slots=True)
class Range:
    """Values that a site's codes span, in units of the tensor.

    Attributes:
        lo: Least value, finite, <= 0.
        hi: Greatest value, finite, >= 0.
    """

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if not -math.inf < self.lo <= 0.0 <= self.hi < math.inf:
            raise ConfigurationError(f"a range is finite and holds 0, got [{self.lo}, {self.hi}]")


@dataclass(frozen=True, slots=True)
class MinMax:
    """The least and the greatest value seen."""

    def __str__(self) -> str:
        return "minmax"


@dataclass(frozen=True, slots=True)
class Percentile:
    """The values below and above which a fraction of all lies.

    Attributes:
        fraction: Share of the values at or below `hi`, and at or above `lo`; 0.5 to 1.
    """

    fraction: float = 0.9999

    def __post_init__(self) -> None:
        if not 0.5 <= self.fraction <= 1.0:
            raise ConfigurationError(f"the fraction of a percentile is 0.5 to 1, got {self.fraction}")

    def __str__(self) -> str:
        return f"percentile:{self.fraction!r}"


@dataclass(frozen=True, slots=True)
class MeanSquaredError:
    """The range of least expected squared error: rounding inside, clipping outside."""

    def __str__(self) -> str:
        return "mse"


@dataclass(frozen=True, slots=True)
class KLEntropy:
    """The range whose codes tell most about the distribution (Kullback-Leibler, as TensorRT's calibrator)."""

    def __str__(self) -> str:
        return "kl"


@dataclass(frozen=True, slots=True)
class MovingAverage:
    """The last generation's range, moved toward what another method chooses now.

    Attributes:
        inner: Method that looks at the histogram.
        momentum: Weight of the last generation's range, 0 to less than 1; without one, `inner` alone decides.
    """

    inner: "MinMax | Percentile | MeanSquaredError | KLEntropy"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigurationError(f"momentum is 0 to less than 1, got {self.momentum}")

    def __str__(self) -> str:
        return f"moving_average:{self.inner}:{self.momentum!r}"


RangeMethod = MinMax | Percentile | MeanSquaredError | KLEntropy | MovingAverage


def choose_range(
    histogram: DyadicHistogram,
    method: RangeMethod,
    bit_width: int = 8,
    previous: Range | None = None,
) -> Range:
    """Return the range that `method` chooses: within the exact bounds of the values, widened to hold 0.

    A moving average alone may reach further, to where the last generation's range was.

    Args:
        histogram: Values of the site.
        method: How to choose.
        bit_width: Bits per code, 2 to 8.
        previous: Range of the last generation; used by `MovingAverage` alone.

    Raises:
        IncompatibleStatsError: The histogram is empty.
    """
    if histogram.count == 0:
        raise IncompatibleStatsError(
            f"no finite value was observed ({histogram.nonfinite_count} were NaN or infinite):"
            " ask more devices, or keep the last generation's range"
        )
    widest = Range(min(histogram.minimum, 0.0), max(histogram.maximum, 0.0))
    match method:
        case MinMax():
            return widest
        case Percentile(fraction):
            return _percentile(histogram, fraction, widest)
        case MeanSquaredError():
            return _search(histogram, widest, bit_width, expected_squared_error)
        case KLEntropy():
            return _search(histogram, widest, bit_width, divergence)
        case MovingAverage(inner, momentum):
            chosen = choose_range(histogram, inner, bit_width)
            if previous is None:
                return chosen
            lo = momentum * previous.lo + (1 - momentum) * chosen.lo
            hi = momentum * previous.hi + (1 - momentum) * chosen.hi
            return Range(lo, hi)


def method_from_name(name: str) -> RangeMethod:
    """Return the method that `str` gave this name: "minmax", "mse", "kl", "percentile:0.9999"...

    "percentile" and "moving_average:<method>" take the default of what they leave out.

    Raises:
        ConfigurationError: There is no such method, or its number is out of range.
    """
    if name in _PLAIN_METHODS:
        return _PLAIN_METHODS[name]
    kind, _, rest = name.partition(":")
    if kind == "percentile":
        return Percentile(_number(rest, name)) if rest else Percentile()
    if kind == "moving_average" and rest:
        inner, _, last = rest.rpartition(":")
        if inner and inner != "percentile":
            return MovingAverage(_inner(inner, name), _number(last, name))
        return MovingAverage(_inner(rest, name))
    raise _unknown(name)


_PLAIN_METHODS: dict[str, RangeMethod] = {
    str(method): method for method in (MinMax(), MeanSquaredError(), KLEntropy())
}


def _inner(name: str, whole: str) -> MinMax | Percentile | MeanSquaredError | KLEntropy:
    method = method_from_name(name)
    if isinstance(method, MovingAverage):
        raise _unknown(whole)
    return method


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _unknown(name) from None


def _unknown(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"unknown range method {name!r}; known: minmax, mse, kl, percentile:FRACTION,"
        " moving_average:METHOD:MOMENTUM (e.g. moving_average:mse:0.9)"
    )


def _percentile(histogram: DyadicHistogram, fraction: float, widest: Range) -> Range:
    lo = _quantile(histogram, 1.0 - fraction)
    hi = _quantile(histogram, fraction)
    return Range(max(min(lo, 0.0), widest.lo), min(max(hi, 0.0), widest.hi))


def _quantile(histogram: DyadicHistogram, share: float) -> float:
    """Return the value that `share` of the weight lies below, linear within its bin, within the exact bounds."""
    cumulative = np.cumsum(histogram.counts)
    target = share * float(cumulative[-1])
    index = min(int(np.searchsorted(cumulative, target)), cumulative.size - 1)
    below = float(cumulative[index] - histogram.counts[index])
    position = (target - below) / float(histogram.counts[index])
    low_edge, high_edge = histogram.edges()[index : index + 2].tolist()
    return float(min(max(low_edge + (high_edge - low_edge) * position, histogram.minimum), histogram.maximum))


def _search(histogram: DyadicHistogram, widest: Range, bit_width: int, cost: Cost) -> Range:
    if widest.lo == widest.hi:
        return widest
    lo, hi = search_range(Bins.of(histogram), widest.lo, widest.hi, bit_width, cost)
    return Range(lo, hi)
