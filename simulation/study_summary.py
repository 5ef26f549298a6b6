"""A study in words: the sentence that sums it up, and the rows of its table."""

from collections.abc import Sequence

from simulation.study_result import (
    ALLOCATED,
    UNIFORM,
    FrontMeasurement,
    LayerSensitivity,
    StudyResult,
)
from simulation.summary import UNKNOWN, format_bytes, format_percent, format_ratio

TOLERATED_DROP = 0.005
"""Loss of accuracy, as a fraction, within which a model counts as good as the float one."""

_METHODS = {ALLOCATED: "allocated", UNIFORM: "uniform", "fedmpq": "FedMPQ"}
_MAX_WIDTHS = 4  # that a table has columns for

PARETO_HEADS = ("bits", "smaller", "weights", "right", "predicted divergence", "layers by bits")


def describe_facts(result: StudyResult) -> str:
    """Return what was studied."""
    return f"{result.task} · {result.devices:,} devices · seed {result.seed}"


def summarize_pareto(result: StudyResult) -> str:
    """Return how small a model may get within half a point, and what uniform bits give, as one sentence."""
    if not result.front:
        return "No model was built."
    if result.fp32_accuracy is None:
        smallest = max(result.front, key=lambda point: point.size_ratio)
        return f"Without labels accuracy is unknown; the smallest model is {_smaller(smallest)}."
    best = smallest_within(result, ALLOCATED)
    floor = f"half a point of fp32 ({format_percent(result.fp32_accuracy)})"
    if best is None:
        return f"No allocated model stays within {floor}."
    start = f"Within {floor} weights get {_smaller(best)} at {format_percent(best.accuracy)}"
    uniform = smallest_within(result, UNIFORM)
    if uniform is None:
        return f"{start}; with the same bits everywhere none stays within it."
    return (
        f"{start}; with the same bits everywhere {_smaller(uniform)} at {format_percent(uniform.accuracy)}."
    )


def smallest_within(result: StudyResult, method: str) -> FrontMeasurement | None:
    """Return the smallest model of a method that loses half a point at most; None where none does."""
    if result.fp32_accuracy is None:
        return None
    floor = result.fp32_accuracy - TOLERATED_DROP - 1e-9
    good = [p for p in result.by_method(method) if p.accuracy is not None and p.accuracy >= floor]
    return max(good, key=lambda point: point.size_ratio, default=None)


def summarize_sensitivity(result: StudyResult) -> str:
    """Return which layer hurts most, as one sentence."""
    layers = [layer for layer in result.by_loss() if layer.losses]
    if not layers:
        return "No layer was measured."
    worst = layers[0]
    bit_width = min(worst.losses)
    total = sum(layer.losses.get(bit_width, 0.0) for layer in layers)
    share = worst.losses[bit_width] / total if total > 0 else 0.0
    of_all = f", {format_percent(share)} of what all {len(layers)} layers cost" if len(layers) > 1 else ""
    return f"{worst.name} hurts most: {_loss(worst.losses[bit_width])} nats at {bit_width} bits{of_all}."


def pareto_rows(result: StudyResult) -> list[tuple[str, ...]]:
    """Return the rows of a front under `PARETO_HEADS`: models by method, the smallest first."""
    return [
        (
            _METHODS[method],
            format_ratio(point.size_ratio),
            format_bytes(point.size_bytes),
            format_percent(point.accuracy),
            f"{_loss(point.predicted_loss)} nats",
            _widths(point),
        )
        for method in _METHODS
        for point in result.by_method(method)
    ]


def sensitivity_heads(result: StudyResult) -> tuple[str, ...]:
    """Return the heads of a table of layers."""
    widths = (f"{width} bits" for width in shown_widths(result.layers))
    return ("layer", "weights", "gain", "95 % interval", "devices", *widths)


def sensitivity_rows(result: StudyResult) -> list[tuple[str, ...]]:
    """Return the rows of a table of layers under `sensitivity_heads`, the one that hurts most first."""
    widths = shown_widths(result.layers)
    return [
        (
            layer.name,
            f"{layer.parameters:,}",
            _loss(layer.gain),
            _interval(layer),
            str(layer.devices),
            *(_loss(layer.losses[width]) if width in layer.losses else UNKNOWN for width in widths),
        )
        for layer in result.by_loss()
    ]


def _interval(layer: LayerSensitivity) -> str:
    low = _loss(layer.gain_low)
    return f"{low} or more" if layer.gain_high is None else f"{low} to {_loss(layer.gain_high)}"


def shown_widths(layers: Sequence[LayerSensitivity]) -> tuple[int, ...]:
    """Return the bit-widths that a table shows: the fewest ones, and the most."""
    widths = sorted({width for layer in layers for width in layer.losses})
    return tuple(widths) if len(widths) <= _MAX_WIDTHS else (*widths[: _MAX_WIDTHS - 1], widths[-1])


def _smaller(point: FrontMeasurement) -> str:
    return f"{format_ratio(point.size_ratio)} smaller ({format_bytes(point.size_bytes)})"


def _widths(point: FrontMeasurement) -> str:
    """Return how many layers have each bit-width: "2: 5, 3: 12"."""
    widths = list(point.bits.values())
    return ", ".join(f"{width}: {widths.count(width)}" for width in sorted(set(widths)))


def _loss(value: float) -> str:
    return f"{value:.2g}"
