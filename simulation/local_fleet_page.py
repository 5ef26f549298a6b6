"""The report of a fleet on one machine: a page with its plots, and the result as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from simulation.local_fleet_result import LocalFleetResult
from simulation.local_fleet_terminal import (
    ROLLOUT_HEADS,
    accuracy_rows,
    query_rows,
    rollout_row,
    sentence,
)
from simulation.page_parts import Card, cards, document, header, plot, run_again, section, table, text
from simulation.plot_style import AFTER, BEFORE, INK, LAB, MUTED, WIDTH, plot_style
from simulation.report_folder import MARK, ReportFiles, write_files
from simulation.summary import format_percent
from simulation.svg import to_inline_svg, to_png

PAGE, RESULT, PICTURE = "fleet.html", "fleet.json", "fleet.png"
FILES: ReportFiles = {PAGE: MARK.encode(), RESULT: b'"canary_share"', PICTURE: MARK.encode()}
"""What `quantfleet-sim fleet` writes beside the logs."""


def write_fleet_report(result: LocalFleetResult, command: str, folder: Path) -> Path:
    """Write the page, the picture and the result; return the path of the page.

    Args:
        result: What came of it.
        command: That does it again.
        folder: As `prepare_folder` left it.
    """
    figure = draw_fleet(result)
    files = {
        RESULT: json.dumps(result.to_json(), indent=2, allow_nan=False).encode(),
        PAGE: render_fleet(result, command, to_inline_svg(figure, "fleet", "accuracy over time")).encode(),
        PICTURE: to_png(figure),
    }
    write_files(folder, files, FILES)
    return folder / PAGE


def render_fleet(result: LocalFleetResult, command: str, svg: str) -> str:
    """Return the page."""
    facts = f"{result.agents} devices · {result.nodes} SuperNodes · {result.database} · {result.drift}"
    queries = [row for query in result.queries for row in query_rows(query)]
    return document(
        "A fleet on one machine",
        [
            header(facts, sentence(result)),
            cards(_figures(result)),
            plot(
                "Accuracy over time, and who ran what",
                "Every input that the devices' applications asked about, against its true class. Lines are what"
                " happened; below, how many devices ran each version.",
                svg,
            ),
            section("Accuracy", table(("", "right answers"), accuracy_rows(result))),
            section("Rollouts", table(ROLLOUT_HEADS, [rollout_row(one) for one in result.rollouts])),
            section("What Prometheus said", table(("asked", "value", "of"), queries)) if queries else "",
            section("quantfleet-server status", f"<pre>{_lines(result.status)}</pre>"),
            section("quantfleet-server rollout list", f"<pre>{_lines(result.history)}</pre>"),
            section("What happened", table(("second", "what"), _phases(result))),
            run_again(command, result.wall_seconds, RESULT),
        ],
    )


def draw_fleet(result: LocalFleetResult) -> Figure:
    """Return accuracy over time, and below how many devices ran each version."""
    series = result.series
    with plot_style():
        figure = Figure(figsize=(WIDTH, 5.6))
        top, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        seen = [
            (at, value)
            for at, value in zip(series.seconds, series.accuracies, strict=True)
            if value is not None
        ]
        top.plot([at for at, _ in seen], [value for _, value in seen], color=AFTER, linewidth=2)
        top.set_ylim(0, 1.04)
        top.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        top.set_ylabel("right answers")
        first, last = (seen[0][0] - 2, series.seconds[-1]) if seen else (0.0, 1.0)
        for at, words in _marked(result):
            if not first <= at <= last:
                continue
            for axes in (top, below):
                axes.axvline(at, color=MUTED, linewidth=0.8, linestyle=":", zorder=0)
            top.annotate(
                words,
                (at, 1.01),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=8,
                color=MUTED,
                ha="center",
                va="bottom",
            )
        versions = sorted(series.devices.items())
        below.stackplot(
            series.seconds,
            [counts for _, counts in versions],
            labels=[f"version {version}" for version, _ in versions],
            colors=[_color(version, result) for version, _ in versions],
            step="post",
            alpha=0.85,
        )
        top.set_xlim(first, last)
        below.set_yticks(range(0, result.agents + 1, max(1, result.agents // 4)))
        below.set_ylim(0, result.agents)
        below.set_ylabel("devices")
        below.set_xlabel("seconds")
        below.legend(loc="lower left", ncols=len(versions), fontsize=8, labelcolor=INK)
    return figure


def _color(version: int, result: LocalFleetResult) -> str:
    """Return the colour of a version: what was there first, what was tuned, and what was bad."""
    tuned, bad = result.rollouts[0].version, result.rollouts[-1].version
    if version == bad:
        return BEFORE
    return AFTER if version >= tuned else LAB


def _marked(result: LocalFleetResult) -> list[tuple[float, str]]:
    """Return the moments that a plot marks."""
    names = (
        ("now the field does", "drift"),
        ("tuned generation, version", "tuned: "),
        ("bad generation (", "bad: "),
    )
    marks = []
    for at, words in result.phases:
        for part, name in names:
            if part not in words:
                continue
            phase = words.partition(": ")[2].partition(" (")[0].partition(";")[0] if name != "drift" else ""
            if not phase.startswith("expanding"):
                marks.append((at, f"{name}{phase}"))
    return marks


def _figures(result: LocalFleetResult) -> list[Card]:
    accuracies, bad = result.accuracies, result.rollouts[-1]
    return [
        (
            "before",
            format_percent(accuracies.drifted),
            "right in the field",
            f"{format_percent(accuracies.lab)} in the lab",
        ),
        (
            "after",
            format_percent(accuracies.tuned),
            "right once tuned",
            f"version {result.rollouts[0].version}",
        ),
        ("", f"{bad.devices} of {result.agents}", "devices got the bad generation", bad.what),
        ("", f"{bad.seconds:.0f} s", "until it was taken back", bad.reason),
        ("", f"{result.unanswered:,}", "inputs not answered", f"of {result.asked:,}"),
    ]


def _phases(result: LocalFleetResult) -> list[Sequence[str]]:
    return [(f"{at:.0f}", words) for at, words in result.phases]


def _lines(said: str) -> str:
    return "\n".join(text(line) for line in said.rstrip().splitlines())
