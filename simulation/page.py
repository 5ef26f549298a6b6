"""The report as one HTML page; see `simulation.report` for its rules."""

import math
from collections.abc import Mapping

from server.precision_record import PrecisionRecord
from simulation.page_parts import Card, cards, document, header, plot, run_again, section, table, text
from simulation.report_folder import RESULT_NAME
from simulation.result import ExperimentResult, GenerationResult
from simulation.scenario import Scenario
from simulation.summary import (
    UNKNOWN,
    format_bytes,
    format_clients,
    format_drift,
    format_percent,
    format_ratio,
    published,
    summarize,
)

PLOT_TITLES = {
    "accuracy": "Accuracy by generation",
    "agreement": "Agreement with the corrected float model, by generation",
    "drift": "Drift by layer, before tuning and after",
    "ranges": "Quantized range by site, from the lab and as tuned",
    "sizes": "Bytes stored and sent",
    "bits": "Bits per layer",
    "front": "What size costs",
    "layers": "Which layers hurt",
    "prediction": "Predicted and measured divergence",
}

_PLOT_NOTES = {
    "accuracy": "Field data that no calibration round saw, through ONNX Runtime. A hollow mark is a generation that"
    " was not published: the one before it keeps serving.",
    "agreement": "Share of field data on which int8 answers as its own float model does; no labels, so no accuracy."
    " A hollow mark is a generation that was not published.",
    "drift": "How far the fleet's channel moments lie from the lab's. Only these sums leave a device, never data.",
    "ranges": "Values that the 8-bit codes of each activation span.",
    "sizes": "What rests on a device, and what travels to it and from it.",
    "bits": "How each layer's weights are stored. Layers that the model's answers depend on get more bits; large layers"
    " on which they hardly depend get fewer, and pay for the others.",
    "front": "The least divergence from the model with 8-bit weights that is predicted for each size. Further to the"
    " left every byte that is saved costs more than the one before it.",
    "layers": "Devices ran the model with one layer's weights replaced, and reported how far its answers moved. A long"
    " interval is a layer on which they disagree; a dotted one has no upper end, as one device alone measured it.",
    "prediction": "A prediction adds up what layers cost one by one; a model has all of them at once. A mark above the"
    " line is a model that turned out worse than predicted.",
}

_PLOT_ORDER = ("bits", "front", "layers", "prediction", "drift", "ranges", "sizes")


def render_page(result: ExperimentResult, scenario: Scenario, plots: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        result: What was measured.
        scenario: What was simulated.
        plots: Inline SVG by name of the plot; those that are absent are left out.
    """
    has_labels = result.accuracy.frozen is not None
    return document(
        f"{result.task}: {format_drift(result.drift)}",
        [
            _header(result),
            cards(_figures(result)),
            _plot("accuracy" if has_labels else "agreement", plots.get("accuracy")),
            section("Accuracy", _accuracy_table(result)) if has_labels else "",
            section("Generations", _generation_table(result)),
            *(_plot(name, plots.get(name)) for name in _PLOT_ORDER),
            section("Devices that dropped out", _dropped(result)),
            section("Kept in float", _float_ops(result)),
            run_again(scenario.to_command(), result.wall_seconds, RESULT_NAME),
        ],
    )


def _header(result: ExperimentResult) -> str:
    facts = f"{result.task} · {result.devices:,} devices · {format_drift(result.drift)} · seed {result.seed}"
    return header(facts, summarize(result))


def _figures(result: ExperimentResult) -> list[Card]:
    accuracy = result.accuracy
    tuned_size = result.size_bytes.get("tuned", 0)
    figures: list[Card] = [
        (
            "before",
            format_percent(accuracy.frozen),
            "frozen int8 in the field",
            _lab_note(accuracy.lab_frozen),
        ),
        ("after", format_percent(accuracy.tuned), "tuned int8 in the field", _live_note(result)),
        (
            "",
            format_bytes(result.update_bytes) if published(result) else UNKNOWN,
            "last update, one device",
            _share_note(result.update_bytes, tuned_size, "of the int8 artifact")
            if published(result)
            else "none went live",
        ),
        (
            "",
            format_bytes(tuned_size),
            "int8 artifact",
            _share_note(tuned_size, result.size_bytes.get("fp32", 0), "of the float model"),
        ),
        ("", *_pooled(result.federated_equals_pooled)),
    ]
    record = result.precision
    if record is not None:
        figures.insert(4, ("after", *_size_card(record)))
    return figures


def _size_card(record: PrecisionRecord) -> tuple[str, str, str]:
    note = f"{format_bytes(record.weight_bytes)} of {format_bytes(record.fp32_weight_bytes)}"
    return format_ratio(record.size_ratio), "smaller weights than in fp32", note


def _lab_note(share: float | None) -> str:
    return f"{format_percent(share)} in the lab"


def _live_note(result: ExperimentResult) -> str:
    live = published(result)
    return f"generation {live[-1].generation} serves" if live else "generation 0 still serves"


def _share_note(part_bytes: int, whole_bytes: int, whole: str) -> str:
    return f"{format_percent(part_bytes / whole_bytes)} {whole}" if whole_bytes else ""


def _pooled(is_equal: bool | None) -> tuple[str, str, str]:
    label = "ranges from sums and from pooled data"
    if is_equal is None:
        return UNKNOWN, label, "not compared in this run"
    return (
        ("equal", label, "bit for bit, every site") if is_equal else ("differ", label, "please report this")
    )


def _plot(name: str, svg: str | None) -> str:
    return plot(PLOT_TITLES[name], _PLOT_NOTES[name], svg)


def _accuracy_table(result: ExperimentResult) -> str:
    accuracy = result.accuracy
    rows = [
        ("float model", accuracy.lab_fp32, accuracy.fp32),
        ("int8, frozen", accuracy.lab_frozen, accuracy.frozen),
        ("int8, tuned", None, accuracy.tuned),
    ]
    cells = [(name, format_percent(lab), format_percent(field)) for name, lab, field in rows]
    return table(("", "in the lab (same rows, no drift)", "in the field"), cells)


def _generation_table(result: ExperimentResult) -> str:
    heads = (
        "",
        "went live",
        "serves with",
        "agreement",
        "update",
        "artifact",
        "devices",
        "statistics",
        "seconds",
        "why",
    )
    return table(heads, (_generation_row(generation) for generation in result.generations))


def _generation_row(generation: GenerationResult) -> tuple[str, ...]:
    return (
        str(generation.generation),
        "yes" if generation.published else "no",
        format_percent(generation.accuracy),
        format_percent(generation.agreement),
        format_bytes(generation.update_bytes) if generation.published else UNKNOWN,
        format_bytes(generation.size_bytes),
        format_clients(generation),
        format_bytes(generation.statistics_bytes),
        f"{generation.seconds:.1f}" if math.isfinite(generation.seconds) else UNKNOWN,
        generation.reason,
    )


def _dropped(result: ExperimentResult) -> str:
    rows = [
        (f"generation {generation.generation}", str(count), reason)
        for generation in result.generations
        for reason, count in generation.dropped.items()
        if count
    ]
    if not rows:
        return "<p>None: every device that was asked answered in time.</p>"
    return table(("", "devices", "reason"), rows)


def _float_ops(result: ExperimentResult) -> str:
    if not result.float_ops:
        return "<p>Nothing: every operation runs on integers.</p>"
    return f"<ul>{''.join(f'<li>{text(operation)}</li>' for operation in result.float_ops)}</ul>"
