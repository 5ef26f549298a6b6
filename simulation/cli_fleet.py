"""The command `quantfleet-sim fleet`."""

# ruff: noqa: PLC0415  # `--help` must not wait for torch

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantization.printable import printable
from server.cli_options import expanded
from simulation.cli_errors import exit_codes, fail
from simulation.cli_options import AsJson, Verbose

if TYPE_CHECKING:
    from simulation.local_fleet import LocalFleet


def fleet(
    *,
    agents: Annotated[int, typer.Option(metavar="N", help="Devices, each with an agent of its own.")] = 12,
    nodes: Annotated[int, typer.Option(metavar="N", help="Devices with a SuperNode beside the agent.")] = 4,
    drift: Annotated[
        str, typer.Option(metavar="NAME=SEVERITY", help="What the field does.")
    ] = "contrast=0.3",
    bad: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="The bad generation: destroyed-ranges, two-bits, slow or does-not-load.",
        ),
    ] = "destroyed-ranges",
    registry_url: Annotated[
        str, typer.Option(metavar="URL", help="A database that is there. (default: SQLite in a folder)")
    ] = "",
    postgres: Annotated[bool, typer.Option("--postgres", help="Start a PostgreSQL, and use it.")] = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus/--no-prometheus", help="Start a Prometheus that scrapes everything.")
    ] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running until Ctrl-C.")] = False,
    seed: Annotated[int, typer.Option(help="Of data and model.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", callback=expanded, help="Write a page, the result as JSON, and all logs there."
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", callback=expanded, help="Keep trained models there.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show a whole fleet on this machine: drift, a tuned generation rolled out, a bad one caught and taken back."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with exit_codes():
        from simulation.child_processes import interrupted_by_sigterm
        from simulation.local_fleet import running_fleet
        from simulation.local_fleet_page import FILES, write_fleet_report
        from simulation.local_fleet_settings import LocalFleetSettings
        from simulation.logs import configure_logs
        from simulation.report_folder import prepare_folder

        configure_logs(is_verbose=verbose)
        if out is not None:
            prepare_folder(out, FILES)
        settings = LocalFleetSettings(
            agents=agents,
            nodes=nodes,
            drift=drift,
            bad=bad,
            registry_url=registry_url,
            has_postgres=postgres,
            has_prometheus=prometheus,
            seed=seed,
            logs=None if out is None else out / "logs",
            cache_dir=cache_dir,
        )
        with interrupted_by_sigterm(), running_fleet(settings, _teller()) as shown:
            result = shown.result
            if as_json:
                typer.echo(json.dumps(result.to_json(), allow_nan=False))
            else:
                from simulation.local_fleet_terminal import print_fleet
                from simulation.terminal import stdout_console

                print_fleet(result, stdout_console())
            if out is not None:
                command = (
                    f"quantfleet-sim fleet --agents {agents} --nodes {nodes} --drift {drift} --bad {bad}"
                )
                page = write_fleet_report(result, command, out)
                typer.echo(f"report: {printable(str(page))}", err=True)
            if keep:
                _stay(shown)
        if not result.is_good:
            fail("; ".join(result.failures))


def _teller() -> Callable[[float, str], None]:
    """Return the function that says on stderr what happens, a line each."""

    def tell(at_seconds: float, words: str) -> None:
        typer.echo(f"{at_seconds:6.1f} s  {printable(words)}", err=True)

    return tell


def _stay(shown: "LocalFleet") -> None:
    """Say how to look at the fleet, and wait for Ctrl-C, which is then the way to end well."""
    import contextlib
    import time

    services = shown.services
    lines = [
        f"quantfleet-server status --home {services.home} --server {services.address}",
        f"quantfleet-server rollout list --home {services.home} --server {services.address}",
        f"quantfleet-client status --state {services.home.parent}/device-01",
        f"curl -s http://{services.metrics_address}/metrics",
    ]
    if shown.prometheus is not None:
        lines.append(f"Prometheus: http://{shown.prometheus.address}/")
    for line in ["It runs until Ctrl-C. Look at it:", *lines]:
        typer.echo(line, err=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(1.0)
