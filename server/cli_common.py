"""What the commands of operators share: options, a connection to the server, tables."""

# ruff: noqa: PLC0415  # `--help` must not wait for gRPC

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantization.printable import printable
from server.cli_errors import exit_codes
from server.cli_options import expanded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from server.admin_client import AdminClient

DEFAULT_ADDRESS = "127.0.0.1:9443"
_PIPE_WIDTH = 140  # columns where stdout is no terminal

Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the server is.")]
Operator = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        callback=expanded,
        help="Your key and certificate. (default: pki/operators/admin in --home)",
    ),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Without certificates, on this machine only.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; it is kept with the change.")]


@contextlib.contextmanager
def admin_client(
    server: str, home: Path, operator: Path | None, *, is_insecure: bool
) -> Iterator["AdminClient"]:
    """Yield a connection to a server, as an operator; its errors become exit codes."""
    with exit_codes():
        from server.admin_client import AdminClient

        folder = operator or home / "pki" / "operators" / "admin"
        with AdminClient.open(server, None if is_insecure else folder) as client:
            yield client


def print_json(value: object) -> None:
    """Print one line of JSON on stdout."""
    typer.echo(json.dumps(value, allow_nan=False))


def stdout_console() -> "Console":
    """Return a console that shows text as it is: no markup, no emoji, no guessing of what to colour."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if console.is_terminal:
        return console
    return Console(markup=False, emoji=False, highlight=False, width=_PIPE_WIDTH)


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    """Return a plain table; the last column wraps."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head != heads[-1])
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
