"""What a device answers in the rounds about precision: second moments, probes, kernel times; always sums.

The rules of `client.answers` hold. The reference model and its variants are run and dropped, never installed; a
device without inputs answers with empty statistics.
"""

import numpy as np
from flwr.app import RecordDict

from client.answers import take_current
from client.device import Device
from client.profiler import profile_layers
from client.tap_observer import TapObserver
from quantization.arrays import FloatArray, IntArray
from quantization.calibration_recipe import prepared_blocks
from quantization.input_observation import InputObservation, observe_inputs
from quantization.observation import finite_inputs
from quantization.sensitivity import MAX_DIVERGENCE, tempered_divergence
from strategies.precision_messages import (
    DIVERGENCE_STEPS,
    InputsRequest,
    ProbeReply,
    ProbeRequest,
    ProfileReply,
    ProfileRequest,
)
from strategies.precision_records import encode_inputs, encode_probes, encode_profile


def answer_inputs(device: Device, request: InputsRequest) -> RecordDict:
    """Return the reply to a calibrate message of phase "inputs"."""
    manifest = take_current(device, request.artifact)
    inputs, labels = _first_finite(device, request.max_samples)
    if len(inputs) == 0:
        empty = {layer.name: layer.empty(with_cross=request.with_cross) for layer in request.layers}
        return encode_inputs(request, empty, 0)
    observer = TapObserver(manifest, device.read_blob, request.graph, batch_size=request.batch_size)
    seen = _observe(observer, request, inputs, labels)
    return encode_inputs(request, seen.moments, seen.sample_count, seen.left_out_count)


def answer_probe(device: Device, request: ProbeRequest) -> RecordDict:
    """Return the reply to a probe message."""
    manifest = take_current(device, request.artifact)
    inputs, labels = _first_finite(device, request.max_samples)
    if len(inputs) == 0 or not request.probes:
        return encode_probes([ProbeReply(0, 0, 0, 0, 0, 0)] * len(request.probes))
    observer = TapObserver(manifest, device.read_blob, request.graph, batch_size=request.batch_size)
    reference = observer.logits(inputs, request.reference)
    return encode_probes(
        [
            compare(reference, observer.logits(inputs, {**request.reference, **probe.overrides}), labels)
            for probe in request.probes
        ]
    )


def answer_profile(device: Device, request: ProfileRequest) -> RecordDict:
    """Return the reply to a calibrate message of phase "profile"."""
    manifest = take_current(device, request.artifact)
    layers = dict(zip(request.layers, request.outputs, strict=True))
    integer, float_ = profile_layers(manifest, device.read_blob, layers, request.runs)
    found = [[times.get(layer, (0, 0)) for layer in request.layers] for times in (integer, float_)]
    sums, runs = (tuple(tuple(pair[part] for pair in times) for times in found) for part in (0, 1))
    return encode_profile(ProfileReply(sums[0], runs[0], sums[1], runs[1]))


def compare(reference: FloatArray, probe: FloatArray, labels: IntArray | None) -> ProbeReply:
    """Return what a probe's logits cost against the reference's.

    Args:
        reference: (N, classes), or (N, classes, positions...), whose positions are averaged; finite.
        probe: Of the same inputs, likewise.
        labels: Class of each input, (N,), -1 where unknown; None where none is known. Not used with positions.

    Raises:
        MalformedError: If shapes differ or a logit is not finite.
    """
    count = len(reference)
    rows = [np.moveaxis(logits, 1, -1).reshape(-1, logits.shape[1]) for logits in (reference, probe)]
    divergence = tempered_divergence(rows[0], rows[1]) * count / len(rows[0])
    answers = [part.argmax(axis=1).reshape(count, -1) for part in rows]
    disagreements = int((answers[0] != answers[1]).any(axis=1).sum())
    steps = round(min(divergence, MAX_DIVERGENCE * count) * DIVERGENCE_STEPS)
    if labels is None or reference.ndim != 2:
        return ProbeReply(steps, count, disagreements, 0, 0, 0)
    is_labelled = labels >= 0
    hits = [int((part[:, 0] == labels)[is_labelled].sum()) for part in answers]
    return ProbeReply(steps, count, disagreements, int(is_labelled.sum()), *hits)


def _observe(
    observer: TapObserver, request: InputsRequest, inputs: FloatArray, labels: IntArray | None
) -> InputObservation:
    blocks = prepared_blocks(
        request.recipe, inputs, lambda rows: observer.logits(rows, request.reference), labels, request.seed
    )
    tensors = tuple(layer.tensor for layer in request.layers)
    if request.overrides is None:
        with observer.taps(tensors, request.reference) as run:
            return observe_inputs(
                run, blocks, request.layers, request.batch_size, columns_per_batch=request.columns_per_batch
            )
    overrides = {**request.reference, **request.overrides}
    with observer.taps(tensors, overrides) as run, observer.taps(tensors, request.reference) as reference_run:
        return observe_inputs(
            run,
            blocks,
            request.layers,
            request.batch_size,
            reference_run=reference_run,
            columns_per_batch=request.columns_per_batch,
        )


def _first_finite(device: Device, most: int) -> tuple[FloatArray, IntArray | None]:
    """Return the device's first inputs, of which those that are not finite are left out, with their labels."""
    inputs, labels = device.inputs()[:most], device.labels()
    if len(inputs) == 0:
        return inputs, None
    is_finite = finite_inputs(inputs)
    return inputs[is_finite], None if labels is None else labels[:most][is_finite]
