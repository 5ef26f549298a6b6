"""The command `quantfleet-sim swarm`."""

# ruff: noqa: PLC0415  # `--help` must not wait for torch

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from server.cli_options import expanded
from simulation.cli_errors import exit_codes, fail
from simulation.cli_options import AsJson, Verbose


def swarm(
    *,
    devices: Annotated[int, typer.Option(metavar="N", help="Devices, each a gRPC client.")] = 100,
    versions: Annotated[int, typer.Option(metavar="K", help="Upgrades after the first installation.")] = 2,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="Fetch when told, not when it is the device's turn.")
    ] = False,
    faults: Annotated[
        str,
        typer.Option(
            metavar="KIND=PART,...",
            help="Parts of the devices with connections that are cut, slow or corrupt, and how often the server"
            " is killed: cut=0.1,slow=0.1,corrupt=0.1,kill-server=1.",
        ),
    ] = "",
    seconds: Annotated[float, typer.Option(metavar="S", help="Longest that one version may take.")] = 300.0,
    processes: Annotated[int, typer.Option(metavar="P", help="Processes that the devices live in.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the model, waits and faults.")] = 0,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", callback=expanded, help="Keep trained models there.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Upgrade a swarm of devices from a real server, with faults, and measure it; exit 1 if one ends wrong."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with exit_codes():
        from simulation.child_processes import interrupted_by_sigterm
        from simulation.logs import configure_logs
        from simulation.progress import show_progress
        from simulation.swarm import SwarmSettings, run_swarm
        from simulation.swarm_faults import SwarmFaults

        settings = SwarmSettings(
            devices=devices,
            versions=versions,
            is_at_once=at_once,
            faults=SwarmFaults.parse(faults),
            seconds=seconds,
            processes=processes,
            seed=seed,
            cache_dir=cache_dir,
        )
        configure_logs(is_verbose=verbose)
        with interrupted_by_sigterm(), show_progress(is_verbose=verbose) as on_progress:
            result = run_swarm(settings, on_progress)
        if as_json:
            typer.echo(json.dumps(result.to_json(), allow_nan=False))
        else:
            from simulation.swarm_terminal import print_swarm
            from simulation.terminal import stdout_console

            print_swarm(result, stdout_console())
        if not result.is_good:
            fail(f"{len(result.wrong_devices)} of {result.devices} devices ended wrong")
