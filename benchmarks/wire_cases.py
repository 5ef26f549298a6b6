"""Upgrades whose bytes are counted by `bench_wire_bytes.py`: pairs of artifacts, what a device has and what it gets."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from bench_qat import field_moments, round_uniformly
from bench_scale import BLOCKS, SMOKE_BLOCKS, SMOKE_WIDTH, WIDTH, build_model
from numpy.typing import NDArray

from quantization.artifact import Artifact, build_artifact
from quantization.bit_allocation import Budget, Candidate
from quantization.blob import content_digest
from quantization.calibration import Range
from quantization.canonical import canonicalize
from quantization.compile import compile_inference
from quantization.draft import Draft
from quantization.graph import analyze
from quantization.layer_codes import LayerCodes, to_bytes, weight_rows
from quantization.layer_rounding import RoundedLayer
from quantization.layer_weights import weight_params
from quantization.measured_allocation import allocate_measured
from quantization.model_rounding import round_model
from quantization.policy import Policy
from quantization.renormalization import ChannelCorrection
from quantization.scale_search import affordable_grids
from quantization.stored_size import stored_size_bytes
from server.candidate import PlannedModel, compile_artifact, load_manifest
from server.folded import read
from server.training import train_weights
from server.training_plan import DEFAULT_PLAN
from server.tuner import run_generation
from simulation.bench import Bench
from simulation.fleet import Fleet, FleetSettings
from simulation.measured_grid import Traffic
from simulation.scenario import Scenario
from simulation.tasks import load_task
from strategies.hello_round import hello
from strategies.rounds import RoundContext

CLASS = "x86-vnni"
RANGES, SCALED, TRAINED, ALLOCATED = (
    "ranges and corrections", "2 % of weights re-scaled", "after a training round", "next bit allocation",
)  # fmt: skip
SIZE_RATIOS = (10.0, 11.0)
"""Float bytes over stored bytes, before and after the next allocation."""
SCALED_SHARE = 0.02
TRAINED_BITS = 3
"""Of the weights that are trained; with more there is little to gain."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What a device has, and what it gets.

    Attributes:
        model: Name of the model.
        kind: What changed.
        old: What it has.
        new: What it gets.
    """

    model: str
    kind: str
    old: Artifact
    new: Artifact


def trained_network(task: str, devices: int, seed: int) -> Iterator[Upgrade]:
    """Yield the upgrades of a real model: what one generation tunes, and what rounding and training make."""
    scenario = Scenario(task=task, devices=devices, drifts=("contrast=0.3",), labelled=1.0, seed=seed)
    fleet = Fleet(load_task(task, seed, None), FleetSettings.of(scenario))
    name = "ResNet-20" if task == "cifar10" else task
    with Bench.opened(scenario, fleet) as bench:
        bench.grid.traffic = Traffic()
        clock = bench.grid.clock
        first = bench.prepared.artifacts[CLASS]
        policy = Policy.from_json_bytes(bench.prepared.generations[CLASS].policy.encode())
        model = PlannedModel.of(read(bench.blobs, bench.prepared.model.digest))
        statistics = bench.prepared.statistics[CLASS]
        tuned = run_generation(bench.grid, bench.registry, bench.blobs, bench.settings, clock=clock)
        manifest = load_manifest(bench.blobs, tuned.generations[CLASS].manifest_digest)
        yield Upgrade(
            name, RANGES, first, Artifact(manifest, {d: bench.blobs.get(d) for d in manifest.blobs})
        )

        def artifact(generation: int, codes: Mapping[str, LayerCodes]) -> Artifact:
            rounded = replace(
                policy,
                generation=generation,
                bit_widths={layer: c.bit_width for layer, c in codes.items()},
                weights_digest=content_digest(to_bytes(codes)),
            )
            return compile_artifact(model, rounded, statistics.references, codes)

        eight = to_nearest(model, {layer.name: 8 for layer in model.plan.layers})
        yield Upgrade(name, SCALED, artifact(1, eight), artifact(2, rescaled(eight, seed)))
        moments = field_moments(bench, model, policy)
        codes = round_uniformly(model, moments, TRAINED_BITS)
        found = hello(bench.grid, tuple(bench.grid.get_node_ids()), clock=clock).value
        context = RoundContext(bench.grid, bench.settings.rounds, clock=clock)
        trained = train_weights(context, found, model, policy, codes, plan=replace(DEFAULT_PLAN, rounds=1))
        changed = sum(int((trained[n].codes != codes[n].codes).sum()) for n in codes)
        print(f"{name}: training moved {changed} codes", file=sys.stderr)
        yield Upgrade(name, TRAINED, artifact(1, codes), artifact(2, trained))
        weights = {
            layer.name: weight_rows(model.draft.tensors[layer.weight], layer.weight_axis)
            for layer in model.plan.layers
        }
        rounded = round_model(
            weights,
            moments,
            {layer: affordable_grids(rows.size) for layer, rows in weights.items()},
            is_centred={layer.name: layer.bias is not None for layer in model.plan.layers},
        )
        before, after = (artifact(k, allocated(rounded, ratio)) for k, ratio in enumerate(SIZE_RATIOS, 1))
        yield Upgrade(name, ALLOCATED, before, after)


def to_nearest(model: PlannedModel, bits: Mapping[str, int]) -> dict[str, LayerCodes]:
    """Return every layer rounded to nearest."""
    found = {}
    for layer in model.plan.layers:
        weight = model.draft.tensors[layer.weight]
        scale = weight_params(layer, weight, bits[layer.name]).scale.reshape(-1)
        greatest = (1 << (bits[layer.name] - 1)) - 1
        rows = np.rint(weight_rows(weight, layer.weight_axis) / scale[:, None])
        codes = np.clip(rows, -greatest, greatest).astype(np.int8)
        found[layer.name] = LayerCodes(codes, scale, np.zeros(len(scale)))
    return found


def allocated(rounded: Mapping[str, list[RoundedLayer]], ratio: float) -> dict[str, LayerCodes]:
    """Return the rounding of each layer with the least loss, all of it so many times smaller than float32."""
    candidates = {
        name: [Candidate(r.bit_width, r.size_bytes, r.loss) for r in found] for name, found in rounded.items()
    }
    count = sum(found[0].codes.size for found in rounded.values())
    found, _ = allocate_measured(
        candidates,
        Budget(size_bytes=int(4 * count / ratio)),
        lambda n, i: stored_size_bytes(rounded[n][i].codes),
    )
    chosen = {name: rounded[name][index] for name, index in found.choice.items()}
    return {name: LayerCodes(r.codes, r.scale, r.bias_shift) for name, r in chosen.items()}


def rescaled(codes: Mapping[str, LayerCodes], seed: int) -> dict[str, LayerCodes]:
    """Return codes of which one channel in fifty, of every layer, has another step: up to 5 % more or less."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, layer in codes.items():
        count = max(1, round(SCALED_SHARE * len(layer.scale)))
        rows = rng.choice(len(layer.scale), count, replace=False)
        factors = np.ones(len(layer.scale))
        factors[rows] = rng.uniform(0.95, 1.05, count)
        greatest = (1 << (layer.bit_width - 1)) - 1
        changed = np.clip(np.rint(layer.codes / factors[:, None]), -greatest, greatest).astype(np.int8)
        new = np.where(factors[:, None] == 1.0, layer.codes, changed).astype(np.int8)
        found[name] = LayerCodes(new, (layer.scale * factors).astype(np.float32), layer.bias_shift)
    return found


