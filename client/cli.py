"""The command `quantfleet-client`: gives a device its identity, runs its agent, and looks at it.

Results go to stdout, events and errors to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage or bad input,
130 interrupted. What takes memory is imported by the command that needs it.
"""

# ruff: noqa: PLC0415  # `--help` must not wait for ONNX Runtime

import contextlib
import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from typer import core as typer_core

from quantization.errors import ConfigurationError, MalformedError, QuantFleetError
from quantization.printable import printable

_BAD_INPUT = (ConfigurationError, MalformedError)
_EXIT_FAILED, _EXIT_BAD_INPUT, _EXIT_INTERRUPTED = 1, 2, 130


def _expanded(path: Path | None) -> Path | None:
    """Return a path without `~`, which a shell leaves in `--state=~/device`; None as it is."""
    return None if path is None else path.expanduser()


State = Annotated[
    Path, typer.Option("--state", metavar="DIR", callback=_expanded, help="The device's state folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        callback=_expanded,
        help="The agent's socket. (default: inference.sock in the state folder)",
    ),
]

typer_core.HAS_RICH = False  # help is plain text here, and would show what escapes rich's markup
app = typer.Typer(
    name="quantfleet-client",
    help="Run a quantized model on a device, and keep it what it should be.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"quantfleet-client {metadata.version('quantfleet')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Run a quantized model on a device, and keep it what it should be."""


@app.command()
def enroll(
    state: State,
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The enrolment service.")],
    token: Annotated[
        str,
        typer.Option(
            "--token",
            envvar="QUANTFLEET_TOKEN",
            help="From `quantfleet-server devices token`; - reads stdin.",
        ),
    ],
    *,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="The device's name, where the token leaves it open."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace an identity that is still good.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give the device an identity, with a one-time token of the operator."""
    with _exit_codes():
        from client.enrolment import enroll as enroll_device

        is_piped = token == "-"  # noqa: S105  # the usual name of stdin
        given = sys.stdin.readline().strip() if is_piped else token
        identity = enroll_device(state, server, given, device, again=again)
        fields = {
            "device": identity.device,
            "address": identity.address,
            "expires_at_seconds": identity.expires_at_seconds,
        }
        if as_json:
            typer.echo(json.dumps(fields))
        else:
            typer.echo(f"enrolled as {identity.device}; the update service is {identity.address}")


@app.command()
def run(
    state: State,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.toml",
            callback=_expanded,
            help="Settings; see docs/device.md. (default: client.toml in the state folder, if it is there)",
        ),
    ] = None,
    device_class: Annotated[
        str | None,
        typer.Option(
            "--device-class", metavar="C", help="The device's class; must be given here or in FILE."
        ),
    ] = None,
    model_digest: Annotated[
        str | None,
        typer.Option(
            "--model-digest", metavar="SHA256", help="The model to ask for while the device has none."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Of one inference. (default: 1)")] = None,
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="The update service. (default: as enrolled)")
    ] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Go without certificates and signatures; on this machine only.")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="The device's name, with --insecure.")
    ] = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="Serve what is installed, without a server.")
    ] = False,
    socket: Socket = None,
    metrics_address: Annotated[
        str | None,
        typer.Option("--metrics-address", metavar="HOST:PORT", help="Serve metrics for Prometheus there."),
    ] = None,
    log_level: Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")] = "info",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.")] = False,
) -> None:
    """Run the agent: serve the model on a socket, take updates, report. Ends cleanly on SIGTERM.

    When it is ready it prints one line of JSON: the socket, the metrics' address, and the device's name.
    """
    with _exit_codes():
        from client.running import RunOptions, run_agent

        if log_level not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(f"--log-level is debug, info, warning or error, not {log_level}")
        options = RunOptions(
            state=state,
            config=config,
            device_class=device_class,
            model_digest=model_digest,
            threads=threads,
            address=address,
            is_insecure=insecure,
            device=device,
            is_offline=offline,
            socket=socket,
            metrics_address=metrics_address,
            log_level=log_level,
            is_log_json=log_json,
        )
        run_agent(options, typer.echo)


@app.command()
def status(state: State, *, socket: Socket = None, as_json: AsJson = False) -> None:
    """Show how the device is doing: from its agent, or from the state folder where none runs."""
    with _exit_codes():
        from client.local import device_status
        from client.showing import status_rows

        found = device_status(state, socket)
        if as_json:
            typer.echo(json.dumps(found.to_json()))
        else:
            _print_rows(status_rows(found))


@app.command()
def rollback(state: State, *, socket: Socket = None, as_json: AsJson = False) -> None:
    """Go back to the model that served before; what is left is not taken again."""
    with _exit_codes():
        from client.local import roll_back

        serving = roll_back(state, socket)
        if as_json:
            typer.echo(json.dumps({"version": serving.version, "manifest_digest": serving.manifest_digest}))
        else:
            typer.echo(f"version {serving.version} serves ({serving.manifest_digest[:12]})")


@app.command()
def bench(
    state: State,
    *,
    runs: Annotated[int, typer.Option("--runs", min=10, max=100_000, help="Inferences of each kind.")] = 300,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="Of one inference.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure the installed model on this device: latency, the float model beside it, swap time, memory."""
    with _exit_codes():
        from client.benching import measure
        from client.showing import bench_rows

        result = measure(state, runs=runs, threads=threads)
        if as_json:
            typer.echo(json.dumps(result.to_json()))
        else:
            _print_rows(bench_rows(result))


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}".rstrip())


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn our errors into one line on stderr and an exit code."""
    try:
        yield
    except QuantFleetError as error:
        typer.echo(f"error: {printable(str(error))}", err=True)
        raise typer.Exit(_EXIT_BAD_INPUT if isinstance(error, _BAD_INPUT) else _EXIT_FAILED) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(_EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    app()
