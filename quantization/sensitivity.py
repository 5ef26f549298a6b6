"""How much a layer's output error costs the model: gains, from forward-only probes that devices share.

A probe runs the reference and the model with one layer rounded, and sums KL(p_reference || p_probe) over a few
unlabelled inputs. It is taken at temperature 4: at 1, a few undecided inputs make up nearly all of the sum (ResNet-20,
240 images: gains to 46 % at temperature 1, to 11 % at 4, of the same expectation). With the layer's exact loss (mean
square error of its output) known, the model's predicted divergence is `gain * loss`, for every grid of that layer.
Rules:

1. A gain is the median of means over buckets of devices (Nemirovsky and Yudin 1983; Lugosi and Mendelson 2019,
   arXiv:1906.04280), with buckets so many that those with a liar in them stay a minority.
2. Devices are dealt to buckets by their names, not by the order of arrival: same replies, same gains.
3. Measured divergences of whole models correct the gains: each layer in proportion to its part of the prediction.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import FloatArray
from quantization.errors import ConfigurationError, MalformedError

TEMPERATURE = 4.0
"""What logits are divided by before divergences are taken; these are multiplied by its square in turn."""

LIAR_SHARE = 0.2
"""Part of the devices that may send anything without moving a gain beyond what honest ones sent."""

MAX_COUNT = 1 << 32
MAX_DIVERGENCE = 1e6
"""Most that one input may diverge, in nats."""

_NORMAL_QUANTILE = 1.96  # of a two-sided 95 % interval
_MAD_TO_STD = 1.4826  # a normal distribution's standard deviation, in median absolute deviations
_MEDIAN_INEFFICIENCY = 1.2533  # standard error of a median over that of a mean, sqrt(pi / 2)
_LARGEST_CORRECTION = 10.0  # of one gain by one measurement


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one device measured for one rounding of one layer.

    Attributes:
        device: Name of the device.
        loss: Exact loss of the probed weights, in units of the layer's output squared; > 0.
        divergence_sum: `tempered_divergence` over the inputs.
        count: Inputs.
    """

    device: str
    loss: float
    divergence_sum: float
    count: int

    def __post_init__(self) -> None:
        """Refuse what no probe can have measured."""
        if not (np.isfinite(self.loss) and self.loss > 0 and 0 < self.count <= MAX_COUNT):
            raise MalformedError(
                f"probe of device {self.device!r} with loss {self.loss} over {self.count} inputs"
            )
        if not 0 <= self.divergence_sum <= MAX_DIVERGENCE * self.count:
            raise MalformedError(
                f"probe of device {self.device!r} with divergence {self.divergence_sum} over {self.count} inputs"
            )


@dataclass(frozen=True, slots=True)
class Gain:
    """Nats of divergence per unit of a layer's loss.

    Attributes:
        value: The estimate, >= 0.
        low: Lower end of a 95 % interval.
        high: Upper end; +inf where one device alone measured.
        devices: Devices that measured it.
    """

    value: float
    low: float
    high: float
    devices: int


def tempered_divergence(reference: FloatArray, probe: FloatArray, temperature: float = TEMPERATURE) -> float:
    """Return T^2 sum KL(softmax(reference / T) || softmax(probe / T)) over the rows, in nats.

    Hinton et al. 2015 (arXiv:1503.02531), section 2.1: times T^2, so that temperatures compare.

    Args:
        reference: Logits, (N, classes).
        probe: Logits of the same inputs, likewise.
        temperature: T > 0.

    Raises:
        MalformedError: If shapes differ or a logit is not finite.
    """
    if reference.shape != probe.shape or not (np.isfinite(reference).all() and np.isfinite(probe).all()):
        raise MalformedError(f"logits {reference.shape} and {probe.shape} must be finite and of one shape")
    log_p, log_q = (_log_softmax(np.asarray(z, np.float64) / temperature) for z in (reference, probe))
    return max(float(temperature**2 * np.sum(np.exp(log_p) * (log_p - log_q))), 0.0)


