"""How small do weights get without training, and at what accuracy? And what do liars, uniform bits and FedMPQ do to it?

One fleet per task and seed is asked once (moments, second moments, probes); then every budget is allocated, tried by
devices, calibrated and compiled as `quantfleet-sim run` does, and measured on all test rows.

    python benchmarks/bench_precision.py [--smoke] [--tasks cifar10 ...] [--seeds 0 1 2] [--liars 0.2]
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from server.class_tuner import advance_until
from server.drift_steps import fold_ranges, propose
from server.generation import Generation, Step
from server.precision_record import PrecisionRecord
from server.precision_settings import PrecisionSettings
from server.precision_steps import choose_weights
from server.tuner import meet
from server.tuning import Base, Tuning
from simulation.bench import Bench
from simulation.evaluation import accuracy, float_model
from simulation.experiment import load
from simulation.fleet import Fleet, FleetSettings
from simulation.scenario import Scenario

RATIOS = {"cifar10": (8.0, 10.0, 12.0, 14.0)}
DEFAULT_RATIOS = (10.0,)
DEVICES = {"cifar10": 50, "har": 7, "fsdd": 20, "fashion_mnist": 50, "digits": 50}
PARTITIONS = {"cifar10": "classes:2"}
UNIFORM_BITS = (4, 3)


@dataclass(frozen=True, slots=True)
class Row:
    """One measured model."""

    task: str
    seed: int
    goal: str
    ratio: float
    weight_bytes: int
    overhead_bytes: int
    accuracy: float
    fp32: float
    predicted: float
    measured: float | None
    tune_seconds: float


def rows_of(task: str, seed: int, goals: list[PrecisionSettings], liars: float) -> Iterator[Row]:
    """Yield one row per goal, all from the same statistics."""
    scenario = Scenario(
        task=task, devices=DEVICES[task], partition=PARTITIONS.get(task, "auto"), seed=seed, liars=liars
    )
    data = load(scenario)
    with Bench.opened(scenario, Fleet(data, FleetSettings.of(scenario))) as bench:
        settings = replace(bench.settings, precision=goals[0])
        met = meet(bench.grid, bench.registry, bench.blobs, settings, clock=bench.grid.clock)
        tuning = next(iter(met.tunings.values()))
        generation, failure = advance_until(tuning, {Step.PROBES})
        if failure is not None:
            raise failure
        base = Base.load(generation, tuning.registry, tuning.blobs)
        fp32 = accuracy(float_model(data.model), bench.field_inputs, data.test_y) or 0.0
        for goal in goals:
            asked = replace(tuning, settings=replace(settings, precision=goal))
            yield measured(bench, asked, generation, base, fp32)


def measured(bench: Bench, tuning: Tuning, generation: Generation, base: Base, fp32: float) -> Row:
    """Return the row of one goal."""
    goal = tuning.settings.precision
    assert goal is not None  # noqa: S101
    for step in (choose_weights, fold_ranges, propose):
        generation, _ = step(tuning, generation, base)
    record = PrecisionRecord.from_json(generation.precision)
    found = bench.mean_accuracy({tuning.device_class: generation.manifest_digest}, bench.field_inputs)
    return Row(
        bench.fleet.task.name,
        bench.scenario.seed,
        ", ".join(f"{name} {value}" for name, value in goal.to_options().items()),
        record.size_ratio,
        record.weight_bytes,
        record.overhead_bytes,
        100 * (found or 0.0),
        100 * fp32,
        record.predicted_loss,
        record.measured_loss,
        record.tune_seconds,
    )


def goals_of(task: str, options: argparse.Namespace) -> list[PrecisionSettings]:
    """Return what is asked for on a task."""
    more = {
        "rounding_rounds": options.rounding_rounds,
        "learned_rounding": options.learned_rounding,
        "train_rounds": options.train_rounds,
    }
    ratios = options.ratios or RATIOS.get(task, DEFAULT_RATIOS)
    goals = [PrecisionSettings(size_ratio=ratio, **more) for ratio in ratios]
    if task == "cifar10" and not options.ratios:
        goals += [PrecisionSettings(weight_bits=bits) for bits in UNIFORM_BITS]
    return goals


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=["cifar10", "har", "fsdd", "fashion_mnist"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ratios", nargs="+", type=float)
    parser.add_argument("--liars", type=float, default=0.0)
    parser.add_argument("--rounding-rounds", type=int, default=1)
    parser.add_argument("--learned-rounding", type=int, default=0)
    parser.add_argument("--train-rounds", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the rows there as JSON")
    parser.add_argument("--smoke", action="store_true", help="one small task, one seed")
    options = parser.parse_args()
    if options.smoke:
        options.tasks, options.seeds, options.ratios = ["digits"], [0], [8.0]
        DEVICES["digits"] = 8
    rows: list[Row] = []
    print(
        "| task | seed | goal | ratio | bytes | + overhead | fp32 % | accuracy % | predicted | measured | tune s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for task in options.tasks:
        for seed in options.seeds:
            began = time.perf_counter()
            for row in rows_of(task, seed, goals_of(task, options), options.liars):
                rows.append(row)
                seen = "" if row.measured is None else f"{row.measured:.3g}"
                print(
                    f"| {row.task} | {row.seed} | {row.goal} | {row.ratio:.2f} | {row.weight_bytes} |"
                    f" {row.overhead_bytes} | {row.fp32:.2f} | {row.accuracy:.2f} | {row.predicted:.3g} | {seen} |"
                    f" {row.tune_seconds:.1f} |",
                    flush=True,
                )
            print(f"{task} seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    print("\nMeans over seeds:")
    for task in options.tasks:
        for goal in dict.fromkeys(row.goal for row in rows if row.task.startswith(task)):
            chosen = [row for row in rows if row.task.startswith(task) and row.goal == goal]
            mean = np.mean([row.accuracy for row in chosen])
            loss = np.mean([row.fp32 - row.accuracy for row in chosen])
            ratio = np.mean([row.ratio for row in chosen])
            print(f"{task}: {goal}: {mean:.2f} % at {ratio:.2f}x, {loss:+.2f} points below fp32")
    if options.out:
        options.out.write_text(
            json.dumps([{n: getattr(r, n) for n in Row.__slots__} for r in rows], indent=1)
        )


if __name__ == "__main__":
    main()
