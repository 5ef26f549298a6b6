"""What tuning gives under each drift: every task x drift x {fp32, frozen, each device alone, tuned}.

Cells where tuning does not help are in the table like all others. Finished cells are kept in a JSON file beside the
table, so that a run that was cut off goes on where it stopped.

    python benchmarks/bench_drift.py                      # everything, three seeds (about 1.5 hours on 2 cores)
    python benchmarks/bench_drift.py --task cifar10       # one task
    python benchmarks/bench_drift.py --smoke              # one cell, for the pipeline
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.progress import Progress

from client.runtime import Runtime
from quantization.errors import QuantFleetError
from server.registry import Registry
from simulation.alone import tuned_alone
from simulation.bench import Bench
from simulation.device import forget_fleet
from simulation.evaluation import accuracy
from simulation.experiment import load, run_on
from simulation.fleet import Fleet, FleetSettings
from simulation.scenario import Scenario

RESULTS = Path(__file__).parent / "results" / "drift.json"
ALONE_DEVICES, ALONE_ROWS = 5, 500
"""Devices that are tuned alone in each cell, and test rows that they are judged on."""

DEVICES = {"har": 7}
"""Size of the fleet where it is not 50: har's devices are people."""

IMAGE_DRIFTS = ((), ("contrast=0.3",), ("brightness=0.35",), ("blur=3",), ("noise=0.1",), ("gain=1.8",))
DRIFTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "digits": ((), ("contrast=0.3",), ("brightness=0.35",), ("noise=0.2",), ("gain=1.8", "brightness=0.3")),
    "har": (
        (),
        ("sensor-gain=1.5",),
        ("acc-offset=0.3,0.2,-0.2",),
        ("gyro-dead=1",),
        ("rotation=30",),
        ("rotation=60",),
    ),
    "fsdd": ((), ("mic-gain=-20",), ("mic-gain=12",), ("snr=20",), ("snr=10",)),
    "fashion_mnist": IMAGE_DRIFTS,
    "cifar10": IMAGE_DRIFTS[:-1],
}


def measure_cell(task: str, drifts: tuple[str, ...], seed: int, devices: int) -> dict[str, object]:
    """Return the figures of one cell."""
    started = time.perf_counter()
    scenario = Scenario(task=task, drifts=drifts, seed=seed, devices=devices, generations=1)
    fleet = Fleet(load(scenario), FleetSettings.of(scenario))
    with tempfile.TemporaryDirectory() as folder, Registry.open(f"sqlite:///{folder}/r.db") as registry:
        bench = Bench.set_up(scenario, fleet, registry, Path(folder))
        try:
            alone = alone_accuracy(bench)
            result = run_on(bench)
        finally:
            forget_fleet(bench.fleet_name)
    figures = result.accuracy
    return {
        "fp32": figures.fp32,
        "frozen": figures.frozen,
        "alone": alone,
        "tuned": figures.tuned,
        "lab_fp32": figures.lab_fp32,
        "lab_frozen": figures.lab_frozen,
        "published": result.generations[-1].published,
        "reason": result.generations[-1].reason,
        "update_bytes": result.update_bytes,
        "size_bytes": dict(result.size_bytes),
        "seconds": round(time.perf_counter() - started, 1),
    }


def alone_accuracy(bench: Bench) -> float:
    """Return the mean accuracy of devices that each correct themselves, on rows of all classes."""
    labels = bench.fleet.task.test_y
    if labels is None:
        message = "this benchmark needs labelled test rows"
        raise QuantFleetError(message)
    step = max(1, bench.scenario.devices // ALONE_DEVICES)
    rows = slice(None, None, max(1, len(labels) // ALONE_ROWS))
    found = []
    for position in range(0, bench.scenario.devices, step):
        name = bench.fleet.device_class(position).name
        artifact = tuned_alone(bench.prepared, bench.blobs, name, bench.fleet.inputs(position))
        runtime = Runtime(artifact.manifest, artifact.blobs.__getitem__, threads=2)
        found.append(accuracy(runtime.infer, bench.field_inputs[rows], labels[rows]) or 0.0)
    return mean(found)


def table(cells: dict[str, dict[str, object]]) -> str:
    """Return the cells as a Markdown table, means over seeds, in percent."""
    lines = [
        "| task | drift | fp32 | frozen int8 | each device alone | tuned int8 | gain | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str], list[dict[str, object]]] = {}
    for key, cell in cells.items():
        task, drift, _seed = key.split("|")
        groups.setdefault((task, drift), []).append(cell)
    for (task, drift), group in groups.items():
        columns = {
            k: 100 * mean(float(str(c[k])) for c in group) for k in ("fp32", "frozen", "alone", "tuned")
        }
        figures = " | ".join(f"{value:.1f}" for value in columns.values())
        gain = columns["tuned"] - columns["frozen"]
        lines.append(f"| {task} | {drift or 'none'} | {figures} | {gain:+.1f} | {len(group)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=sorted(DRIFTS), action="append", help="one task; may be repeated")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--devices", type=int, help="instead of 50, or of one for each person in har's field")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where finished cells are kept")
    parser.add_argument("--json", action="store_true", help="print the cells as JSON instead")
    parser.add_argument("--smoke", action="store_true", help="one cell of a small fleet, nothing kept")
    options = parser.parse_args()
    if options.smoke:
        cell = measure_cell("digits", ("brightness=0.35",), 0, 10)
        print(table({"digits|brightness=0.35|0": cell}))
        return 0
    cells = json.loads(options.results.read_text()) if options.results.exists() else {}
    wanted = [
        (task, drifts, seed)
        for task in options.task or DRIFTS
        for drifts in DRIFTS[task]
        for seed in range(options.seeds)
        if f"{task}|{' '.join(drifts)}|{seed}" not in cells
    ]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("cells", total=len(wanted))
        for task, drifts, seed in wanted:
            devices = options.devices or DEVICES.get(task, 50)
            progress.update(bar, description=f"{task} {' '.join(drifts) or 'none'} seed {seed}")
            cells[f"{task}|{' '.join(drifts)}|{seed}"] = measure_cell(task, drifts, seed, devices)
            options.results.write_text(json.dumps(cells, indent=1))
            progress.advance(bar)
    print(json.dumps(cells) if options.json else table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
