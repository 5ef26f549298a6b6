"""What federated training gives back of the accuracy that low bit-widths cost.

ResNet-20 on CIFAR-10, all layers at 2 or 3 bits, rounded with second moments of the field's own inputs; 50 devices of
two classes each train through the in-process grid, with labels and without. Accuracy is that of the compiled int8 graph
in ONNX Runtime, on test images that no device holds; ranges are the lab's, before and after.

    python benchmarks/bench_qat.py                     # the table (about 20 minutes on 2 cores)
    python benchmarks/bench_qat.py --bits 2 --rounds 3 --test-rows 1000
    python benchmarks/bench_qat.py --devices 1 --partition iid   # all inputs in one place
    python benchmarks/bench_qat.py --bits 3 --labels none --learned-rounding 50 --rounds 0
    python benchmarks/bench_qat.py --smoke             # a small network, for the pipeline
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from quantization.compile import compile_inference
from quantization.compile_observation import compile_observation
from quantization.compile_taps import compile_taps, input_layout
from quantization.input_observation import observe_inputs
from quantization.layer_codes import LayerCodes, weight_rows
from quantization.layer_rounding import round_layer
from quantization.policy import Policy
from quantization.scale_search import PackedGrid
from quantization.second_moments import SecondMoments
from quantization.skeleton import CompiledGraph
from quantization.stored_size import stored_size_bytes
from server.candidate import PlannedModel
from server.folded import read
from server.lab import open_session
from server.registry import Registry
from server.training import train_weights
from server.training_plan import DEFAULT_PLAN, TrainingPlan, TrainingRoundReport
from simulation.bench import Bench
from simulation.device import forget_fleet
from simulation.evaluation import InferFunction, accuracy, float_model
from simulation.fleet import Fleet, FleetSettings
from simulation.measured_grid import Traffic
from simulation.scenario import Scenario
from simulation.tasks import load_task
from strategies.hello_round import hello
from strategies.rounds import RoundContext

MOMENT_ROWS = 1000
"""Field inputs whose second moments the weights are rounded with."""

BATCH = 50
CLASS = "x86-vnni"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        bits: Of every layer.
        is_labelled: Devices have labels; else they learn from the float model's answers alone.
        rounds: Of training.
        fp32: Accuracy of the float model, in percent.
        rounded: Of the rounded one.
        trained: After training.
        loss_left: What training left of the rounded model's loss to fp32, 0 to 1.
        growth: Stored weight bytes after training over those before.
        cpu_seconds: Of training, all devices and the server together.
        reply_bytes: Of one device in one round.
        losses: Mean training loss of the fleet before each round, and after the last.
    """

    bits: int
    is_labelled: bool
    rounds: int
    fp32: float
    rounded: float
    trained: float
    loss_left: float
    growth: float
    cpu_seconds: float
    reply_bytes: float
    losses: tuple[float, ...]


@contextmanager
def opened(
    task: str, devices: int, seed: int, *, is_labelled: bool, partition: str = "auto"
) -> Iterator[Bench]:
    """Yield a prepared model and its fleet."""
    scenario = Scenario(
        task=task, devices=devices, partition=partition, labelled=float(is_labelled), seed=seed
    )
    fleet = Fleet(load_task(task, seed, None), FleetSettings.of(scenario))
    with tempfile.TemporaryDirectory() as folder, Registry.open(f"sqlite:///{folder}/r.db") as registry:
        bench = Bench.set_up(scenario, fleet, registry, Path(folder))
        try:
            yield bench
        finally:
            forget_fleet(bench.fleet_name)


