"""How commands of `quantfleet-sim` end: as those of `quantfleet-server`, and where they find that they failed."""

from typing import NoReturn

import typer

from quantization.printable import printable
from server.cli_errors import EXIT_FAILED, exit_codes

__all__ = ["exit_codes", "fail"]


def fail(reason: str) -> NoReturn:
    """Say on stderr why the command failed, and end with exit code 1."""
    typer.echo(f"error: {printable(reason)}", err=True)
    raise typer.Exit(EXIT_FAILED)
