"""What weighing hard samples more and calibrating with augmented copies give, under drift.

Each row is one fleet, each column one recipe; cells where a recipe gives nothing, or takes something, are in the
table like all others. "few" fleets keep 5 inputs per device, spread over what the device holds. The column "twice" is
their control: no augmentation, but every input is there two times. What it gives is not due to new views of the data
but to batches that are large enough to normalise (at least 8 inputs).

    python benchmarks/bench_adaptive.py                      # everything (12 CPU minutes)
    python benchmarks/bench_adaptive.py --task har           # one task
    python benchmarks/bench_adaptive.py --smoke              # one small fleet, for the pipeline
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
from rich.console import Console
from rich.progress import Progress

from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe, Strategy
from server.precision_settings import PrecisionSettings
from server.registry import Registry
from server.tuner import run_generation
from simulation.bench import Bench
from simulation.device import forget_fleet
from simulation.experiment import load
from simulation.fleet import Fleet, FleetSettings
from simulation.measured_grid import Traffic
from simulation.scenario import Scenario

RESULTS = Path(__file__).parent / "results" / "adaptive.json"
FEW = 5
"""Inputs per device of a fleet with few."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fleet.

    Attributes:
        task: Built-in task.
        drifts: What the field does.
        devices: Size of the fleet.
        rows: Most inputs that a device keeps.
        seeds: Seeds 0 to N - 1.
        test_rows: Test rows that the tuned model is judged on.
        size_ratio: How much smaller weights become, rounded with what devices observe; None for 8 bits.
        columns: What is tried; empty for all that there is.
    """

    task: str
    drifts: tuple[str, ...]
    devices: int
    rows: int
    seeds: int = 2
    test_rows: int = 2000
    size_ratio: float | None = None
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the case is called in tables."""
        size = f", {self.size_ratio:g}x" if self.size_ratio else ""
        return f"{self.task} {' '.join(self.drifts) or 'none'}{size}{', few' if self.rows == FEW else ''}"


NOTHING, TWICE, BOTH = "nothing", "twice", "margin 4x, all"
CIFAR10_COLUMNS = (NOTHING, TWICE, "margin 4x", "flip", "brightness", BOTH)
"""Half of the columns: a cell of ResNet-20 takes 25 CPU seconds."""

_FLEETS = (
    Case("har", ("sensor-gain=1.5",), 7, 50),
    Case("har", ("rotation=30",), 7, 50),
    Case("fsdd", (), 25, 50),
    Case("cifar10", ("contrast=0.3",), 20, 50, seeds=1, columns=CIFAR10_COLUMNS),
)
CASES = (
    *(replace(fleet, rows=rows) for fleet in _FLEETS for rows in (50, FEW)),
    replace(_FLEETS[0], size_ratio=18.0),
    replace(_FLEETS[2], size_ratio=12.0),
)

WEIGHTED = {
    "margin 2x": CalibrationRecipe(Strategy.MARGIN, 2.0),
    "margin 4x": CalibrationRecipe(Strategy.MARGIN, 4.0),
    "loss 4x": CalibrationRecipe(Strategy.LOSS, 4.0),
}
AUGMENTATIONS = {"image": ("flip", "brightness=0.1", "rotation=10", "noise=0.05")}
AUGMENTATIONS["sensor"] = AUGMENTATIONS["image"][1:]
AUGMENTATIONS["audio"] = ("brightness=0.1", "noise=0.05")


def recipes_of(case: Case, domain: str) -> dict[str, CalibrationRecipe]:
    """Return what is tried on a case, by the name of the column."""
    augmentations = AUGMENTATIONS[domain]
    alone = {text.split("=")[0]: CalibrationRecipe(augmentations=(text,)) for text in augmentations}
    both = {BOTH: CalibrationRecipe(Strategy.MARGIN, 4.0, augmentations)}
    control = {TWICE: DEFAULT_RECIPE} if case.rows == FEW else {}
    recipes = {NOTHING: DEFAULT_RECIPE, **control, **WEIGHTED, **alone, **both}
    return {name: recipe for name, recipe in recipes.items() if name in (case.columns or recipes)}


