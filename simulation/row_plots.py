"""Plots with one row per layer or site, the first on top."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantization.calibration import Range
from quantization.renormalization import LayerDrift
from simulation.plot_style import AFTER, BEFORE, GRID, INK, MUTED, WIDTH
from simulation.result import ExperimentResult
from simulation.summary import published, shorten

_ROW = 0.24  # inches a layer or site takes
_MAX_ROWS_HEIGHT = 24.0  # inches; beyond it only every k-th name is written


def draw_drift(result: ExperimentResult) -> Figure | None:
    """Return how far each layer's moments lie from the lab's, before tuning and after."""
    before = next((g.drift for g in result.generations if g.drift), {})
    live = published(result)
    after = live[-1].residual_drift if live else {}
    layers = _in_order(result.layers, before, after)
    if not layers:
        return None
    figure, (left, right) = row_axes(layers, panels=2)
    _draw_pairs(left, layers, {n: d.shift for n, d in before.items()}, {n: d.shift for n, d in after.items()})
    _draw_pairs(right, layers, _spreads(before), _spreads(after))
    left.set_title("shift of channel means")
    left.set_xlabel("lab standard deviations, RMS over channels")
    right.set_title("change of channel spreads")
    right.set_xlabel("|log(field / lab)|, RMS over channels")
    _add_legend(figure, left, "before tuning", "after" if after else None)
    return figure


def _spreads(drift: Mapping[str, LayerDrift]) -> dict[str, float]:
    return {name: found.log_spread for name, found in drift.items()}


def _draw_pairs(
    axes: Axes, names: Sequence[str], before: Mapping[str, float], after: Mapping[str, float]
) -> None:
    for row, name in enumerate(names):
        if name in before and name in after:
            axes.plot([before[name], after[name]], [row, row], color=GRID, linewidth=3, zorder=2)
    for values, color in ((before, BEFORE), (after, AFTER)):
        rows = [row for row, name in enumerate(names) if name in values]
        axes.plot(
            [values[names[row]] for row in rows],
            rows,
            "o",
            color=color,
            markersize=6,
            zorder=3,
            clip_on=False,
        )
    axes.set_xlim(left=0)


def draw_ranges(result: ExperimentResult) -> Figure | None:
    """Return the quantized range of each site, from the lab and as tuned."""
    live = published(result)
    tuned = live[-1].ranges if live else {}
    sites = _in_order(tuple(result.lab_ranges), result.lab_ranges, tuned)
    if not sites:
        return None
    figure, (axes,) = row_axes(sites, panels=1)
    for shift, ranges, color in ((-0.18, result.lab_ranges, BEFORE), (0.18, tuned, AFTER)):
        rows = [row for row, site in enumerate(sites) if site in ranges]
        lows = [ranges[sites[row]].lo for row in rows]
        widths = [ranges[sites[row]].hi - ranges[sites[row]].lo for row in rows]
        axes.barh([row + shift for row in rows], widths, 0.3, lows, color=color, zorder=2)
    _scale_ranges(axes, [*result.lab_ranges.values(), *tuned.values()])
    axes.use_sticky_edges = False
    axes.set_xlabel("values that the codes span")
    _add_legend(figure, axes, "lab", "tuned" if tuned else None)
    return figure


def _scale_ranges(axes: Axes, ranges: Sequence[Range]) -> None:
    """Use a logarithmic scale, linear around 0, where a linear one would hide the narrow ranges."""
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
    widths = sorted(chosen.hi - chosen.lo for chosen in ranges if chosen.hi > chosen.lo)
    if widths and widths[-1] > 50 * widths[len(widths) // 2]:
        axes.set_xscale("symlog", linthresh=widths[0])


def _in_order(order: Sequence[str], *values: Mapping[str, object]) -> list[str]:
    """Return the names that have values: the known ones in order, others behind them."""
    named = {name for mapping in values for name in mapping}
    return [name for name in order if name in named] + sorted(named - set(order))


def row_axes(names: Sequence[str], panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with one row per name, the first on top."""
    height = min(_ROW * len(names), _MAX_ROWS_HEIGHT)
    figure = Figure(figsize=(WIDTH, height + 1.2))
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    step = math.ceil(_ROW * len(names) / _MAX_ROWS_HEIGHT)
    shown = range(0, len(names), step)
    axes[0].set_yticks(list(shown), [shorten(names[row]) for row in shown])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for panel in axes:
        panel.tick_params(axis="y", labelcolor=INK, labelsize=9)
        panel.xaxis.label.set_size(8.5)
    return figure, axes


def _add_legend(figure: Figure, axes: Axes, before: str, after: str | None) -> None:
    """Name the two colours above the plots."""
    for color, name in ((BEFORE, before), (AFTER, after)):
        if name is not None:
            axes.plot([], [], "o", color=color, markersize=7, label=name)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, handletextpad=0.2)
