"""The plots of one experiment, as matplotlib figures that know no screen."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulation.plot_style import AFTER, BEFORE, INK, LAB, MUTED, SURFACE, WIDTH, plot_style
from simulation.precision_plots import draw_precision
from simulation.result import ExperimentResult
from simulation.row_plots import draw_drift, draw_ranges
from simulation.summary import format_bytes, format_drift, format_percent, shorten

_MAX_VALUE_LABELS, _MAX_REASONS = 12, 4  # generations, beyond which they would overlap


def draw_plots(result: ExperimentResult) -> dict[str, Figure]:
    """Return the figures that the result has something for, by the names of `simulation.report_folder`."""
    with plot_style():
        drawn = {
            "accuracy": _accuracy(result),
            "drift": draw_drift(result),
            "ranges": draw_ranges(result),
            "sizes": _sizes(result),
            **draw_precision(result.precision),
        }
        figures = {name: figure for name, figure in drawn.items() if figure is not None}
        for figure in figures.values():
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, not again for every file
    return figures


def _accuracy(result: ExperimentResult) -> Figure | None:
    """Return accuracy by generation; without labels, agreement with the corrected float model."""
    frozen = result.accuracy.frozen
    if frozen is None:
        shares = [(g.generation, g.agreement, g.published) for g in result.generations]
    else:
        shares = [(0, frozen, True)]
        shares += [(g.generation, g.accuracy, g.published) for g in result.generations]
    known = [(number, share, is_live) for number, share, is_live in shares if share is not None]
    if not known:
        return None
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.subplots()
    references = {} if frozen is None else _references(result)
    _draw_generations(axes, known)
    for label, (share, color, dashes) in references.items():
        axes.axhline(share, color=color, linewidth=1.4, linestyle=dashes, zorder=1, label=label)
    shown = [share for _, share, _ in known] + [share for share, _, _ in references.values()]
    low, high = _limits(shown)
    axes.set_ylim(low, high)
    name_lines(
        axes,
        {
            f"{label} {format_percent(share)}": (share, color)
            for label, (share, color, _) in references.items()
        },
    )
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 1.0 + 1e-9)])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axes.set_ylabel(
        "accuracy in the field" if frozen is not None else "agreement with the corrected float model"
    )
    title = f"{shorten(result.task)}, {result.devices:,} devices, {shorten(format_drift(result.drift), 60)}"
    axes.set_title(title, pad=12)
    _name_generations(axes, [number for number, _, _ in known])
    return figure


def _references(result: ExperimentResult) -> dict[str, tuple[float, str, str]]:
    """Return the lines to compare with: share, colour and dashes by label."""
    accuracy = result.accuracy
    lines = {
        "lab, float": (accuracy.lab_fp32, LAB, "--"),
        "field, float": (accuracy.fp32, LAB, ":"),
        "field, frozen int8": (accuracy.frozen, BEFORE, "--"),
    }
    return {label: (share, color, dash) for label, (share, color, dash) in lines.items() if share is not None}


def _draw_generations(axes: Axes, points: Sequence[tuple[int, float, bool]]) -> None:
    numbers, shares = [p[0] for p in points], [p[1] for p in points]
    axes.plot(numbers, shares, color=AFTER, linewidth=2.4, zorder=3)
    for number, share, is_live in points:
        color = BEFORE if number == 0 else AFTER
        face = color if is_live else SURFACE
        axes.plot(
            [number],
            [share],
            "o",
            color=color,
            markerfacecolor=face,
            markersize=8,
            markeredgewidth=2,
            zorder=4,
        )
    labelled = points[1:] if len(points) <= _MAX_VALUE_LABELS else points[-1:]
    for number, share, is_live in labelled:
        text = format_percent(share) + ("" if is_live or len(points) > _MAX_REASONS else "\nnot published")
        offset = (0, 10) if share >= shares[0] else (0, -12)
        axes.annotate(
            text,
            (number, share),
            offset,
            textcoords="offset points",
            ha="center",
            va="bottom" if offset[1] > 0 else "top",
            color=AFTER,
            fontweight="bold",
            zorder=5,
            bbox={"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )


def _limits(shares: Sequence[float]) -> tuple[float, float]:
    """Return the shares to show, with air around them, inside of 0 to 1 but for room to label."""
    low, high = min(shares), max(shares)
    air = max(0.16 * (high - low), 0.01)
    return max(low - air, -0.03), min(high + 1.3 * air, 1.06)


def name_lines(axes: Axes, labels: Mapping[str, tuple[float, str]]) -> None:
    """Write each line's name right of it, pushed apart where lines lie close."""
    low, high = axes.get_ylim()
    gap = 0.065 * (high - low)
    lowest = -math.inf
    for label, (share, color) in sorted(labels.items(), key=lambda item: item[1][0]):
        lowest = max(share, lowest + gap)
        axes.annotate(
            label,
            (1.015, lowest),
            xycoords=("axes fraction", "data"),
            va="center",
            color=MUTED if color == LAB else color,
            fontsize=9,
            annotation_clip=False,
        )


def _name_generations(axes: Axes, numbers: Sequence[int]) -> None:
    step = max(1, math.ceil(len(numbers) / 20))
    ticks = [number for number in numbers if number % step == 0 or number == numbers[-1]]
    axes.set_xticks(ticks, ["frozen" if number == 0 else str(number) for number in ticks])
    axes.set_xlim(numbers[0] - 0.35, numbers[-1] + 0.35)
    axes.set_xlabel("generation")
    axes.grid(visible=False, axis="x")


def _sizes(result: ExperimentResult) -> Figure:
    """Return what is stored and what travels, in bytes."""
    bars = {
        "model, float": (result.size_bytes.get("fp32", 0), LAB),
        "artifact, int8": (result.size_bytes.get("tuned", 0), AFTER),
        "update, one device": (result.update_bytes, AFTER),
    }
    heard = [g for g in result.generations if g.clients]
    if heard:
        mean = round(sum(g.statistics_bytes / g.clients for g in heard) / len(heard))
        bars["statistics, one device, one generation"] = (mean, MUTED)
    figure = Figure(figsize=(WIDTH, 0.5 + 0.42 * len(bars)))
    axes = figure.subplots()
    sizes = [size for size, _ in bars.values()]
    axes.barh(range(len(bars)), sizes, 0.6, color=[color for _, color in bars.values()], zorder=2)
    for row, size in enumerate(sizes):
        axes.annotate(
            format_bytes(size),
            (size, row),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
        )
    axes.set_yticks(range(len(bars)), list(bars))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max([*sizes, 1]))
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    return figure
