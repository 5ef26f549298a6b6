"""The baseline that a fleet has to beat: each device corrects itself, from its own inputs and nobody else's.

That is adaptive batch normalization (Li et al. 2016, arXiv:1603.04779) on the device, folded into the int8 model as the
fleet's corrections are.
"""

from dataclasses import replace

from client.observer import Observer
from quantization.arrays import FloatArray
from quantization.artifact import Artifact
from quantization.calibration import method_from_name
from quantization.policy import Policy
from quantization.renormalization import DriftRule, restore
from server.blob_store import BlobStore
from server.candidate import PlannedModel, channels_file, compile_artifact
from server.folded import LabStatistics
from server.lab import PreparedModel
from server.ranges import choose_ranges

FULL_TRUST = DriftRule(prior_std=0.0)
"""A device alone has nobody to compare with: it believes its own moments."""


def tuned_alone(
    prepared: PreparedModel, blobs: BlobStore, device_class: str, inputs: FloatArray, batch_size: int = 32
) -> Artifact:
    """Return the artifact that a device would make of generation 0 from its own inputs.

    Args:
        prepared: The model and its generation 0.
        blobs: Have its content.
        device_class: Of the device.
        inputs: That the device sees, shape (N, ...).
        batch_size: Inputs in one inference.
    """
    model = PlannedModel.load(prepared.model.digest, blobs)
    manifest = prepared.artifacts[device_class].manifest
    policy = Policy.from_json_bytes(prepared.generations[device_class].policy.encode())
    statistics: LabStatistics = prepared.statistics[device_class]
    moments = Observer(manifest, blobs.get, batch_size=batch_size).moments(inputs).moments
    corrections = {
        layer: restore(
            seen.as_device() if seen.devices == 0 else seen, statistics.references[layer], FULL_TRUST
        )
        for layer, seen in moments.items()
        if seen.count > 0
    }
    corrected = replace(policy, corrections=corrections)
    observer = Observer(
        manifest, blobs.get, {"channels": channels_file(model, corrected)}, batch_size=batch_size
    )
    histograms = observer.ranges(inputs).histograms
    method = method_from_name(policy.range_method)
    ranges = choose_ranges(model.plan, histograms, method, policy.ranges)
    return compile_artifact(model, replace(corrected, ranges=ranges), statistics.references)
