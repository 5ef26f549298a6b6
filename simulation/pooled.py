"""The check that a fleet's ranges are those of all its data in one place, bit for bit.

It goes another way than the rounds: the values that devices' histograms are made of are collected, put in one array per
site, and one histogram is made of that array, with nothing merged.
"""

from collections.abc import Iterable, Mapping
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from client.observer import Observer
from quantization.arrays import FloatArray, IntArray
from quantization.artifact import Manifest
from quantization.calibration import Range, method_from_name
from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe
from quantization.graph import GraphPlan
from quantization.histogram import WEIGHT_STEPS
from quantization.observation import histogram_of
from quantization.policy import Policy
from server.blob_store import BlobStore
from server.ranges import choose_ranges


def pooled_ranges(
    plan: GraphPlan,
    base: Manifest,
    blobs: BlobStore,
    inputs: Iterable[FloatArray],
    *,
    overrides: Mapping[str, bytes],
    policy: Policy,
    previous: Mapping[str, Range],
    batch_size: int,
    recipe: CalibrationRecipe = DEFAULT_RECIPE,
    labels: Iterable[IntArray | None] = (),
    seed: int = 0,
) -> dict[str, Range]:
    """Return the ranges from one array per site that holds what all devices saw.

    Args:
        plan: The model's sites.
        base: The artifact that devices ran while they calibrated.
        blobs: Have the artifact's content.
        inputs: Of each device whose statistics were folded, in any order.
        overrides: The candidate's corrections and weights, which they observed with.
        policy: Names the range method.
        previous: Ranges of the generation before.
        batch_size: Inputs in one inference on a device.
        recipe: Which inputs weighed more, and which copies joined them.
        labels: Of each device's inputs, in the same order; fewer where the others have none.
        seed: Of the copies.
    """
    observer = Observer(base, blobs.get, overrides, batch_size=batch_size)
    seen: dict[str, list[NDArray[np.float32]]] = {site.name: [] for site in plan.sites}
    weights: dict[str, list[IntArray]] = {site.name: [] for site in plan.sites}

    def keep(site: str, values: FloatArray, steps: IntArray | None) -> None:
        seen[site].append(np.array(values, np.float32).reshape(-1))
        weights[site].append(np.full(values.size, WEIGHT_STEPS) if steps is None else steps)

    for device_inputs, device_labels in zip_longest(inputs, labels):
        if len(device_inputs):
            observer.ranges(device_inputs, values_sink=keep, recipe=recipe, labels=device_labels, seed=seed)
    histograms = {
        site: histogram_of(np.concatenate(parts), np.concatenate(weights[site]))
        for site, parts in seen.items()
        if parts
    }
    return choose_ranges(plan, histograms, method_from_name(policy.range_method), previous)
