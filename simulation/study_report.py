"""The report of a study: a page that needs nothing but itself, its plot as PNG, and the result as JSON.

The rules of `simulation.report` hold here too.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from simulation.page_parts import Card, cards, document, header, plot, run_again, section, table
from simulation.report_folder import STUDIES, prepare_folder, write_files
from simulation.study_plots import draw_pareto, draw_sensitivity
from simulation.study_result import ALLOCATED, UNIFORM, StudyResult
from simulation.study_summary import (
    PARETO_HEADS,
    describe_facts,
    pareto_rows,
    sensitivity_heads,
    sensitivity_rows,
    smallest_within,
    summarize_pareto,
    summarize_sensitivity,
)
from simulation.summary import UNKNOWN, format_bytes, format_percent, format_ratio
from simulation.svg import to_inline_svg, to_png

_DRAWN: Mapping[str, Callable[[StudyResult], Figure | None]] = {
    "pareto": draw_pareto,
    "sensitivity": draw_sensitivity,
}

_TITLES = {"pareto": "What size costs", "sensitivity": "Which layers hurt"}

_NOTES = {
    "pareto": "Every mark is a model that was built, and run through ONNX Runtime on rows that no device holds. Bits"
    " are allocated from the fleet's statistics; a mark far below is named at the lower edge.",
    "sensitivity": "Devices ran the model with one layer's weights replaced, and reported how far its answers moved."
    " Numbers are bit-widths: the further right one stands, the more it costs.",
}


def write_study(study: str, result: StudyResult, command: str, folder: Path) -> Path:
    """Write the page, the plot and the result of "pareto" or "sensitivity", and return where the page is.

    Args:
        study: Which one; files carry its name.
        result: What was measured.
        command: What runs it again.
        folder: Made if absent.

    Raises:
        ConfigurationError: The folder cannot be used, or holds another program's file of our name.
    """
    prepare_folder(folder, STUDIES[study])
    figure = _DRAWN[study](result)
    files = {f"{study}.json": (json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n").encode()}
    if figure is not None:
        files[f"{study}.png"] = to_png(figure)
    svg = None if figure is None else to_inline_svg(figure, study, _TITLES[study])
    files[f"{study}.html"] = _page(study, result, command, svg).encode()
    write_files(folder, files, STUDIES[study])
    return folder / f"{study}.html"


def _page(study: str, result: StudyResult, command: str, svg: str | None) -> str:
    is_pareto = study == "pareto"
    sentence = summarize_pareto(result) if is_pareto else summarize_sensitivity(result)
    heads = PARETO_HEADS if is_pareto else sensitivity_heads(result)
    rows = pareto_rows(result) if is_pareto else sensitivity_rows(result)
    return document(
        f"{result.task}: {study}",
        [
            header(describe_facts(result), sentence),
            cards(_pareto_cards(result)) if is_pareto else "",
            plot(_TITLES[study], _NOTES[study], svg),
            section("Models" if is_pareto else "Layers", table(heads, rows)),
            run_again(command, result.wall_seconds, f"{study}.json"),
        ],
    )


def _pareto_cards(result: StudyResult) -> list[Card]:
    cards_shown: list[Card] = [
        ("", format_percent(result.fp32_accuracy), "float model", format_bytes(result.fp32_weight_bytes)),
        ("", format_percent(result.int8_accuracy), "8-bit weights", "the same test rows"),
    ]
    for kind, method, name in (("after", ALLOCATED, "allocated bits"), ("before", UNIFORM, "uniform bits")):
        best = smallest_within(result, method)
        ratio, share = (
            (UNKNOWN, UNKNOWN)
            if best is None
            else (format_ratio(best.size_ratio), format_percent(best.accuracy))
        )
        cards_shown.append((kind, ratio, f"smaller with {name}", f"{share} right, half a point lost at most"))
    cards_shown.append(
        ("", f"{result.tune_seconds:.1f} s", "tuning on the server", "rounding and allocation")
    )
    return cards_shown
