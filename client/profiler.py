"""How long each layer's kernel takes on this device, from ONNX Runtime's own profile."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from client.sessions import open_session, run_session
from quantization.artifact import BlobReader, Manifest, decode_blob, decode_files
from quantization.blob_ref import BlobRef
from quantization.errors import ConfigurationError, MalformedError

WARM_UP_RUNS = 3
_MAX_PROFILE_BYTES = 256 << 20
_KERNEL_TIME = "_kernel_time"
_MOVED = re.compile(r"(.+)(?:_token_\d+|_nchwc)")
"""A Conv that ONNX Runtime moved to another memory layout: the name of its node, or of what it writes, comes first."""

KernelTimes = Mapping[str, tuple[int, int]]
"""By layer: nanoseconds over all runs, and the runs."""


def profile_layers(
    manifest: Manifest, read_blob: BlobReader, layers: Mapping[str, str], runs: int
) -> tuple[KernelTimes, KernelTimes]:
    """Return the kernel times of the integer graph and of the float graph, on one input of zeros and one thread.

    A layer's time is that of the node that has its name, which fused operators keep.

    Args:
        manifest: Of one stage with an observation graph.
        read_blob: Gives the stored bytes of the artifact's blobs.
        layers: By name: what the layer's node writes. Layers that a profile does not name are left out.
        runs: Inferences to measure, behind a few that warm up.

    Raises:
        ConfigurationError: If there is no observation graph.
        UpdateRejectedError: If a graph cannot be loaded.
    """
    stage = manifest.stages[0]
    if len(manifest.stages) != 1 or stage.plain is None:
        raise ConfigurationError("the artifact has no observation graph; build it with one")
    files = decode_files(stage.files, read_blob)
    x = np.zeros([size or 1 for size in stage.input.shape], np.float32)

    def measure(graph: BlobRef, *, is_float: bool) -> KernelTimes:
        skeleton = decode_blob(graph, read_blob(graph.digest))
        with TemporaryDirectory(prefix="quantfleet-profile-") as folder:
            prefix = str(Path(folder, "run"))
            session = open_session(skeleton, files, folds_weights=is_float, profile_prefix=prefix)
            for _ in range(WARM_UP_RUNS + runs):
                run_session(session, stage.outputs[:1], {stage.input.name: x})
            return kernel_times(Path(session.end_profiling()), layers, runs)

    return measure(stage.skeleton, is_float=False), measure(stage.plain, is_float=True)


def kernel_times(profile: Path, layers: Mapping[str, str], runs: int) -> dict[str, tuple[int, int]]:
    """Return the times of the last `runs` runs of each of the layers that a profile of ONNX Runtime names.

    Raises:
        MalformedError: If it is not such a profile.
    """
    if profile.stat().st_size > _MAX_PROFILE_BYTES:
        raise MalformedError("the profile is too large; ask for fewer runs")
    try:
        events = json.loads(profile.read_bytes())
        nodes = [(event["name"], int(event["dur"])) for event in events if event.get("cat") == "Node"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedError(f"not a profile: {error}") from error
    named = {output: layer for layer, output in layers.items()} | {layer: layer for layer in layers}
    seen: dict[str, list[int]] = {}
    for name, microseconds in nodes:
        if name.endswith(_KERNEL_TIME):
            layer = _layer_of(name.removesuffix(_KERNEL_TIME), named)
            if layer is not None:
                seen.setdefault(layer, []).append(1000 * microseconds)
    return {layer: (sum(times[-runs:]), runs) for layer, times in seen.items() if len(times) >= runs}


def _layer_of(node: str, layers: Mapping[str, str]) -> str | None:
    """Return the layer whose kernel a node is, None for other nodes.

    Args:
        node: Name of a node in the optimized graph.
        layers: By name of a layer, and of what it writes: the layer.
    """
    moved = _MOVED.fullmatch(node)
    return layers.get(node) or (layers.get(moved.group(1)) if moved else None)
