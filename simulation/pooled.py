"""The check that a fleet's ranges are those of all its data in one place, bit for bit.

It goes another way than the rounds: the values that devices' histograms are made of are collected, put in one array per
site, and one histogram is made of that array, with nothing merged.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from client.observer import Observer
from quantization.arrays import FloatArray
from quantization.artifact import Manifest, decode_blob
from quantization.calibration import Range, method_from_name
from quantization.graph import GraphPlan
from quantization.histogram import DyadicHistogram
from quantization.policy import Policy
from server.blob_store import BlobStore
from server.ranges import choose_ranges

CHANNELS = "channels"


def channels_of(manifest: Manifest, blobs: BlobStore) -> bytes:
    """Return the decoded content of an artifact's `channels` file."""
    (ref,) = (ref for ref in manifest.stages[0].files if ref.location == CHANNELS)
    return decode_blob(ref, blobs.get(ref.digest))


def pooled_ranges(
    plan: GraphPlan,
    base: Manifest,
    blobs: BlobStore,
    inputs: Iterable[FloatArray],
    *,
    channels: bytes,
    policy: Policy,
    previous: Mapping[str, Range],
    batch_size: int,
) -> dict[str, Range]:
    """Return the ranges from one array per site that holds what all devices saw.

    Args:
        plan: The model's sites.
        base: The artifact that devices ran while they calibrated.
        blobs: Have the artifact's content.
        inputs: Of each device whose statistics were folded, in any order.
        channels: Content of the candidate's `channels` file, which they observed with.
        policy: Names the range method.
        previous: Ranges of the generation before.
        batch_size: Inputs in one inference on a device.
    """
    observer = Observer(base, blobs.get, channels, batch_size=batch_size)
    seen: dict[str, list[FloatArray]] = {site.name: [] for site in plan.sites}

    def keep(site: str, values: FloatArray) -> None:
        seen[site].append(np.array(values, np.float32).reshape(-1))

    for device_inputs in inputs:
        if len(device_inputs):
            observer.ranges(device_inputs, values_sink=keep)
    histograms = {
        site: DyadicHistogram.from_values(np.concatenate(parts)) for site, parts in seen.items() if parts
    }
    return choose_ranges(plan, histograms, method_from_name(policy.range_method), previous)