def random_network(seed: int, *, is_small: bool) -> Iterator[Upgrade]:
    """Yield the upgrades of a network of ResNet-50's shape with random weights."""
    width, blocks = (SMOKE_WIDTH, SMOKE_BLOCKS) if is_small else (WIDTH, BLOCKS)
    content = canonicalize(build_model(width, blocks, seed))
    model = PlannedModel(
        content_digest(content),
        content,
        analyze(content),
        Draft.from_model(onnx.load_model_from_string(content)),
    )
    rng = np.random.default_rng(seed)
    plan = model.plan
    ranges = {s.name: Range(0.0 if s.minimum_is_zero else -4.0, 4.0) for s in plan.sites}

    def artifact(generation: int, codes: Mapping[str, LayerCodes], **changes: object) -> Artifact:
        digest = content_digest(to_bytes(codes))
        widths = {name: layer.bit_width for name, layer in codes.items()}
        policy = Policy(model.digest, CLASS, generation, ranges, widths, {}, "minmax", digest)
        policy = replace(policy, **changes)
        return build_artifact(compile_inference(content, plan, policy, codes), None, policy, plan)

    name = f"random, {sum(model.draft.tensors[layer.weight].size for layer in plan.layers) / 1e6:.1f} M"
    codes = to_nearest(model, {layer.name: 8 for layer in plan.layers})
    base = artifact(1, codes)
    corrections = {
        layer.name: ChannelCorrection(
            np.exp(0.1 * rng.normal(size=layer.channels)), 0.1 * rng.normal(size=layer.channels)
        )
        for layer in plan.corrected_layers
    }
    wider = {site: Range(1.1 * r.lo, 1.1 * r.hi) for site, r in ranges.items()}
    yield Upgrade(name, RANGES, base, artifact(2, codes, corrections=corrections, ranges=wider))
    yield Upgrade(name, SCALED, base, artifact(2, rescaled(codes, seed)))
    yield Upgrade(name, TRAINED, base, artifact(2, {n: moved(layer, rng) for n, layer in codes.items()}))
    bits = {layer.name: int(rng.integers(4, 8)) for layer in plan.layers}
    later = {n: max(3, b + int(rng.choice([-1, 0, 0, 0, 0, 1]))) for n, b in bits.items()}
    yield Upgrade(
        name, ALLOCATED, artifact(1, to_nearest(model, bits)), artifact(2, to_nearest(model, later))
    )


def moved(layer: LayerCodes, rng: np.random.Generator) -> LayerCodes:
    """Return codes of which 3 % moved by one, and steps that moved a little, as a round of training does it."""
    steps: NDArray[np.int64] = rng.choice([-1, 1], layer.codes.shape) * (rng.random(layer.codes.shape) < 0.03)
    greatest = (1 << (layer.bit_width - 1)) - 1
    scale = layer.scale * (1 + 1e-3 * rng.normal(size=len(layer.scale)))
    codes = np.clip(layer.codes + steps, -greatest, greatest).astype(np.int8)
    return LayerCodes(codes, scale.astype(np.float32), layer.bias_shift)
