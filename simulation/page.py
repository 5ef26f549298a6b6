"""The report as one HTML page; see `simulation.report` for its rules."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import metadata

from simulation.page_style import STYLE
from simulation.report_folder import MARK
from simulation.result import ExperimentResult, GenerationResult
from simulation.scenario import Scenario
from simulation.summary import (
    UNKNOWN,
    format_bytes,
    format_clients,
    format_drift,
    format_percent,
    printable,
    published,
    summarize,
)

_UNBROKEN = 24  # characters
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

PLOT_TITLES = {
    "accuracy": "Accuracy by generation",
    "agreement": "Agreement with the corrected float model, by generation",
    "drift": "Drift by layer, before tuning and after",
    "ranges": "Quantized range by site, from the lab and as tuned",
    "sizes": "Bytes stored and sent",
}

_PLOT_NOTES = {
    "accuracy": "Field data that no calibration round saw, through ONNX Runtime. A hollow mark is a generation that"
    " was not published: the one before it keeps serving.",
    "agreement": "Share of field data on which int8 answers as its own float model does; no labels, so no accuracy."
    " A hollow mark is a generation that was not published.",
    "drift": "How far the fleet's channel moments lie from the lab's. Only these sums leave a device, never data.",
    "ranges": "Values that the 8-bit codes of each activation span.",
    "sizes": "What rests on a device, and what travels to it and from it.",
}


def render_page(result: ExperimentResult, scenario: Scenario, plots: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        result: What was measured.
        scenario: What was simulated.
        plots: Inline SVG by name of the plot; those that are absent are left out.
    """
    title = _text(f"{result.task}: {format_drift(result.drift)}")
    has_labels = result.accuracy.frozen is not None
    sections = [
        _header(result),
        _figures(result),
        _plot("accuracy" if has_labels else "agreement", plots.get("accuracy")),
        _section("Accuracy", _accuracy_table(result)) if has_labels else "",
        _section("Generations", _generation_table(result)),
        *(_plot(name, plots.get(name)) for name in ("drift", "ranges", "sizes")),
        _section("Devices that dropped out", _dropped(result)),
        _section("Kept in float", _float_ops(result)),
        _section("Run it again", _command(result, scenario)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{MARK}">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    """Return text from outside as HTML: escaped, on one line, without control characters."""
    return escape(printable(text), quote=True)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>"


def _header(result: ExperimentResult) -> str:
    facts = f"{result.task} · {result.devices:,} devices · {format_drift(result.drift)} · seed {result.seed}"
    return f'<header><p class="facts">{_text(facts)}</p><h1>{_text(summarize(result))}</h1></header>'


def _figures(result: ExperimentResult) -> str:
    accuracy = result.accuracy
    tuned_size = result.size_bytes.get("tuned", 0)
    figures = [
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
    cards = (
        f'<div class="figure {kind}"><strong>{_text(value)}</strong><span>{_text(label)}</span>'
        f"<small>{_text(note)}</small></div>"
        for kind, value, label, note in figures
    )
    return f'<div class="figures">{"".join(cards)}</div>'


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
    if svg is None:
        return ""
    title, note = _text(PLOT_TITLES[name]), _text(_PLOT_NOTES[name])
    return f'<figure><h2>{title}</h2><p>{note}</p><div class="plot">{svg}</div></figure>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its first column names the row."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(_cell(cell) for cell in others)}</tr>'
        for first, *others in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """Return a cell; a short text stays on one line."""
    if len(text) > _UNBROKEN:
        return f'<td class="long">{_text(text)}</td>'
    return f"<td>{_text(text).replace(' ', '&nbsp;')}</td>"


def _accuracy_table(result: ExperimentResult) -> str:
    accuracy = result.accuracy
    rows = [
        ("float model", accuracy.lab_fp32, accuracy.fp32),
        ("int8, frozen", accuracy.lab_frozen, accuracy.frozen),
        ("int8, tuned", None, accuracy.tuned),
    ]
    cells = [(name, format_percent(lab), format_percent(field)) for name, lab, field in rows]
    return _table(("", "in the lab (same rows, no drift)", "in the field"), cells)


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
    return _table(heads, (_generation_row(generation) for generation in result.generations))


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
    return _table(("", "devices", "reason"), rows)


def _float_ops(result: ExperimentResult) -> str:
    if not result.float_ops:
        return "<p>Nothing: every operation runs on integers.</p>"
    return f"<ul>{''.join(f'<li>{_text(operation)}</li>' for operation in result.float_ops)}</ul>"


def _command(result: ExperimentResult, scenario: Scenario) -> str:
    versions = ", ".join(
        f"{name} {_version(name)}" for name in ("quantfleet", "onnxruntime", "numpy", "flwr")
    )
    python = ".".join(str(part) for part in sys.version_info[:3])
    return (
        f"<pre>{_text(scenario.to_command())}</pre>"
        f"<p>{_text(f'{result.wall_seconds:.1f} seconds with {versions} on Python {python}.')}"
        " The figures behind the plots are in result.json.</p>"
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed)"
