"""What the installed model costs on this device: time of an inference, of a swap, and memory."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.folder_lock import Access
from client.memory import keep_memory_small
from client.process_memory import peak_rss_bytes, rss_bytes
from client.runtime import Runtime
from client.sessions import Float32Array, open_session, run_session
from client.state import StateFolder
from quantization.artifact import BlobReader, Manifest, decode_blob, decode_files
from quantization.errors import ConfigurationError, NotFoundError

_WARM_UP = 10


@dataclass(frozen=True, slots=True)
class Latency:
    """How long single inferences took.

    Attributes:
        p50_seconds: Half of them took no longer.
        p95_seconds: 95 of 100 took no longer.
        p99_seconds: 99 of 100 took no longer.
        mean_seconds: On average.
    """

    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    mean_seconds: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a model costs on this device.

    Attributes:
        device_class: That it was made for.
        model_digest: SHA-256 of the float model, hex.
        generation: Number of its policy.
        manifest_digest: Digest of its manifest.
        size_bytes: Of its blobs as stored.
        runs: Inferences of each kind.
        threads: Of one inference.
        int8: Of the artifact.
        plain: Of the float model over the same weights; None where the artifact has no observation graph.
        swap_seconds: To build, test and exchange a session.
        rss_bytes: Resident memory with the artifact loaded; 0 where unknown.
        peak_rss_bytes: Greatest resident memory, the float model and the swap included.
    """

    device_class: str
    model_digest: str
    generation: int
    manifest_digest: str
    size_bytes: int
    runs: int
    threads: int
    int8: Latency
    plain: Latency | None
    swap_seconds: float
    rss_bytes: int
    peak_rss_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return every field, as JSON has them."""
        return asdict(self)


def measure(folder: Path, runs: int = 300, threads: int = 1) -> BenchResult:
    """Return what the installed artifact costs on this device; an agent may run beside it, and is then part of it.

    Args:
        folder: The state folder.
        runs: Inferences of each kind.
        threads: Of one inference.

    Raises:
        ConfigurationError: If there is no such folder.
        NotFoundError: If nothing is installed.
        QuantFleetError: If the artifact cannot be loaded.
    """
    keep_memory_small()
    if not (folder / "blobs").is_dir():
        raise ConfigurationError(
            f"{folder} is no state folder of a device; give the one that its agent runs on"
        )
    with StateFolder(folder, Access.GUEST) as state:
        manifest = state.read_manifest()
        if manifest is None:
            raise NotFoundError(f"nothing is installed in {folder}; run the agent first")
        spec = manifest.stages[0].input
        batch = (
            np.random.default_rng(0).standard_normal([size or 1 for size in spec.shape]).astype(np.float32)
        )
        runtime = Runtime(manifest, state.read_blob, threads)
        int8 = _latency(lambda: runtime.infer(batch), runs)
        rss = rss_bytes()
        plain = _plain_latency(manifest, state.read_blob, batch, runs, threads)
        began = time.perf_counter()
        runtime.swap(manifest, state.read_blob).result()
        swap_seconds = time.perf_counter() - began
        runtime.close()
    return BenchResult(
        device_class=manifest.device_class,
        model_digest=manifest.model_digest,
        generation=manifest.generation,
        manifest_digest=manifest.digest(),
        size_bytes=sum(ref.stored_size_bytes for ref in manifest.blobs.values()),
        runs=runs,
        threads=threads,
        int8=int8,
        plain=plain,
        swap_seconds=swap_seconds,
        rss_bytes=rss,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _plain_latency(
    manifest: Manifest, read_blob: BlobReader, batch: Float32Array, runs: int, threads: int
) -> Latency | None:
    """Return the latency of the observation graph's float model, weights kept as floats."""
    stage = manifest.stages[0]
    if stage.plain is None:
        return None
    skeleton = decode_blob(stage.plain, read_blob(stage.plain.digest))
    session = open_session(skeleton, decode_files(stage.files, read_blob), threads, folds_weights=True)
    return _latency(lambda: run_session(session, [stage.outputs[0]], {stage.input.name: batch}), runs)


def _latency(act: Callable[[], object], runs: int) -> Latency:
    for _ in range(_WARM_UP):
        act()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    p50, p95, p99 = (float(value) for value in np.quantile(times, (0.5, 0.95, 0.99)))
    return Latency(p50, p95, p99, float(np.mean(times)))
