"""What plots of predicted losses and gains share: axes over many powers of ten, and intervals of layers."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from simulation.plot_style import AFTER, MUTED

_FEW_TICKS, _MANY_TICKS = 5, 9
"""Powers of ten beyond which only every second one, or fewer, is named: below half a figure, and elsewhere."""


class Probed(Protocol):
    """A layer that devices probed; see `server.precision_record.LayerPrecision`."""

    @property
    def gain(self) -> float:
        """Nats of divergence per unit of the layer's loss."""

    @property
    def gain_low(self) -> float:
        """Lower end of its 95 % interval."""

    @property
    def gain_high(self) -> float | None:
        """Upper end; None where one device alone measured it."""


def scale_by_powers(axes: Axes, which: str, values: Iterable[float], *, is_narrow: bool = False) -> None:
    """Give an axis powers of ten where the values are positive; linear around 0 where some are not.

    Args:
        axes: What to scale.
        which: "x" or "y".
        values: What is shown on it; all finite.
        is_narrow: Whether the axis is as wide as half a figure.
    """
    axis, scale, limit = (
        (axes.xaxis, axes.set_xscale, axes.set_xlim)
        if which == "x"
        else (axes.yaxis, axes.set_yscale, axes.set_ylim)
    )
    shown = sorted(values)
    positive = [value for value in shown if value > 0]
    if not positive:
        limit(0, 1)
        axis.set_major_locator(FixedLocator([0]))
        return
    if len(positive) < len(shown):
        scale("symlog", linthresh=positive[0])
        limit(min(0.0, 1.3 * shown[0]), 2 * positive[-1])
    else:
        scale("log")
        limit(positive[0] / 1.6, positive[-1] * 1.6)
        axis.set_major_locator(_locator(positive[-1] / positive[0], is_narrow=is_narrow))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def _locator(spread: float, *, is_narrow: bool) -> LogLocator:
    """Return ticks at powers of ten, and at 2 and 5 times them where there are few."""
    subs = (1.0, 2.0, 5.0) if spread < (20 if is_narrow else 300) else (1.0,)
    return LogLocator(10, subs=subs, numticks=_FEW_TICKS if is_narrow else _MANY_TICKS)


def few_ticks() -> MaxNLocator:
    """Return round ticks that leave room for sizes such as "281.0 KB"."""
    return MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1)


def draw_gains(axes: Axes, layers: Sequence[Probed]) -> None:
    """Draw each layer's gain as a dot on its 95 % interval; an interval without an upper end runs to the edge."""
    known = [layer.gain for layer in layers]
    lows = [layer.gain_low for layer in layers]
    highs = [layer.gain_high for layer in layers if layer.gain_high is not None]
    scale_by_powers(axes, "x", [*known, *(low for low in lows if low > 0), *highs], is_narrow=True)
    start, end = axes.get_xlim()
    for is_open, dashes in ((False, "-"), (True, ":")):
        rows = [row for row, layer in enumerate(layers) if (layer.gain_high is None) == is_open]
        starts = [max(layers[row].gain_low, start) for row in rows]
        ends = [high if (high := layers[row].gain_high) is not None else end for row in rows]
        axes.hlines(rows, starts, ends, color=MUTED, linewidth=1.6, linestyle=dashes, zorder=2)
    axes.plot(known, range(len(known)), "o", color=AFTER, markersize=5.5, zorder=3, clip_on=False)
    axes.set_title("gain, with its 95 % interval")
    axes.set_xlabel("nats of divergence per unit of the layer's error")
