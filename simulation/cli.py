"""The command `quantfleet-sim`: runs an experiment, and lists what there is to run.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage or
bad input, 130 interrupted. What takes long to import is imported by the command that needs it.
"""

# ruff: noqa: PLC0415  # `--help` must not wait for torch

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from quantization.errors import ConfigurationError, MalformedError, QuantFleetError, UnsupportedModelError
from simulation.result import ExperimentResult
from simulation.scenario import Scenario, read_scenario
from simulation.summary import printable

_BAD_INPUT = (ConfigurationError, UnsupportedModelError, MalformedError)
_EXIT_FAILED, _EXIT_BAD_INPUT, _EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="quantfleet-sim",
    help="Simulate a fleet of edge devices whose quantized model is tuned from their statistics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"quantfleet-sim {metadata.version('quantfleet')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Simulate a fleet of edge devices whose quantized model is tuned from their statistics."""


@app.command()
def run(
    *,
    scenario: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Read settings; options win over it.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Built-in task: `quantfleet-sim tasks`. (default: digits)")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="Your own float model, with --data.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Its data: x, and y, device, split if any.")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Size of the fleet. (default: 50)")] = None,
    generations: Annotated[int | None, typer.Option(help="Most generations to tune. (default: 2)")] = None,
    drift: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SEVERITY", help="What the field does; repeat. `quantfleet-sim drifts`."),
    ] = None,
    labelled: Annotated[
        float | None, typer.Option(help="Fraction of devices with labels. (default: 0.1)")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of splits, devices, drifts and faults. (default: 0)")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="auto, owner, iid, classes:K or dirichlet:ALPHA. (default: auto)")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Fraction of devices that fail in a round. (default: 0)")
    ] = None,
    stragglers: Annotated[
        float | None, typer.Option(help="Fraction that answers too late. (default: 0)")
    ] = None,
    device_class: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Kind of hardware; repeat to mix. (default: x86-vnni)"),
    ] = None,
    range_method: Annotated[
        str | None,
        typer.Option(help="minmax, mse, kl, percentile:F, moving_average:METHOD:M. (default: mse)"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write report.html, plots and result.json there.")
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep trained models there.")] = None,
    check_pooled: Annotated[
        bool | None,
        typer.Option("--check-pooled/--no-check-pooled", help="Compare with pooled data, bit for bit."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log to stderr.")] = False,
) -> None:
    """Run one experiment: calibrate in the lab, drift, tune from the fleet's statistics, and measure."""
    with _exit_codes():
        settings = read_scenario(
            scenario,
            task=task,
            model=model,
            data=data,
            devices=devices,
            generations=generations,
            drifts=drift,
            labelled=labelled,
            seed=seed,
            partition=partition,
            dropout=dropout,
            stragglers=stragglers,
            device_classes=device_class,
            range_method=range_method,
            out=out,
            cache_dir=cache_dir,
            check_pooled=check_pooled,
        )
        _report(settings, _run(settings, is_verbose=verbose), as_json=as_json)


@app.command()
def tasks() -> None:
    """List the built-in tasks, and the files that each needs in the data folder."""
    from simulation.tasks.catalogue import TASKS
    from simulation.terminal import print_table, stdout_console

    rows = [
        (
            source.name,
            ", ".join(source.data_files) or "none",
            f"{source.summary}; behind a colon: {source.variants}" if source.variants else source.summary,
        )
        for source in TASKS
    ]
    print_table(("task", "files", "about"), rows, stdout_console())


@app.command()
def drifts() -> None:
    """List the drifts, with their units."""
    from simulation.drift import DRIFT_KINDS
    from simulation.terminal import print_table, stdout_console

    rows = [
        (kind.name, ", ".join(kind.domains), f"{kind.name}={kind.example}", kind.unit)
        for kind in sorted(DRIFT_KINDS, key=lambda kind: kind.name)
    ]
    print_table(("drift", "data", "example", "severity"), rows, stdout_console())


def _run(scenario: Scenario, *, is_verbose: bool) -> ExperimentResult:
    """Run the experiment; whatever libraries print meanwhile goes to stderr."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    from simulation.logs import configure_logs
    from simulation.progress import show_progress

    configure_logs(is_verbose=is_verbose)
    if scenario.out is not None:
        from simulation.report_folder import prepare_folder

        prepare_folder(scenario.out)
    with contextlib.redirect_stdout(sys.stderr), show_progress(is_verbose=is_verbose) as on_progress:
        on_progress(0.0, "starting")
        from simulation.experiment import run_experiment

        return run_experiment(scenario, on_progress)


def _report(scenario: Scenario, result: ExperimentResult, *, as_json: bool) -> None:
    """Print the result, then write the report: a full disk loses no numbers."""
    if as_json:
        typer.echo(json.dumps(result.to_json(), allow_nan=False))
    else:
        from simulation.terminal import print_result, stdout_console

        print_result(result, stdout_console())
    if scenario.out is not None:
        from simulation.report import write_report

        typer.echo(f"report: {printable(str(write_report(result, scenario, scenario.out)))}", err=True)


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
