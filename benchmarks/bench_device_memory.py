"""How much memory does a device's inference process need, at its peak, for ResNet-20?

The artifact is compiled first; then a fresh process loads it from a state folder as a device does, serves batches of 32
with the sampler on, observes the sample with both observation graphs, and swaps to another artifact. Prints resident
memory behind each step and its peak so far, in MB (10^6 bytes), and exits with 1 if the peak reaches the limit or if
torch, onnx or scipy was imported.

    python benchmarks/bench_device_memory.py [--limit-mb 100]

The weights are the trained ones where QUANTFLEET_DATA names the data, else random: memory does not depend on them.
"""

# ruff: noqa: PLC0415  # what is imported when is what this script measures
import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BATCH = 32
BATCHES = 12
FORBIDDEN = ("onnx", "scipy", "sklearn", "sqlalchemy", "torch")


def resident_mb(field: str) -> float:
    """Return VmRSS or VmHWM (its peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {field} in /proc/self/status")


def report(step: str) -> None:
    """Print one row of the breakdown."""
    print(f"{step:34s} {resident_mb('VmRSS'):8.1f} {resident_mb('VmHWM'):8.1f}", flush=True)


def run_device(folder: str, limit_mb: float) -> int:
    """Be the device's process; return its exit code."""
    print(f"{'step':34s} {'now MB':>8s} {'peak MB':>8s}")
    report("python")
    from client.memory import keep_memory_small

    keep_memory_small()
    import numpy as np

    report("numpy")
    import onnxruntime  # noqa: F401

    report("onnxruntime")
    from client.observer import Observer
    from client.runtime import Runtime
    from client.sampler import Sampler
    from client.state import StateFolder

    report("client")
    with StateFolder(folder) as state:
        manifest = state.read_manifest()
        if manifest is None:
            raise RuntimeError("no manifest in the state folder")
        shape = [size or BATCH for size in manifest.stages[0].input.shape]
        sampler = Sampler(shape[1:])
        runtime = Runtime(manifest, state.read_blob, on_input=sampler.offer)
        report("artifact loaded")
        batch = np.linspace(-2, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        for _ in range(BATCHES):
            runtime.infer(batch)
        report(f"{BATCHES} batches of {BATCH}, {len(sampler)} sampled")
        serving_peak = resident_mb("VmHWM")
        observer = Observer(manifest, state.read_blob, batch_size=BATCH)
        observer.moments(sampler.inputs())
        report("sequential moments observed")
        observer.ranges(sampler.inputs())
        report("ranges observed")
        runtime.swap(manifest, state.read_blob).result()
        report("swapped")
    peak = resident_mb("VmHWM")
    imported = [name for name in FORBIDDEN if name in sys.modules]
    print(f"peak while serving {serving_peak:.1f} MB, with observation {peak:.1f} MB, limit {limit_mb:g} MB")
    print(f"imported of {', '.join(FORBIDDEN)}: {', '.join(imported) or 'none'}")
    return int(bool(imported) or peak >= limit_mb)


def make_state(folder: str) -> None:
    """Compile ResNet-20 with observation graphs, and install it in a state folder."""
    import numpy as np

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    import models

    from client.state import StateFolder
    from quantization.artifact import build_artifact
    from quantization.calibration import Range
    from quantization.compile import compile_inference
    from quantization.compile_observation import compile_observation
    from quantization.graph import analyze, canonicalize
    from quantization.moments import ChannelReference
    from quantization.policy import Policy

    data = Path(os.environ.get("QUANTFLEET_DATA", "")) / "resnet20_cifar10.npz"
    model = models.resnet20_random()
    if data.is_file():
        with np.load(data) as arrays:
            model = models.resnet20({name: arrays[name] for name in arrays.files})
    canonical = canonicalize(model)
    plan = analyze(canonical)
    policy = Policy(
        model_digest=hashlib.sha256(canonical).hexdigest(),
        device_class="x86-vnni",
        generation=0,
        ranges={site.name: Range(-4.0, 4.0) for site in plan.sites},
        bit_widths={layer.name: 8 for layer in plan.layers},
        corrections={},
        range_method="mse",
    )
    references = {
        layer.name: ChannelReference(np.zeros(layer.channels), np.ones(layer.channels), 1000)
        for layer in plan.corrected_layers
    }
    artifact = build_artifact(
        compile_inference(canonical, plan, policy),
        compile_observation(canonical, plan, policy, references),
        policy,
        plan,
    )
    with StateFolder(folder) as state:
        for digest, stored in artifact.blobs.items():
            state.store_blob(digest, stored)
        state.write_manifest(artifact.manifest)


def main() -> int:
    """Make the state folder, and run the device in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit-mb", type=float, default=100.0)
    parser.add_argument("--smoke", action="store_true", help="the same: it takes seconds in full")
    parser.add_argument("--device", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device:
        return run_device(arguments.device, arguments.limit_mb)
    with tempfile.TemporaryDirectory() as folder:
        make_state(folder)
        command = [sys.executable, __file__, "--device", folder, "--limit-mb", str(arguments.limit_mb)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
