"""How far a run has come, on stderr: a bar on a terminal, log events if verbose, else nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from simulation.summary import printable

ProgressFunction = Callable[[float, str], None]
"""Takes the fraction done, 0 to 1, and what comes now."""


@contextmanager
def show_progress(*, is_verbose: bool) -> Iterator[ProgressFunction]:
    """Yield the function to call at each step; what it shows is gone at the end, so that results stand alone."""
    console = Console(stderr=True)
    if is_verbose:
        yield _log_phase
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda fraction, message: bar.update(
                task, completed=fraction, description=printable(message)
            )
    else:
        yield lambda _fraction, _message: None


def _log_phase(fraction: float, message: str) -> None:
    structlog.get_logger().info("phase_started", phase=printable(message), progress_ratio=round(fraction, 3))


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
    )
