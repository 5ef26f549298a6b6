"""Results on a terminal: one table and the sentence that sums it up."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantization.printable import printable
from simulation.result import ExperimentResult, GenerationResult
from simulation.summary import (
    UNKNOWN,
    describe_precision,
    format_bytes,
    format_clients,
    format_drift,
    format_outcome,
    format_percent,
    published,
    summarize,
)

_PIPE_WIDTH = 120  # columns where stdout is no terminal


def stdout_console() -> Console:
    """Return a console that shows text as it is: no markup, no emoji, no guessing of what to colour."""
    console = Console(markup=False, emoji=False, highlight=False)
    return (
        console
        if console.is_terminal
        else Console(markup=False, emoji=False, highlight=False, width=_PIPE_WIDTH)
    )


def print_result(result: ExperimentResult, console: Console) -> None:
    """Print the table, what was kept in float, whether sums equal pooled data, and the sentence."""
    console.print(_result_table(result))
    console.print()
    for note in _notes(result):
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print(Text(printable(summarize(result)), style="bold"), soft_wrap=True)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a plain table; the last column wraps."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head != heads[-1])
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def _result_table(result: ExperimentResult) -> Table:
    title = f"{result.task} · {result.devices:,} devices · {format_drift(result.drift)} · seed {result.seed}"
    table = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for head in ("lab", "field", "size", "update", "devices"):
        table.add_column(head, justify="right", overflow="fold")
    table.add_column("outcome", overflow="fold")
    accuracy, sizes = result.accuracy, result.size_bytes
    table.add_row(
        "fp32", format_percent(accuracy.lab_fp32), format_percent(accuracy.fp32), _size(sizes.get("fp32"))
    )
    table.add_row("int8 frozen", format_percent(accuracy.lab_frozen), format_percent(accuracy.frozen))
    for generation in result.generations:
        table.add_row(*_generation_row(generation))
    live = published(result)
    outcome = f"generation {live[-1].generation} serves" if live else "the frozen model serves"
    table.add_section()
    update = format_bytes(result.update_bytes) if live else UNKNOWN
    table.add_row(
        "int8 tuned",
        "",
        format_percent(accuracy.tuned),
        _size(sizes.get("tuned")),
        update,
        "",
        outcome,
        style="bold",
    )
    return table


def _generation_row(generation: GenerationResult) -> tuple[str | Text, ...]:
    return (
        f"generation {generation.generation}",
        "",
        format_percent(generation.accuracy),
        format_bytes(generation.size_bytes),
        format_bytes(generation.update_bytes) if generation.published else UNKNOWN,
        Text(printable(format_clients(generation))),
        Text(printable(format_outcome(generation))),
    )


def _size(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else format_bytes(size_bytes)


def _notes(result: ExperimentResult) -> list[str]:
    notes = []
    if result.precision is not None:
        notes += [printable(sentence) for sentence in describe_precision(result.precision)]
    if result.float_ops:
        notes.append(printable(f"Kept in float: {'; '.join(result.float_ops)}."))
    if result.federated_equals_pooled is not None:
        verdict = "equal" if result.federated_equals_pooled else "DIFFER FROM"
        notes.append(f"Ranges from merged statistics {verdict} those from pooled data, compared bit for bit.")
    return notes
