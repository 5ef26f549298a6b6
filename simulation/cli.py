"""The command `quantfleet-sim`: runs an experiment or a study of precision, and lists what there is to run.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage or
bad input, 130 interrupted. What takes long to import is imported by the command that needs it.
"""

# ruff: noqa: PLC0415  # `--help` must not wait for torch

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from typer import core as typer_core

from quantization.printable import printable
from simulation.cli_errors import exit_codes
from simulation.cli_fleet import fleet
from simulation.cli_options import (
    AsJson,
    FloatLayer,
    LatencyBudget,
    LearnedRounding,
    MaxDrop,
    ReadScenario,
    RoundingRounds,
    SizeRatio,
    TrainRounds,
    Verbose,
    WeightBits,
    with_fleet_options,
)
from simulation.cli_swarm import swarm
from simulation.progress import ProgressFunction
from simulation.report_folder import REPORT, STUDIES, ReportFiles, prepare_folder
from simulation.result import ExperimentResult
from simulation.scenario import Scenario
from simulation.study_result import DEFAULT_POINTS, MAX_POINTS, MIN_POINTS, require_points

typer_core.HAS_RICH = False  # help is plain text here, and would show what escapes rich's markup
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
@with_fleet_options
def run(
    read: ReadScenario,
    *,
    generations: Annotated[int | None, typer.Option(help="Most generations to tune. (default: 2)")] = None,
    size_ratio: SizeRatio = None,
    max_drop: MaxDrop = None,
    weight_bits: WeightBits = None,
    latency_budget: LatencyBudget = None,
    rounding_rounds: RoundingRounds = None,
    learned_rounding: LearnedRounding = None,
    train_rounds: TrainRounds = None,
    float_layer: FloatLayer = None,
    check_pooled: Annotated[
        bool | None,
        typer.Option("--check-pooled/--no-check-pooled", help="Compare with pooled data, bit for bit."),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run one experiment: calibrate in the lab, drift, tune from the fleet's statistics, and measure."""
    with exit_codes():
        settings = read(
            generations=generations,
            check_pooled=check_pooled,
            precision={
                "size-ratio": size_ratio,
                "max-drop": max_drop,
                "weight-bits": weight_bits,
                "latency-budget": latency_budget,
                "rounding-rounds": rounding_rounds,
                "learned-rounding": learned_rounding,
                "train-rounds": train_rounds,
                "float-layer": float_layer,
            },
        )
        _report(settings, _run(settings, is_verbose=verbose), as_json=as_json)


@app.command()
@with_fleet_options
def pareto(
    read: ReadScenario,
    *,
    points: Annotated[
        int, typer.Option(metavar="N", help=f"Models to build and measure, {MIN_POINTS} to {MAX_POINTS}.")
    ] = DEFAULT_POINTS,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure what size costs: models of many sizes, from the fleet's statistics, and what each gets right."""
    with exit_codes():
        _study("pareto", read(), points, as_json=as_json, is_verbose=verbose)


@app.command()
@with_fleet_options
def sensitivity(read: ReadScenario, *, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Measure which layers hurt when they get fewer bits, by the fleet's probes."""
    with exit_codes():
        _study("sensitivity", read(), 0, as_json=as_json, is_verbose=verbose)


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
    """Run the experiment."""
    with _working(scenario, REPORT, is_verbose=is_verbose) as on_progress:
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

        _tell_where(write_report(result, scenario, scenario.out))


def _study(name: str, scenario: Scenario, points: int, *, as_json: bool, is_verbose: bool) -> None:
    """Run a study, print its table or object, then write its page, picture and result."""
    require_points(name, points)
    scenario = replace(scenario, precision=None)  # a study has goals of its own
    with _working(scenario, STUDIES[name], is_verbose=is_verbose) as on_progress:
        from simulation.study import run_study

        result = run_study(scenario, on_progress, points=points)
    if as_json:
        typer.echo(json.dumps(result.to_json(), allow_nan=False))
    else:
        from simulation.study_terminal import PRINTERS
        from simulation.terminal import stdout_console

        PRINTERS[name](result, stdout_console())
    if scenario.out is not None:
        from simulation.study_report import write_study

        command = scenario.to_command(name)
        if name == "pareto" and points != DEFAULT_POINTS:
            command += f" --points={points}"
        _tell_where(write_study(name, result, command, scenario.out))


@contextlib.contextmanager
def _working(scenario: Scenario, files: ReportFiles, *, is_verbose: bool) -> Iterator[ProgressFunction]:
    """Yield where to report progress; whatever libraries print meanwhile goes to stderr."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    from simulation.logs import configure_logs
    from simulation.progress import show_progress

    configure_logs(is_verbose=is_verbose)
    if scenario.out is not None:
        prepare_folder(scenario.out, files)
    with contextlib.redirect_stdout(sys.stderr), show_progress(is_verbose=is_verbose) as on_progress:
        on_progress(0.0, "starting")
        yield on_progress


def _tell_where(page: Path) -> None:
    typer.echo(f"report: {printable(str(page))}", err=True)


app.command()(swarm)
app.command()(fleet)


if __name__ == "__main__":
    app()