def estimate_gain(probes: Sequence[ProbeResult], liar_share: float = LIAR_SHARE) -> Gain:
    """Return the gain that a layer's probes tell, robust against a share of liars.

    A device's own estimate is its divergence over its loss, summed over its probes. The interval is that of a median
    of the buckets' means, from their median absolute deviation.

    Args:
        probes: Of one layer, at least one.
        liar_share: Part of the devices that may send anything, 0 to below 0.5.
    """
    if not probes or not 0 <= liar_share < 0.5:
        raise ConfigurationError(
            f"a gain needs probes and a share of liars below 0.5, got {len(probes)}, {liar_share}"
        )
    sums: dict[str, tuple[float, float]] = {}
    for probe in probes:
        divergence, loss = sums.get(probe.device, (0.0, 0.0))
        sums[probe.device] = divergence + probe.divergence_sum, loss + probe.loss * probe.count
    means = _bucket_means([sums[name] for name in sorted(sums, key=_shuffled)], liar_share)
    value = float(np.median(means))
    if len(means) == 1:
        return Gain(value, 0.0, float("inf"), len(sums))
    spread = _MAD_TO_STD * float(np.median(np.abs(means - value)))
    margin = _NORMAL_QUANTILE * _MEDIAN_INEFFICIENCY * spread / len(means) ** 0.5
    return Gain(value, max(value - margin, 0.0), value + margin, len(sums))


def usable_gains(gains: Mapping[str, Gain], layers: Sequence[str]) -> dict[str, float]:
    """Return a positive gain for every layer: the estimate, or a stand-in where there is none.

    A layer that nobody probed gets the largest gain of all, so that it is kept precise; a gain of zero becomes a
    thousandth of the median, so that bits are not taken from it without end.

    Args:
        gains: By layer.
        layers: Every layer to allocate.
    """
    known = [gain.value for gain in gains.values()]
    if not known or max(known) <= 0:
        return dict.fromkeys(layers, 1.0)
    floor = 1e-3 * float(np.median([value for value in known if value > 0]))
    return {name: max(gains[name].value, floor) if name in gains else max(known) for name in layers}


def corrected_gains(
    gains: Mapping[str, float], losses: Mapping[str, float], measured: float, weight: float = 1.0
) -> dict[str, float]:
    """Return gains under which the losses of a model predict the divergence that was measured.

    Of all such gains these are, to first order, the nearest in logarithms: layer l moves by g_l *= exp(t share_l), with
    share_l its part of the prediction; so layers that could not have caused the error keep theirs.

    Args:
        gains: By layer, > 0.
        losses: By layer, of the model that was measured.
        measured: Its mean KL to the reference, in nats.
        weight: How far to go, 0 to 1, for a measurement of few inputs.

    Raises:
        MalformedError: If the measurement is not finite or negative.
    """
    if not (np.isfinite(measured) and measured >= 0):
        raise MalformedError(f"a model's divergence of {measured} nats")
    parts = np.array([gains[name] * losses[name] for name in gains])
    predicted = float(parts.sum())
    if predicted <= 0 or measured <= 0:
        return dict(gains)
    shares = parts / predicted
    limit = np.log(_LARGEST_CORRECTION) / float(shares.max())
    low, high = -limit, limit
    for _ in range(60):
        middle = (low + high) / 2
        is_below = float((parts * np.exp(middle * shares)).sum()) < measured
        low, high = (middle, high) if is_below else (low, middle)
    factors = np.exp(weight * (low + high) / 2 * shares)
    return {name: gains[name] * float(factor) for name, factor in zip(gains, factors, strict=True)}


def _bucket_means(
    sums: Sequence[tuple[float, float]], liar_share: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the mean gain of each bucket: more than twice as many as there may be liars, and at most one a device."""
    buckets = min(len(sums), 2 * int(np.ceil(liar_share * len(sums))) + 1)
    return np.array([_ratio(sums[i::buckets]) for i in range(buckets)])


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float64)


def _ratio(sums: Sequence[tuple[float, float]]) -> float:
    divergence, loss = np.sum(np.array(sums), axis=0)
    return float(divergence / loss)


def _shuffled(device: str) -> bytes:
    return hashlib.sha256(device.encode()).digest()
