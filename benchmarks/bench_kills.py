"""Does a generation complete whatever is killed, and is what it publishes the same to the byte?

Real processes on this machine: a SuperLink, SuperNodes with simulated devices, the tuner, an update server. An
undisturbed generation first. Then one of the ServerApp, the SuperLink (alone, or with all its processes), the tuner
and the update server is killed with SIGKILL after a random while, again and again, as long as a generation is under
way; what was killed is started again at once. A generation that completes before all kills are done is followed by
another one from the start, in a new folder. Each one's manifest, blobs, policy and folded statistics are compared with
those of the undisturbed one.

`--smoke` kills once; `--precision` has generations choose bit-widths too and train once (moments, probes, rounding,
training); `--json` prints one object; exits 1 if a generation did not complete, or differs.

    python benchmarks/bench_kills.py                # 30 kills, about 25 minutes
    python benchmarks/bench_kills.py --smoke        # 1 kill
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from simulation.child_processes import interrupted_by_sigterm
from simulation.tuning_stage import Artifact, Part, StageSettings, TuningStage

GENERATION_SECONDS = 1800.0
PAUSE_PARTS = (0.05, 0.5)
"""Shortest and longest time between two kills, in parts of an undisturbed generation's."""

WEIGHTS = {Part.SERVERAPP: 3, Part.SUPERLINK: 2, Part.SUPERLINK_TREE: 2, Part.TUNER: 2, Part.SERVER: 1}


def undisturbed(folder: Path, settings: StageSettings) -> tuple[Artifact, float]:
    """Return what a generation publishes that nobody disturbs, and the seconds it took."""
    with TuningStage(folder, settings) as stage:
        began = time.monotonic()
        stage.ask()
        stage.wait(GENERATION_SECONDS)
        return stage.artifact(), time.monotonic() - began


def disturbed(
    folder: Path, settings: StageSettings, rng: random.Random, most_kills: int, calm_seconds: float
) -> tuple[Artifact, Counter[str], int]:
    """Return what a generation publishes, how often what was killed meanwhile, and how many runs it took."""
    killed: Counter[str] = Counter()
    with TuningStage(folder, settings) as stage:
        stage.ask()
        while killed.total() < most_kills and stage.is_working():
            stage.pause(calm_seconds * rng.uniform(*PAUSE_PARTS))
            (part,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
            if stage.is_working() and stage.kill(part):
                killed[part] += 1
                generation = stage.generation()
                step = "not started" if generation is None else str(generation.step)
                print(f"kill {killed.total()}: {part}, generation {step}", file=sys.stderr, flush=True)
        stage.wait(GENERATION_SECONDS)
        return stage.artifact(), killed, stage.runs()


def differences(found: Artifact, expected: Artifact) -> list[str]:
    """Return what differs, in words."""
    told = [name for name, value in expected.facts.items() if found.facts[name] != value]
    if found.manifest != expected.manifest:
        told.append("manifest")
    told += [
        f"blob {digest[:12]}"
        for digest in expected.blobs
        if found.blobs.get(digest) != expected.blobs[digest]
    ]
    return told


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Return what came of all kills."""
    run = {"size-ratio": 8.0, "train-rounds": 1} if arguments.precision else {}
    settings = StageSettings(devices=arguments.devices, cache=folder / "models", run=dict(run))
    expected, calm_seconds = undisturbed(folder / "calm", settings)
    print(f"undisturbed: {calm_seconds:.0f} s", file=sys.stderr, flush=True)
    rng, began = random.Random(arguments.seed), time.monotonic()  # noqa: S311  # no secret
    killed: Counter[str] = Counter()
    runs, generations, differing = 0, 0, []
    while killed.total() < arguments.kills:
        generations += 1
        rest = arguments.kills - killed.total()
        found, more, count = disturbed(folder / f"stage-{generations}", settings, rng, rest, calm_seconds)
        killed, runs = killed + more, runs + count
        differing += differences(found, expected)
    return {
        "kills": killed.total(),
        "killed": dict(sorted(killed.items())),
        "generations": generations,
        "flower_runs": runs,
        "seconds": round(time.monotonic() - began, 1),
        "undisturbed_seconds": round(calm_seconds, 1),
        "devices": arguments.devices,
        "precision": arguments.precision,
        "compared_blobs": len(expected.blobs),
        "differences": differing,
        "manifest_digest": expected.facts["manifest_digest"],
    }


def main() -> int:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep everything here; a temporary folder otherwise")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.kills = min(arguments.kills, 1)
    with interrupted_by_sigterm(), tempfile.TemporaryDirectory(prefix="kills") as name:
        result = measure(arguments, arguments.folder or Path(name))
    print(json.dumps(result, indent=None if arguments.json else 2))
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