def field_moments(bench: Bench, model: PlannedModel, policy: Policy) -> Mapping[str, SecondMoments]:
    """Return the second moments of every layer's input, on inputs of all devices."""
    positions = range(bench.scenario.devices)
    each = max(1, MOMENT_ROWS // len(positions))
    inputs = np.concatenate([bench.fleet.inputs(position)[:each] for position in positions])
    files = compile_observation(model.content, model.plan, policy, None).plain.files
    run = open_session(CompiledGraph(compile_taps(model.content, model.plan), files))
    lab = bench.prepared.statistics[CLASS].inputs
    layers = [
        replace(layer, exponent=lab[layer.name].exponent) for layer in input_layout(model.content, model.plan)
    ]
    tapped = observe_inputs(lambda batch: {**run(batch), model.plan.input_name: batch}, inputs, layers, BATCH)
    return tapped.moments


def round_uniformly(
    model: PlannedModel, moments: Mapping[str, SecondMoments], bits: int
) -> dict[str, LayerCodes]:
    """Return every layer rounded to `bits`."""
    found = {}
    for layer in model.plan.layers:
        rows = weight_rows(model.draft.tensors[layer.weight], layer.weight_axis).astype(np.float64)
        is_centred = layer.bias is not None
        (best,) = round_layer(rows, moments[layer.name], [PackedGrid(bits)], is_centred=is_centred)
        found[layer.name] = LayerCodes(best.codes, best.scale, best.bias_shift)
    return found


def compiled(model: PlannedModel, policy: Policy, weights: Mapping[str, LayerCodes]) -> InferFunction:
    """Return inference with the compiled int8 graph, as devices run it."""
    run = open_session(compile_inference(model.content, model.plan, policy, weights))
    return lambda inputs: run(inputs)[model.plan.output_names[0]]


def percent(bench: Bench, infer: InferFunction, rows: int) -> float:
    """Return the percentage of test rows that a model gets right."""
    labels = bench.fleet.task.test_y
    found = accuracy(infer, bench.field_inputs[:rows], None if labels is None else labels[:rows])
    return 100 * (found or 0.0)


def measure(bench: Bench, bits: int, plan: TrainingPlan, rows: int, *, is_labelled: bool) -> Row:
    """Return the figures of one run."""
    generation = bench.prepared.generations[CLASS]
    model = PlannedModel.of(read(bench.blobs, generation.model_digest))
    policy = Policy.from_json_bytes(generation.policy.encode())
    start = round_uniformly(model, field_moments(bench, model, policy), bits)
    bench.grid.traffic = Traffic()
    devices = hello(bench.grid, tuple(bench.grid.get_node_ids()), clock=bench.grid.clock).value
    reports: list[TrainingRoundReport] = []

    def on_round(report: TrainingRoundReport) -> None:
        reports.append(report)
        print(f"{bits} bits, round {report.number}: loss {report.loss:.4f}", file=sys.stderr)

    began = time.process_time()
    context = RoundContext(bench.grid, bench.settings.rounds, clock=bench.grid.clock)
    trained = train_weights(context, devices, model, policy, start, plan=plan, on_round=on_round)
    seconds = time.process_time() - began
    fp32 = percent(bench, float_model(model.content), rows)
    before, after = (percent(bench, compiled(model, policy, weights), rows) for weights in (start, trained))
    sizes = [
        sum(stored_size_bytes(layer.codes) for layer in weights.values()) for weights in (start, trained)
    ]
    return Row(
        bits,
        is_labelled,
        plan.rounds,
        fp32,
        before,
        after,
        (fp32 - after) / (fp32 - before) if fp32 > before else float("nan"),
        sizes[1] / sizes[0],
        seconds,
        reports[0].reply_bytes / reports[0].devices,
        tuple(report.loss for report in reports),
    )


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| bits | labels | rounds | fp32 | rounded | trained | loss left | bytes | CPU s | KB a reply |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r.bits} | {'all' if r.is_labelled else 'none'} | {r.rounds} | {r.fp32:.2f} | {r.rounded:.2f} "
        f"| {r.trained:.2f} | {r.loss_left:.2f} | {r.growth:.3f}x | {r.cpu_seconds:.0f} | {r.reply_bytes / 1000:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Print the table; exit 1 where training left more than half of the loss, with labels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="cifar10")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--learned-rounding", type=int, metavar="N", help="rounds of it before the others")
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--partition", default="auto", help="who holds which rows, as scenarios have it")
    parser.add_argument("--test-rows", type=int, default=5000)
    parser.add_argument("--labels", choices=("all", "none", "both"), default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    parser.add_argument("--smoke", action="store_true", help="a small network and one run, for the pipeline")
    options = parser.parse_args()
    if options.smoke:
        options.task, options.bits, options.rounds, options.labels, options.devices = (
            "digits",
            [2],
            2,
            "none",
            8,
        )
    plan = replace(DEFAULT_PLAN, rounds=options.rounds)
    if options.learned_rounding is not None:
        plan = replace(plan, rounding_rounds=options.learned_rounding)
    rows = []
    for is_labelled in {"all": (True,), "none": (False,), "both": (True, False)}[options.labels]:
        with opened(
            options.task,
            options.devices,
            options.seed,
            is_labelled=is_labelled,
            partition=options.partition,
        ) as bench:
            rows += [
                measure(bench, bits, plan, options.test_rows, is_labelled=is_labelled)
                for bits in options.bits
            ]
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else table(rows))
    return int(any(row.is_labelled and row.loss_left > 0.5 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
