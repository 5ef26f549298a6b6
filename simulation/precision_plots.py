"""Plots of how precision was allocated: bits of each layer, the Pareto front, sensitivity, and predicted losses."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.precision_record import FrontPoint, LayerPrecision, PrecisionRecord
from simulation.loss_plots import draw_gains, few_ticks, scale_by_powers
from simulation.plot_style import AFTER, BEFORE, GRID, INK, LAB, MUTED, WIDTH
from simulation.row_plots import row_axes
from simulation.summary import format_bytes, format_nats, format_points, format_ratio, shorten

_MAX_ROW_LABELS = 100  # rows, beyond which numbers beside bars would overlap
_MAX_POINT_LABELS, _MAX_POINT_MARKS = 8, 40


def draw_precision(record: PrecisionRecord | None) -> dict[str, Figure | None]:
    """Return the figures "bits", "front", "layers" and "prediction"; None where there is nothing to show."""
    if record is None:
        return {}
    return {
        "bits": _bits(record.layers),
        "front": _front(record),
        "layers": _sensitivity(record.layers),
        "prediction": _prediction(record),
    }


def _bits(layers: Sequence[LayerPrecision]) -> Figure | None:
    """Return bits per weight and bytes of each layer, in the order of the graph."""
    if not layers:
        return None
    figure, (left, right) = row_axes([layer.name for layer in layers], panels=2)
    rows, sizes = range(len(layers)), [layer.size_bytes for layer in layers]
    colors = [AFTER if layer.storage == "int8" else LAB for layer in layers]
    ends = [max(layer.stored_bits, layer.bit_width) for layer in layers]
    most = max(8.0, *ends)
    left.barh(rows, [layer.stored_bits for layer in layers], 0.62, color=colors, zorder=2)
    _mark(left, [layer.bit_width for layer in layers])
    left.set_xlim(0, 1.18 * most)
    left.set_xticks(range(0, math.ceil(most) + 1, 2 if most < 12 else 4))
    left.set_title("bits per weight")
    left.set_xlabel("bar: as stored, scales included; mark: of the codes")
    _label_rows(left, ends, [_storage(layer) for layer in layers])
    right.barh(rows, sizes, 0.62, color=colors, zorder=2)
    right.set_xlim(0, 1.25 * max([*sizes, 1]))
    right.xaxis.set_major_locator(few_ticks())
    right.xaxis.set_major_formatter(lambda value, _: format_bytes(round(value)) if value else "0")
    right.set_title("bytes")
    right.set_xlabel("as stored, codes and scales")
    _label_rows(right, sizes, [format_bytes(size) for size in sizes])
    return figure


def _storage(layer: LayerPrecision) -> str:
    return str(layer.bit_width) if layer.storage == "int8" else shorten(layer.storage, 8)


def _mark(axes: Axes, values: Sequence[float]) -> None:
    """Draw a mark across each row at its value."""
    starts, ends = ([row + side for row in range(len(values))] for side in (-0.42, 0.42))
    axes.vlines(values, starts, ends, color=INK, linewidth=2, zorder=3)


def _label_rows(axes: Axes, ends: Sequence[float], texts: Sequence[str]) -> None:
    """Write each row's value behind its bar, where rows are high enough to read it."""
    axes.grid(visible=False, axis="y")
    if len(ends) > _MAX_ROW_LABELS:
        return
    for row, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.annotate(text, (end, row), (6, 0), textcoords="offset points", va="center", fontsize=8.5)


def _front(record: PrecisionRecord) -> Figure | None:
    """Return predicted loss by size, with the chosen point and what devices measured; None without a front."""
    if not record.front:
        return None
    points = sorted(record.front, key=lambda point: point.size_bytes)
    chosen = FrontPoint(record.weight_bytes, record.size_ratio, record.predicted_loss, record.measured_loss)
    seen = [*points, chosen]
    measured = [(point, point.measured_loss) for point in seen if point.measured_loss is not None]
    sizes, losses = [point.size_bytes for point in points], [point.predicted_loss for point in points]
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    mark = "o" if len(points) <= _MAX_POINT_MARKS else ""
    axes.plot(sizes, losses, mark, linestyle="-", color=LAB, markersize=4, zorder=2, label="predicted")
    if measured:
        _draw_measured(axes, measured)
    axes.plot(
        [record.weight_bytes],
        [record.predicted_loss],
        "o",
        color=AFTER,
        markersize=10,
        zorder=4,
        label=f"chosen: {format_ratio(record.size_ratio)} smaller, {format_nats(record.predicted_loss)}",
    )
    scale_by_powers(axes, "y", [*losses, record.predicted_loss, *(loss for _, loss in measured)])
    name_sizes(axes, record.fp32_weight_bytes, [*sizes, record.weight_bytes])
    axes.set_ylabel("divergence, nats")
    axes.legend(loc="upper right")
    return figure


