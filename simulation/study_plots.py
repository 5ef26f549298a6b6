"""The plots of studies: what size costs, and which layers hurt."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulation.loss_plots import draw_gains, scale_by_powers
from simulation.plot_style import AFTER, BEFORE, GRID, INK, LAB, MUTED, SURFACE, WIDTH, plot_style
from simulation.plots import name_lines
from simulation.precision_plots import name_sizes
from simulation.row_plots import row_axes
from simulation.study_result import (
    ALLOCATED,
    FEDMPQ,
    UNIFORM,
    FrontMeasurement,
    LayerSensitivity,
    StudyResult,
)
from simulation.summary import format_percent

_MARKS = {ALLOCATED: ("o", AFTER, 6), UNIFORM: ("s", BEFORE, 6), FEDMPQ: ("^", MUTED, 7)}
_NAMES = {ALLOCATED: "allocated", UNIFORM: "the same bits everywhere", FEDMPQ: "FedMPQ's rule"}
_MAX_DIGITS = 100  # rows, beyond which bit-widths are dots


def draw_pareto(result: StudyResult) -> Figure | None:
    """Return accuracy, where rows have labels, and predicted loss by size; None of an empty front."""
    if not result.front:
        return None
    has_labels = any(point.accuracy is not None for point in result.front)
    with plot_style():
        figure = Figure(figsize=(WIDTH, 7.6 if has_labels else 4.4))
        panels = figure.subplots(2 if has_labels else 1, sharex=True, squeeze=False)[:, 0]
        if has_labels:
            _draw_accuracy(panels[0], result)
        _draw_losses(panels[-1], result)
        sizes = [point.size_bytes for point in result.front]
        name_sizes(panels[-1], result.fp32_weight_bytes, sizes, above=panels[0])
        handles, labels = panels[0].get_legend_handles_labels()
        panels[0].legend(handles[::-1], labels[::-1], loc="lower right" if has_labels else "upper right")
        _lay_out(figure)
    return figure


def _draw_accuracy(axes: Axes, result: StudyResult) -> None:
    """Draw accuracy by size; what falls far below the allocated models is named at the lower edge."""
    lines = {"fp32": (result.fp32_accuracy, "--"), "8-bit weights": (result.int8_accuracy, ":")}
    references = {name: (share, dash) for name, (share, dash) in lines.items() if share is not None}
    allocated = [point.accuracy for point in result.by_method(ALLOCATED) if point.accuracy is not None]
    every = [point.accuracy for point in result.front if point.accuracy is not None]
    shown = (allocated or every) + [share for share, _ in references.values()]
    span = max(max(shown) - min(shown), 0.01)
    low, high = max(min(shown) - 0.45 * span, -0.03), min(max(shown) + 0.2 * span, 1.06)
    for method in (UNIFORM, FEDMPQ, ALLOCATED):
        points = [(point, point.accuracy) for point in result.by_method(method) if point.accuracy is not None]
        _draw_points(axes, method, points, low)
    for share, dash in references.values():
        axes.axhline(share, color=LAB, linewidth=1.4, linestyle=dash, zorder=1)
    axes.set_ylim(low, high)
    name_lines(
        axes, {f"{name} {format_percent(share)}": (share, LAB) for name, (share, _) in references.items()}
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axes.set_ylabel("right on test rows")


def _draw_losses(axes: Axes, result: StudyResult) -> None:
    scale_by_powers(axes, "y", [point.predicted_loss for point in result.front])
    low = axes.get_ylim()[0]
    for method in (UNIFORM, FEDMPQ, ALLOCATED):
        _draw_points(axes, method, [(point, point.predicted_loss) for point in result.by_method(method)], low)
    axes.set_ylabel("predicted divergence, nats")


def _draw_points(
    axes: Axes, method: str, points: Sequence[tuple[FrontMeasurement, float]], low: float
) -> None:
    """Draw the models of one method: allocated ones as a line, others as marks with what they are."""
    if not points:
        return
    mark, color, size = _MARKS[method]
    axes.plot(
        [point.size_bytes for point, _ in points],
        [value if value >= low else float("nan") for _, value in points],
        mark,
        linestyle="-" if method == ALLOCATED else "",
        color=color,
        linewidth=2.4,
        markersize=size,
        zorder=4 if method == ALLOCATED else 3,
        label=_NAMES[method],
    )
    for point, value in points:
        text = _uniform_bits(point) if method == UNIFORM else ""
        if value < low:
            axes.plot([point.size_bytes], [low], "v", color=color, markersize=6, zorder=3, clip_on=False)
            text = f"{text} {format_percent(value)}".strip()
        if text:
            axes.annotate(
                text,
                (point.size_bytes, max(value, low)),
                (8, 0 if value >= low else 7),
                textcoords="offset points",
                va="center",
                color=color,
                fontsize=8.5,
                zorder=2,  # below the line of the allocated models
                bbox={"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
            )


def _uniform_bits(point: FrontMeasurement) -> str:
    widths = set(point.bits.values())
    return f"{widths.pop()} bits" if len(widths) == 1 else ""


def draw_sensitivity(result: StudyResult) -> Figure | None:
    """Return each layer's gain, and what it costs at each bit-width, the layer that hurts most on top."""
    layers = result.by_loss()
    if not layers:
        return None
    with plot_style():
        figure, (left, right) = row_axes([layer.name for layer in layers], panels=2)
        draw_gains(left, layers)
        _draw_widths(right, layers)
        _lay_out(figure)
    return figure


def _draw_widths(axes: Axes, layers: Sequence[LayerSensitivity]) -> None:
    """Draw every bit-width of a layer where its predicted loss is."""
    scale_by_powers(
        axes, "x", [loss for layer in layers for loss in layer.losses.values()] or [0.0], is_narrow=True
    )
    measured = [(row, layer.losses) for row, layer in enumerate(layers) if layer.losses]
    lows = [min(losses.values()) for _, losses in measured]
    highs = [max(losses.values()) for _, losses in measured]
    axes.hlines([row for row, _ in measured], lows, highs, color=GRID, linewidth=3, zorder=2)
    marks = [
        (row, bits, loss, _color(bits, losses)) for row, losses in measured for bits, loss in losses.items()
    ]
    if len(layers) > _MAX_DIGITS:
        colors = [color for *_, color in marks]
        axes.scatter([loss for _, _, loss, _ in marks], [row for row, *_ in marks], 12, colors, zorder=3)
    else:
        for row, bits, loss, color in marks:
            weight = "normal" if color == INK else "bold"
            axes.annotate(str(bits), (loss, row), ha="center", va="center", color=color, fontweight=weight)
    axes.set_title("predicted divergence at each bit-width")
    axes.set_xlabel("nats")


def _color(bit_width: int, losses: Mapping[int, float]) -> str:
    """Return the colour of a bit-width: the fewest and the most bits stand out."""
    return BEFORE if bit_width == min(losses) else AFTER if bit_width == max(losses) else INK


def _lay_out(figure: Figure) -> None:
    """Lay the figure out once, and not again for every file."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
