"""What a device answers: takes the artifact in, runs the graphs over its inputs, returns sums.

The rules:

1. A device takes in only artifacts of its own class, whose every blob it then holds, and never one of an
   older generation of the same model than it has.
2. The current artifact of a request becomes the one that serves; a candidate is run and kept, never
   installed.
3. A device without inputs answers with empty statistics: it is there, it just saw nothing.
4. A candidate that cannot be loaded or run is counted as a failure, not reported as an error: it is what an
   assessment wants to know.
"""

import threading
import time
from collections import OrderedDict

import numpy as np
from flwr.app import RecordDict

from client.device import Device
from client.observer import Observer
from client.runtime import Runtime
from client.training import has_torch
from quantization.arrays import FloatArray, IntArray
from quantization.artifact import Manifest
from quantization.assessment import AssessmentCounts, count_outputs, of_device
from quantization.errors import (
    InvalidDataError,
    MalformedError,
    NotFoundError,
    StaleVersionError,
    UpdateRejectedError,
)
from quantization.moments import ChannelMoments
from quantization.observation import batches
from strategies.messages import (
    AssessRequest,
    Delivery,
    DeviceHello,
    LayerLayout,
    MomentsRequest,
    RangesRequest,
)
from strategies.records import encode_moments, encode_ranges
from strategies.training_records import CAN_TRAIN

_CACHED_RUNTIMES = 2
"""A simulation runs thousands of devices in one process, all with the same current and candidate artifact."""


def answer_hello(device: Device, node_id: int, name: str = "") -> DeviceHello:
    """Return what the device is and holds, and what it is called."""
    manifest, labels, samples = device.manifest(), device.labels(), len(device.inputs())
    return DeviceHello(
        node_id=node_id,
        device_class=device.device_class.name,
        generation=-1 if manifest is None else manifest.generation,
        manifest_digest="" if manifest is None else manifest.digest(),
        sample_count=samples,
        has_labels=labels is not None and bool((labels >= 0).any()),
        capabilities=(CAN_TRAIN,) if samples and has_torch() else (),
        name=name,
    )


def answer_moments(device: Device, request: MomentsRequest) -> RecordDict:
    """Return the reply to a calibrate message of phase "moments"."""
    manifest = take_current(device, request.artifact)
    inputs = device.inputs()
    if len(inputs) == 0:
        return encode_moments(request.layers, _no_moments(request.layers), _no_moments(request.layers), 0)
    observer = Observer(manifest, device.read_blob, batch_size=request.batch_size)
    sequential, plain = observer.moments(inputs, request.recipe, request.seed), observer.ranges(inputs)
    return encode_moments(request.layers, plain.moments, sequential.moments, plain.sample_count)


def answer_ranges(device: Device, request: RangesRequest) -> RecordDict:
    """Return the reply to a calibrate message of phase "ranges"."""
    manifest = take_current(device, request.artifact)
    inputs = device.inputs()
    if len(inputs) == 0:
        return encode_ranges(request.layers, request.sites, {}, _no_moments(request.layers), 0)
    observer = Observer(manifest, device.read_blob, request.overrides, batch_size=request.batch_size)
    labels = device.labels() if request.recipe.is_weighted else None
    seen = observer.ranges(inputs, recipe=request.recipe, labels=labels, seed=request.seed)
    return encode_ranges(request.layers, request.sites, seen.histograms, seen.moments, seen.sample_count)


def answer_assess(device: Device, request: AssessRequest) -> AssessmentCounts:
    """Return the counts of the candidate beside the current artifact."""
    current = take_current(device, request.artifact)
    candidate = take(device, request.candidate)
    inputs, labels = _usable(device.inputs(), device.labels())
    if len(inputs) == 0:
        return AssessmentCounts.empty(devices=1)
    serving = _RUNTIMES.get(current, device)
    try:
        proposed = _RUNTIMES.get(candidate, device)
        reference = Observer(candidate, device.read_blob, batch_size=request.batch_size).logits(inputs)
        return _compare(
            serving,
            proposed,
            reference=reference,
            inputs=inputs,
            labels=labels,
            batch_size=request.batch_size,
        )
    except (UpdateRejectedError, InvalidDataError):
        return AssessmentCounts.empty(devices=1, failures=1)


