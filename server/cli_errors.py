"""How commands of `quantfleet-server` end: 0 done, 1 refused or failed, 2 wrong usage or bad input, 130 interrupted."""

import contextlib
from collections.abc import Iterator

import typer

from quantization.errors import ConfigurationError, MalformedError, QuantFleetError, UnsupportedModelError
from quantization.printable import printable

_BAD_INPUT = (ConfigurationError, UnsupportedModelError, MalformedError)
EXIT_FAILED, _EXIT_BAD_INPUT, _EXIT_INTERRUPTED = 1, 2, 130


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn our errors into one line on stderr and an exit code."""
    try:
        yield
    except QuantFleetError as error:
        typer.echo(f"error: {printable(str(error))}", err=True)
        raise typer.Exit(_EXIT_BAD_INPUT if isinstance(error, _BAD_INPUT) else EXIT_FAILED) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(_EXIT_INTERRUPTED) from None