def _draw_measured(axes: Axes, points: Sequence[tuple[FrontPoint, float]]) -> None:
    """Draw what devices measured, and beside it the points of accuracy that they saw lost."""
    sizes, losses = [point.size_bytes for point, _ in points], [loss for _, loss in points]
    axes.plot(sizes, losses, "D", color=BEFORE, markersize=6, zorder=3, label="measured by devices")
    if len(points) > _MAX_POINT_LABELS:
        return
    for point, loss in points:
        if point.drop is not None:
            axes.annotate(
                format_points(-point.drop),
                (point.size_bytes, loss),
                (8, 4),
                textcoords="offset points",
                fontsize=8.5,
                color=BEFORE,
                zorder=5,
            )


def name_sizes(axes: Axes, fp32_bytes: int, sizes: Sequence[int], above: Axes | None = None) -> None:
    """Name the sizes below a plot, and how many times smaller than fp32 they are above it, or above another."""
    low, high = min(sizes), max(sizes)
    air = max(0.08 * (high - low), 0.04 * high, 1)
    start, end = max(low - air, 0), high + air
    axes.set_xlim(start, end)
    axes.set_xlabel("weights as stored, codes and scales")
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(round(value)) if value else "0")
    axes.xaxis.set_major_locator(few_ticks())
    ratios: list[int] = []
    for ratio in _RATIOS:
        is_apart = not ratios or fp32_bytes / ratios[-1] - fp32_bytes / ratio > _LEAST_GAP * (end - start)
        if start <= fp32_bytes / ratio <= end and is_apart:
            ratios.append(ratio)
    top = (above or axes).secondary_xaxis("top")
    top.set_ticks(
        [fp32_bytes / ratio for ratio in ratios], [f"{ratio}\N{MULTIPLICATION SIGN}" for ratio in ratios]
    )
    top.set_xlabel("times smaller than fp32")
    top.spines["top"].set_visible(False)


_LEAST_GAP = 0.05  # between two ratios, as a share of the width
_RATIOS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 25, 32)


def _sensitivity(layers: Sequence[LayerPrecision]) -> Figure | None:
    """Return the gain of each layer and what it is predicted to cost, the costliest on top."""
    if not layers:
        return None
    order = sorted(layers, key=lambda layer: (-layer.predicted_loss, layer.name))
    losses = [layer.predicted_loss for layer in order]
    figure, (left, right) = row_axes([layer.name for layer in order], panels=2)
    draw_gains(left, order)
    colors = [AFTER if layer.storage == "int8" else LAB for layer in order]
    right.barh(range(len(order)), losses, 0.62, color=colors, zorder=2)
    right.set_xlim(0, 1.25 * max(losses) if max(losses) > 0 else 1)
    right.xaxis.set_major_locator(few_ticks())
    right.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_title("predicted divergence")
    right.set_xlabel("nats, at the bits it got, which stand behind the bar")
    _label_rows(right, losses, [_storage(layer) for layer in order])
    return figure


def _prediction(record: PrecisionRecord) -> Figure | None:
    """Return measured against predicted losses; None where nobody measured."""
    pairs = [(p.predicted_loss, p.measured_loss) for p in record.front if p.measured_loss is not None]
    if record.measured_loss is None and not pairs:
        return None
    chosen = [] if record.measured_loss is None else [(record.predicted_loss, record.measured_loss)]
    shown = [value for pair in [*pairs, *chosen] for value in pair]
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    for which in ("x", "y"):
        scale_by_powers(axes, which, [*shown, min(shown) / 2, 2 * max(shown)])  # one mark alone gets room too
    ends = axes.get_xlim()
    axes.plot(ends, ends, color=MUTED, linewidth=1.2, linestyle="--", zorder=2, label="as predicted")
    if axes.get_xscale() == "log":
        low, high = [end / 2 for end in ends], [end * 2 for end in ends]
        axes.fill_between(
            ends, low, high, color=GRID, alpha=0.5, linewidth=0, zorder=1, label="within a factor of 2"
        )
    for name, found, mark, size, color in (
        ("on the front", pairs, "D", 6, BEFORE),
        ("chosen", chosen, "o", 10, AFTER),
    ):
        if found:
            predicted, measured = zip(*found, strict=True)
            axes.plot(predicted, measured, mark, color=color, markersize=size, zorder=3, label=name)
    axes.set_xlabel("predicted divergence, nats")
    axes.set_ylabel("measured by devices, nats")
    axes.legend(loc="upper left")
    return figure
