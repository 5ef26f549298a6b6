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

from quantization.printable import printable

ProgressFunction = Callable[[float, str], None]
"""Takes the fraction done, 0 to 1, and what comes now."""


@contextmanager
def show_progress(*, is_verbose: bool) -> Iterator[ProgressFunction]:
    """Yield the function to call at each step; what it shows is gone at the end, so that results stand alone."""
    console = Console(stderr=True)
    if is_verbose:
        yield _logged()
    elif console.is_terminal:
        with _bar(console) as bar:
            yield _drawn(bar)
    else:
        yield lambda _fraction, _message: None


def _logged() -> ProgressFunction:
    """Return a function that logs every phase once."""
    last = ""

    def log(fraction: float, message: str) -> None:
        nonlocal last
        if message != last:
            last = message
            structlog.get_logger().info(
                "phase_started", phase=printable(message), progress_ratio=round(fraction, 3)
            )

    return log


def _drawn(bar: Progress) -> ProgressFunction:
    """Return a function that draws a bar, which never goes back: later work may turn out to be less."""
    task = bar.add_task("starting", total=1.0)
    furthest = 0.0

    def draw(fraction: float, message: str) -> None:
        nonlocal furthest
        furthest = min(max(furthest, fraction), 1.0)
        bar.update(task, completed=furthest, description=printable(message))

    return draw


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