def measure_cell(case: Case, seed: int, column: str, recipe: CalibrationRecipe) -> dict[str, object]:
    """Return the figures of one fleet with one recipe."""
    started = time.process_time()
    scenario = Scenario(
        task=case.task,
        drifts=case.drifts,
        seed=seed,
        devices=case.devices,
        generations=1,
        calibration=recipe,
        precision=None if case.size_ratio is None else PrecisionSettings(size_ratio=case.size_ratio),
    )
    task = load(scenario)
    labels = None if task.test_y is None else task.test_y[: case.test_rows]
    fleet = Fleet(
        replace(task, test_x=task.test_x[: case.test_rows], test_y=labels), FleetSettings.of(scenario)
    )
    fleet.rows = tuple(_spread(rows, case.rows) for rows in fleet.rows)
    if column == TWICE:
        fleet.rows = tuple(np.concatenate([rows, rows]) for rows in fleet.rows)
    with tempfile.TemporaryDirectory() as folder, Registry.open(f"sqlite:///{folder}/r.db") as registry:
        bench = Bench.set_up(scenario, fleet, registry, Path(folder))
        try:
            bench.grid.traffic = Traffic()
            frozen = {name: entry.manifest_digest for name, entry in bench.serving().items()}
            closed = run_generation(
                bench.grid, bench.registry, bench.blobs, bench.settings, clock=bench.grid.clock
            ).generations
            served = {name: entry.manifest_digest for name, entry in bench.serving().items()}
            figures = {
                "accuracy": bench.mean_accuracy(served, bench.field_inputs),
                "agreement": mean(bench.agreement(digest) for digest in served.values()),
                "statistics_bytes": bench.grid.traffic.reply_bytes,
                "steps": [entry.step.value for entry in closed.values()],
            }
            if column == NOTHING:
                figures["frozen"] = bench.mean_accuracy(frozen, bench.field_inputs)
        finally:
            forget_fleet(bench.fleet_name)
    return figures | {"cpu_seconds": round(time.process_time() - started, 1)}


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many rows, evenly spread over all of them."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def table(cells: Mapping[str, Mapping[str, object]], figure: str) -> str:
    """Return one figure of all cells as a Markdown table: one row per fleet, means over seeds, in percent."""
    columns = list(dict.fromkeys(key.split("|")[2] for key in cells))
    columns.sort(key=_COLUMNS.index)
    lines = [
        f"| fleet | {'frozen | ' if figure == 'accuracy' else ''}{' | '.join(columns)} | seeds |",
        f"|{' --- |' * (len(columns) + 2 + (figure == 'accuracy'))}",
    ]
    for name in dict.fromkeys(key.split("|")[0] for key in cells):
        found = {
            column: [cell for key, cell in cells.items() if key.split("|")[::2] == [name, column]]
            for column in columns
        }
        words = [name]
        if figure == "accuracy":
            words.append(_mean(found[NOTHING], "frozen"))
        words += [_mean(found[column], figure) for column in columns]
        lines.append(f"| {' | '.join([*words, str(len(found['nothing']))])} |")
    return "\n".join(lines)


_COLUMNS = (NOTHING, TWICE, *WEIGHTED, "flip", "brightness", "rotation", "noise", BOTH)


def _mean(cells: list[Mapping[str, object]], figure: str) -> str:
    return f"{100 * mean(float(str(cell[figure])) for cell in cells):.1f}" if cells else ""


def main() -> int:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = sorted({case.task for case in CASES})
    parser.add_argument("--task", choices=tasks, action="append", help="one task; may be repeated")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where finished cells are kept")
    parser.add_argument("--json", action="store_true", help="print the cells as JSON instead")
    parser.add_argument("--smoke", action="store_true", help="one small fleet, nothing kept")
    options = parser.parse_args()
    if options.smoke:
        small = Case("digits", ("contrast=0.3",), 6, FEW, seeds=1, test_rows=200)
        recipes = recipes_of(small, "image")
        chosen = {name: recipes[name] for name in (NOTHING, BOTH)}
        cells = {f"{small.name}|0|{name}": measure_cell(small, 0, name, r) for name, r in chosen.items()}
        print(json.dumps(cells) if options.json else table(cells, "accuracy"))
        return 0
    cells = json.loads(options.results.read_text()) if options.results.exists() else {}
    wanted = [
        (case, seed, name, recipe)
        for case in CASES
        if case.task in (options.task or tasks)
        for seed in range(case.seeds)
        for name, recipe in recipes_of(case, load(Scenario(task=case.task)).domain).items()
        if f"{case.name}|{seed}|{name}" not in cells
    ]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("cells", total=len(wanted))
        for case, seed, name, recipe in wanted:
            progress.update(bar, description=f"{case.name}, seed {seed}: {name}")
            cells[f"{case.name}|{seed}|{name}"] = measure_cell(case, seed, name, recipe)
            options.results.write_text(json.dumps(cells, indent=1))
            progress.advance(bar)
    if options.json:
        print(json.dumps(cells))
    else:
        print(f"accuracy, %\n\n{table(cells, 'accuracy')}\n\nagreement with the model's own float form, %\n")
        print(table(cells, "agreement"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
