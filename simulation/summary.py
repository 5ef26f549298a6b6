"""One experiment in words: the sentence that sums it up, and how its numbers are written.

Accuracies are fractions, 0 to 1, written in percent, and their differences in points; sizes are written in
units of 1,000 bytes.
"""

import math
from collections import Counter
from collections.abc import Mapping

from quantization.printable import printable
from server.precision_record import PrecisionRecord
from simulation.result import ExperimentResult, GenerationResult

UNKNOWN = "\N{EN DASH}"
_MAX_WIDTHS = 64
_UNITS = ("bytes", "KB", "MB", "GB")


def format_percent(fraction: float | None) -> str:
    """Return "91.0 %", or a dash for None."""
    return UNKNOWN if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f} %"


def format_bytes(size_bytes: int) -> str:
    """Return "8.9 KB" for 8,912."""
    size, unit = float(size_bytes), 0
    while size >= 999.95 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size_bytes} {_UNITS[0]}"


def format_nats(loss: float | None) -> str:
    """Return "0.0123 nats", or a dash for None."""
    return UNKNOWN if loss is None or math.isnan(loss) else f"{loss:.3g} nats"


def format_ratio(ratio: float) -> str:
    """Return "10.1x", with the sign of multiplication."""
    return f"{ratio:.1f}\N{MULTIPLICATION SIGN}"


def format_points(points: float) -> str:
    """Return "-0.4 points", with a true minus sign; "0.0 points" for what rounds to nothing."""
    rounded = round(points, 1) + 0.0
    return f"{rounded:+.1f} points".replace("-", "\N{MINUS SIGN}") if rounded else "0.0 points"


def format_severity(severity: float | tuple[float, ...]) -> str:
    """Return "0.3", or "(0.3, 0.2, -0.2)"."""
    if isinstance(severity, tuple):
        return f"({', '.join(f'{value:g}' for value in severity)})"
    return f"{severity:g}"


def format_drift(drift: Mapping[str, float | tuple[float, ...]]) -> str:
    """Return "contrast 0.3 and blur 3", or "no drift"."""
    words = [f"{name.replace('-', ' ')} {format_severity(severity)}" for name, severity in drift.items()]
    if not words:
        return "no drift"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def format_outcome(generation: GenerationResult) -> str:
    """Return "published: ..." or "not published: ..." with the reason."""
    verdict = "published" if generation.published else "not published"
    return f"{verdict}: {generation.reason}" if generation.reason else verdict


def format_clients(generation: GenerationResult) -> str:
    """Return "48", or "48 (2 late, 1 failed)" where devices were dropped."""
    dropped = [f"{count} {reason}" for reason, count in generation.dropped.items() if count]
    return f"{generation.clients} ({', '.join(dropped)})" if dropped else str(generation.clients)


def format_bits(precision: PrecisionRecord) -> str:
    """Return "8 4 3 3 fp16" in the order of the graph; of very many layers, how many have each width."""
    widths = [
        str(layer.bit_width) if layer.storage == "int8" else layer.storage for layer in precision.layers
    ]
    if len(widths) <= _MAX_WIDTHS:
        return " ".join(widths)
    counts = Counter(widths)
    order = sorted(counts, key=lambda width: (not width.isdigit(), width))
    return ", ".join(f"{width} in {counts[width]:,}" for width in order)


def describe_precision(precision: PrecisionRecord) -> tuple[str, str]:
    """Return how small the weights are and at what price, and the bits of all layers, as two sentences."""
    measured = ""
    if precision.measured_loss is not None:
        measured = f", measured {format_nats(precision.measured_loss)}"
    sizes = (
        f"{format_bytes(precision.weight_bytes)} of {format_bytes(precision.fp32_weight_bytes)},"
        f" and {format_bytes(precision.overhead_bytes)} of manifest and skeleton"
    )
    first = (
        f"Weights are {format_ratio(precision.size_ratio)} smaller than in fp32: {sizes}; predicted divergence"
        f" {format_nats(precision.predicted_loss)}{measured}; tuned in {precision.tune_seconds:.1f} s."
    )
    return first, f"Bits by layer: {format_bits(precision)}."


def shorten(name: str, length: int = 34) -> str:
    """Return a printable name of at most `length` characters; of a longer one the end, which tells names apart."""
    name = printable(name)
    return name if len(name) <= length else f"…{name[1 - length :]}"


def published(result: ExperimentResult) -> tuple[GenerationResult, ...]:
    """Return the generations that went live, in order."""
    return tuple(generation for generation in result.generations if generation.published)


def summarize(result: ExperimentResult) -> str:
    """Return what the drift cost and what tuning won back, also where that is nothing, as one sentence."""
    frozen, tuned = result.accuracy.frozen, result.accuracy.tuned
    if frozen is None or tuned is None:
        return f"{_unlabelled(result)}."
    lab = result.accuracy.lab_frozen if result.drift else None
    cost = None if lab is None else _tenths(lab - frozen)
    gain = _gain(result, _tenths(tuned - frozen), cost)
    return f"{_cost(result, frozen, cost)}; {gain}{_smaller(result)}."


def _smaller(result: ExperimentResult) -> str:
    if result.precision is None or not published(result):
        return ""
    return f", with weights {format_ratio(result.precision.size_ratio)} smaller than in fp32"


def _tenths(difference: float) -> int:
    """Return a difference of accuracies in tenths of a point, so that sentences follow what they print."""
    return round(1000 * difference)


def _points(tenths: int) -> str:
    return f"{abs(tenths) / 10:.1f}"


def _unlabelled(result: ExperimentResult) -> str:
    start = f"Without labels the accuracy under {format_drift(result.drift)} is unknown; {_updates(result)}"
    live = published(result)
    if not live:
        return start
    if live[-1].agreement is None:
        return f"{start} went live"
    share = format_percent(live[-1].agreement)
    return f"{start} went live and answers as the corrected float model on {share} of the field data"


def _cost(result: ExperimentResult, frozen: float, cost: int | None) -> str:
    name = format_drift(result.drift)
    if not result.drift:
        return f"Without drift the frozen int8 model is at {format_percent(frozen)}"
    if cost is None:
        return f"Under {name} the frozen int8 model is at {format_percent(frozen)}"
    subject = name[0].upper() + name[1:]
    if cost == 0:
        return f"{subject} cost the frozen int8 model nothing"
    if cost < 0:
        return f"{subject} made the frozen int8 model {_points(cost)} points better"
    return f"{subject} cost the frozen int8 model {_points(cost)} points"


def _gain(result: ExperimentResult, gain: int, cost: int | None) -> str:
    updates = _updates(result)
    if not published(result):
        return updates
    if gain == 0:
        return f"{updates} changed nothing" if result.precision is None else f"{updates} left it there"
    if gain < 0:
        return f"{updates} made it {_points(gain)} points worse"
    if cost is None or cost <= 0:
        return f"{updates} made it {_points(gain)} points better"
    if gain > cost:
        return f"{updates} won back all of them and {_points(gain - cost)} more"
    return f"{updates} won back {'all' if gain == cost else _points(gain)} of them"


def _updates(result: ExperimentResult) -> str:
    """Return how many updates went live and what they weighed."""
    live = published(result)
    if not live:
        return "no update was published"
    size = format_bytes(sum(generation.update_bytes for generation in live))
    return f"one update of {size}" if len(live) == 1 else f"{len(live)} updates of {size} in all"