def take(device: Device, delivery: Delivery) -> Manifest:
    """Return the delivered artifact, after keeping the blobs that came with it.

    Raises:
        UpdateRejectedError: If it is for another class of devices.
        MalformedError: If the manifest is not one, or blobs came that it does not name.
        NotFoundError: If blobs are neither held nor delivered.
    """
    manifest = Manifest.from_bytes(delivery.manifest)
    if manifest.device_class != device.device_class.name:
        raise UpdateRejectedError(
            f"an artifact for {manifest.device_class!r} came to a device of class"
            f" {device.device_class.name!r}"
        )
    unnamed = delivery.blobs.keys() - manifest.blobs.keys()
    if unnamed:
        raise MalformedError(f"{len(unnamed)} blobs came that the manifest does not name")
    for digest, stored in delivery.blobs.items():
        if not device.has_blob(digest):
            device.store_blob(digest, stored)
    missing = sorted(digest for digest in manifest.blobs if not device.has_blob(digest))
    if missing:
        raise NotFoundError(f"{len(missing)} blobs are neither held nor delivered, the first is {missing[0]}")
    return manifest


def take_current(device: Device, delivery: Delivery) -> Manifest:
    """Return the delivered artifact, after making it the one that serves.

    Raises:
        StaleVersionError: If the device has a later generation of the same model.
        QuantFleetError: As `take`.
    """
    manifest, held = take(device, delivery), device.manifest()
    if held is None or held.digest() != manifest.digest():
        is_same_model = held is not None and held.model_digest == manifest.model_digest
        if held is not None and is_same_model and manifest.generation < held.generation:
            raise StaleVersionError(
                f"generation {manifest.generation} came to a device that runs generation {held.generation}"
            )
        device.install(manifest)
    return manifest


class _RuntimeCache:
    """The last few runtimes of this process, by the digest of their artifact."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._runtimes: OrderedDict[str, Runtime] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, manifest: Manifest, device: Device) -> Runtime:
        """Return the artifact's runtime, built from the device's blobs if it is not there."""
        digest = manifest.digest()
        with self._lock:
            if digest not in self._runtimes:
                self._runtimes[digest] = Runtime(manifest, device.read_blob)
            self._runtimes.move_to_end(digest)
            runtime = self._runtimes[digest]
            while len(self._runtimes) > self._capacity:
                self._runtimes.popitem(last=False)[1].close()
        return runtime


_RUNTIMES = _RuntimeCache(_CACHED_RUNTIMES)


def _compare(
    serving: Runtime,
    proposed: Runtime,
    *,
    reference: FloatArray,
    inputs: FloatArray,
    labels: IntArray | None,
    batch_size: int,
) -> AssessmentCounts:
    """Return the counts of one device, batch by batch."""
    counts, start = AssessmentCounts.empty(), 0
    for batch in batches(inputs, batch_size):
        rows = slice(start, start + len(batch))
        began = time.perf_counter()
        current = serving.infer(batch)
        halfway = time.perf_counter()
        candidate = proposed.infer(batch)
        seen = count_outputs(
            current,
            candidate,
            reference[rows],
            None if labels is None else labels[rows],
            current_seconds=halfway - began,
            candidate_seconds=time.perf_counter() - halfway,
        )
        counts, start = counts.merge(seen), rows.stop
    return of_device(counts)


def _usable(inputs: FloatArray, labels: IntArray | None) -> tuple[FloatArray, IntArray | None]:
    """Return the inputs that are finite, with their labels."""
    if len(inputs) == 0:
        return inputs, labels
    is_finite = np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
    return inputs[is_finite], None if labels is None else labels[is_finite]


def _no_moments(layers: LayerLayout) -> dict[str, ChannelMoments]:
    pairs = zip(layers.names, layers.channels, strict=True)
    return {name: ChannelMoments.empty(channels) for name, channels in pairs}
