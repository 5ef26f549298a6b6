"""The float model behind an artifact, beside it: what would it have said, and do its values fit the ranges?

The artifact carries its observation graph: the same weight codes, dequantized, with the corrections of the running
policy and float activations. So agreement with it says what 8-bit activations and their ranges cost. What the weights'
own rounding costs it cannot see: both have the same codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.sessions import Float32Array, open_session, run_session
from quantization.artifact import BlobReader, Manifest, Stage, decode_blob, decode_files
from quantization.errors import ConfigurationError, MalformedError
from quantization.observation import VALUES

_RANGES = "ranges"
_GREATEST_CODE = 255
_EXTREMES = 2  # the exact minimum and maximum behind the values of a site


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the float model says of some answers.

    Attributes:
        judged: Answers that it gave too.
        agreements: Answers on which both say the same.
        observed_values: Values that were seen at sites; 0 where the artifact does not tell their ranges.
        clipped_values: Those of them beyond their site's range.
    """

    judged: int
    agreements: int
    observed_values: int
    clipped_values: int


def can_judge(manifest: Manifest) -> bool:
    """Return whether the artifact has an observation graph."""
    return len(manifest.stages) == 1 and manifest.stages[0].plain is not None


def judge_answers(
    manifest: Manifest, read_blob: BlobReader, inputs: Float32Array, classes: Sequence[int], threads: int = 1
) -> Judgement:
    """Return what the float model says of an artifact's answers.

    A session is built for the call and dropped at its end: float activations are large, and this is done seldom.

    Args:
        manifest: Of the artifact that answered.
        read_blob: Gives its blobs.
        inputs: That were answered, shape (n, ...).
        classes: What the artifact said, for each.
        threads: Of one inference.

    Raises:
        ConfigurationError: If the artifact has no observation graph.
        QuantFleetError: If it does not load or run.
    """
    stage = manifest.stages[0]
    if not can_judge(manifest) or stage.plain is None:
        raise ConfigurationError("the artifact has no observation graph; build it with one")
    files = decode_files(stage.files, read_blob)
    limits = _limits(files.get(_RANGES, b""), stage)
    skeleton = decode_blob(stage.plain, read_blob(stage.plain.digest))
    session = open_session(skeleton, files, threads)
    logits, *values = run_session(
        session,
        [stage.outputs[0], *(VALUES + site for site in stage.sites if limits)],
        {stage.input.name: inputs},
    )
    if logits.ndim != 2 or len(logits) != len(classes):
        raise MalformedError(f"the observation graph gives {logits.shape} for {len(classes)} inputs")
    agreements = int(np.count_nonzero(logits.argmax(axis=1) == np.asarray(classes)))
    seen = clipped = 0
    for tensor, (low, high) in zip(values, limits, strict=True):
        site = tensor[:-_EXTREMES]
        seen += site.size
        clipped += int(np.count_nonzero((site < low) | (site > high)))
    return Judgement(len(classes), agreements, seen, clipped)


def _limits(ranges: bytes, stage: Stage) -> list[tuple[float, float]]:
    """Return the least and greatest value of each site that its codes can stand for, rounding included."""
    count = len(stage.sites)
    if not count or len(ranges) != 5 * count:
        return []
    scales = np.frombuffer(ranges, "<f4", count).astype(np.float64)
    zero_points = np.frombuffer(ranges, np.uint8, count, 4 * count).astype(np.float64)
    lows, highs = scales * (-zero_points - 0.5), scales * (_GREATEST_CODE - zero_points + 0.5)
    return list(zip(lows.tolist(), highs.tolist(), strict=True))
