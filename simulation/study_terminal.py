"""Studies on a terminal: one table and the sentence that sums it up."""

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantization.printable import printable
from simulation.study_result import StudyResult
from simulation.study_summary import (
    PARETO_HEADS,
    describe_facts,
    pareto_rows,
    sensitivity_heads,
    sensitivity_rows,
    summarize_pareto,
    summarize_sensitivity,
)
from simulation.summary import format_percent, shorten

_NAME_WIDTH = 32  # columns


def print_pareto(result: StudyResult, console: Console) -> None:
    """Print every model of the front, and what the float model gets right."""
    _print(console, result, PARETO_HEADS, pareto_rows(result), summarize_pareto(result))


def print_sensitivity(result: StudyResult, console: Console) -> None:
    """Print every layer, the one that hurts most first."""
    rows = [(shorten(name, _NAME_WIDTH), *others) for name, *others in sensitivity_rows(result)]
    _print(console, result, sensitivity_heads(result), rows, summarize_sensitivity(result))


def _print(
    console: Console, result: StudyResult, heads: Sequence[str], rows: Sequence[Sequence[str]], sentence: str
) -> None:
    table = Table(
        title=Text(printable(describe_facts(result))),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place == 0 else "right", overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
    console.print()
    for note in _notes(result):
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print(Text(printable(sentence), style="bold"), soft_wrap=True)


def _notes(result: StudyResult) -> list[str]:
    seconds = f"Tuned in {result.tune_seconds:.1f} s, {result.wall_seconds:.1f} s in all."
    if not result.front:
        return [f"Under a bit-width: the divergence in nats that it is predicted to cause. {seconds}"]
    if result.fp32_accuracy is None:
        return [seconds]
    shares = (
        f"fp32 {format_percent(result.fp32_accuracy)}, 8-bit weights {format_percent(result.int8_accuracy)}"
    )
    return [f"Right on the same test rows: {shares}.", seconds]


PRINTERS: Mapping[str, Callable[[StudyResult, Console], None]] = {
    "pareto": print_pareto,
    "sensitivity": print_sensitivity,
}
"""By command."""
