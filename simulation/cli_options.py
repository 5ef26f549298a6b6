"""The options that commands of `quantfleet-sim` share, and the decorator that gives them to a command."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli_options import expanded
from simulation.scenario import Scenario, read_scenario

ReadScenario = Callable[..., Scenario]
"""Returns the scenario that was typed; takes what a command has options of its own for."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log to stderr.")]

SizeRatio = Annotated[
    float | None,
    typer.Option(metavar="R", help="Make weights R times smaller than in fp32, scales counted."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(metavar="POINTS", help="Make weights as small as this loss of accuracy allows."),
]
WeightBits = Annotated[
    int | None, typer.Option(metavar="B", help="Give every layer B bits, 2 to 8, to compare with.")
]
RoundingRounds = Annotated[
    int | None,
    typer.Option(metavar="N", help="Rounds in which weights are rounded, group by group. (default: 1)"),
]
LearnedRounding = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Rounds in which devices learn which way weights are rounded. (default: 0)"
    ),
]
TrainRounds = Annotated[
    int | None,
    typer.Option(metavar="N", help="Rounds in which devices train the rounded weights. (default: 0)"),
]
LatencyBudget = Annotated[float | None, typer.Option(metavar="MS", help="Longest inference in milliseconds.")]
FloatLayer = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=TYPE", help="Keep a layer in fp16 or bf16; repeat. auto: let it be chosen."),
]


def _read_fleet(
    *,
    scenario: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", callback=expanded, help="Read settings; options win over it."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Built-in task: `quantfleet-sim tasks`. (default: digits)")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE.onnx", callback=expanded, help="Your own float model, with --data."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", callback=expanded, help="Its data: x, and y, device, split if any."),
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Size of the fleet. (default: 50)")] = None,
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
    liars: Annotated[
        float | None, typer.Option(help="Fraction that lies about moments and probes. (default: 0)")
    ] = None,
    device_class: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Kind of hardware; repeat to mix. (default: x86-vnni)"),
    ] = None,
    range_method: Annotated[
        str | None,
        typer.Option(help="minmax, mse, kl, percentile:F, moving_average:METHOD:M. (default: mse)"),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="STRATEGY", help="Samples that weigh more: uniform, margin, loss. (default: uniform)"
        ),
    ] = None,
    hard_sample_weight: Annotated[
        float | None, typer.Option(metavar="W", help="Weight of the hardest samples, 1 to 256. (default: 2)")
    ] = None,
    augment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SEVERITY",
            help="Copies to calibrate with: flip, brightness, rotation, noise; repeat.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", callback=expanded, help="Write pictures, a page and the result as JSON there."
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", callback=expanded, help="Keep trained models there.")
    ] = None,
) -> ReadScenario:
    """Return the function that reads the scenario, with what a command adds."""
    return functools.partial(
        read_scenario,
        scenario,
        task=task,
        model=model,
        data=data,
        devices=devices,
        drifts=drift,
        labelled=labelled,
        seed=seed,
        partition=partition,
        dropout=dropout,
        stragglers=stragglers,
        liars=liars,
        device_classes=device_class,
        range_method=range_method,
        calibration={
            "strategy": calibration,
            "hard_sample_weight": hard_sample_weight,
            "augmentations": augment,
        },
        out=out,
        cache_dir=cache_dir,
    )


def with_fleet_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the options that describe a fleet, in front of its own.

    Args:
        command: Takes `ReadScenario` first, then its own options, which typer reads from its signature.
    """
    shared = inspect.signature(_read_fleet).parameters
    own = dict(list(inspect.signature(command).parameters.items())[1:])

    @functools.wraps(command)
    def with_options(**given: Any) -> None:  # noqa: ANN401 - as the signature below says
        read = _read_fleet(**{name: given[name] for name in shared})
        command(read, **{name: given[name] for name in own})

    parameters = [*shared.values(), *own.values()]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by typer
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options
