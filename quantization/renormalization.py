"""Channel corrections: restoring the lab's channel moments in the field.

A field differs from the lab mostly in shifted means and spreads of channels. Restoring them layer by layer is adaptive
batch normalization (Li et al. 2016, arXiv:1603.04779; Nado et al. 2020, arXiv:2006.10963) with a fleet's merged
moments in the place of one batch's, and with three rules that keep it from doing harm:

1. No correction without drift. Chance is measured between devices, because values of one device are not independent
   and devices see different classes: a fleet is drifted when some layer's shift is both significant and large enough to
   matter.
2. Corrections shrink toward the lab by what chance explains, layer by layer (positive-part James and Stein 1961).
3. Gains are bounded: a channel that went silent is not amplified into noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import FloatArray
from quantization.errors import ConfigurationError
from quantization.moments import ChannelMoments, ChannelReference

MAX_GAIN = 4.0
"""Bound of a channel's gain and of its inverse. A channel whose input went silent holds no signal to amplify; a uniform
change of gain beyond the bound is restored by the layers behind, each as far."""

SIGNIFICANT_BITS = 13
"""Of the scales and biases of a corrected layer, the leading one included."""


@dataclass(frozen=True, slots=True, eq=False)
class ChannelCorrection:
    """An affine change of a layer's output, z' = gain * z + offset, per channel.

    It folds into the per-channel weight scale and the float bias, so the integer codes never change.

    Attributes:
        gain: Shape (C,), float64, > 0.
        offset: Shape (C,), float64, in the layer's units.
    """

    gain: FloatArray
    offset: FloatArray

    def __post_init__(self) -> None:
        """Refuse shapes that differ, values that are not finite, and gains that are not positive."""
        if self.gain.ndim != 1 or self.gain.shape != self.offset.shape:
            raise ConfigurationError(
                f"gain {self.gain.shape} and offset {self.offset.shape} must both be (C,)"
            )
        if not (np.isfinite(self.gain).all() and np.isfinite(self.offset).all() and (self.gain > 0).all()):
            raise ConfigurationError("a channel correction must be finite, with positive gains")

    @classmethod
    def identity(cls, channels: int) -> "ChannelCorrection":
        """Return the correction that changes nothing."""
        return cls(np.ones(channels), np.zeros(channels))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ChannelCorrection)
            and np.array_equal(self.gain, other.gain)
            and np.array_equal(self.offset, other.offset)
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """How far one layer's field moments lie from the lab's.

    Attributes:
        shift: Root mean square over channels of the mean's shift, in lab standard deviations.
        log_spread: Root mean square over channels of log(field std / lab std).
        significance: Root mean square over channels of shift / standard error, devices being the units; about 1
            where there is no drift.
    """

    shift: float
    log_spread: float
    significance: float

    @property
    def size(self) -> float:
        """The larger of shift and log_spread."""
        return max(self.shift, self.log_spread)


@dataclass(frozen=True, slots=True)
class DriftRule:
    """When corrections are made, and how far they may go.

    Attributes:
        min_significance: Least significance of a layer that counts as drifted. Chance gives about 1.
        min_size: Least shift or log-spread of a layer that counts as drifted, in lab standard deviations.
        max_gain: Bound of a channel's gain, and of its inverse.
        prior_std: Spread of devices' means that is assumed, with the weight of one device, when there are few of them;
            in lab standard deviations.
    """

    min_significance: float = 3.0
    min_size: float = 0.1
    max_gain: float = MAX_GAIN
    prior_std: float = 0.25


@dataclass(frozen=True, slots=True)
class DriftDecision:
    """What the moments of one calibration round ask for.

    Attributes:
        is_drifted: Whether the field's moments differ from the lab's by more than chance and more than a trifle.
        corrections: By layer; the current ones where the drift does not justify new ones.
        drift: By layer, of the model as devices run it now.
    """

    is_drifted: bool
    corrections: Mapping[str, ChannelCorrection]
    drift: Mapping[str, LayerDrift]


def layer_drift(moments: ChannelMoments, rule: DriftRule | None = None) -> LayerDrift:
    """Return how far a layer's moments lie from its reference; zero where no value was seen."""
    if moments.count == 0:
        return LayerDrift(0.0, 0.0, 0.0)
    error = _standard_error(moments, rule or DriftRule())
    return LayerDrift(_rms(moments.mean()), _rms(_log_spread(moments)), _rms(moments.mean() / error))


def decide(
    plain: Mapping[str, ChannelMoments],
    sequential: Mapping[str, ChannelMoments],
    references: Mapping[str, ChannelReference],
    current: Mapping[str, ChannelCorrection],
    rule: DriftRule | None = None,
) -> DriftDecision:
    """Return the corrections that restore the reference, if the drift justifies any.

    Args:
        plain: By layer: moments of the model as devices run it now, its corrections included.
        sequential: By layer: moments before correction, where every layer before it was restored to the reference.
        references: By layer: the lab's moments, which both are relative to.
        current: The corrections that devices run now.
        rule: Thresholds and bounds.
    """
    rule = rule or DriftRule()
    drift = {layer: layer_drift(moments, rule) for layer, moments in plain.items()}
    is_drifted = any(
        d.significance >= rule.min_significance and d.size >= rule.min_size for d in drift.values()
    )
    seen = {layer: moments for layer, moments in sequential.items() if moments.count > 0}
    if not is_drifted or not seen:
        return DriftDecision(is_drifted, dict(current), drift)
    corrections = {layer: restore(moments, references[layer], rule) for layer, moments in seen.items()}
    return DriftDecision(is_drifted, {**current, **corrections}, drift)


def restore(
    moments: ChannelMoments, reference: ChannelReference, rule: DriftRule | None = None
) -> ChannelCorrection:
    """Return the correction that gives a layer with these moments the reference's, as far as they can be trusted.

    With field mean m and std s, reference mean M and std S: z' = (S / s) (z - m) + M, m and s shrunk toward M and S.

    Args:
        moments: Of the layer before correction; at least one value.
        reference: The lab's moments.
        rule: Bounds.
    """
    rule = rule or DriftRule()
    error = _standard_error(moments, rule)
    shift, log_spread = moments.mean(), _log_spread(moments)
    # A mean known to e standard deviations is worth 1 / e^2 independent values; they give log(std) to e / sqrt(2).
    shift = shift * _shrinkage(shift, error)
    log_spread = log_spread * _shrinkage(log_spread, error / np.sqrt(2.0))
    limit = np.log(rule.max_gain)
    gain = 1.0 / np.exp(np.clip(log_spread, -limit, limit))
    return ChannelCorrection(gain, reference.mean - gain * (reference.mean + reference.std * shift))


def shortened(values: FloatArray) -> NDArray[np.float32]:
    """Return the values with `SIGNIFICANT_BITS` significant bits, ties to even: within 0.012 % of what they were.

    That is far below what moments can tell of a channel, and a float that says no more than it knows takes half as much
    to send.
    """
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    whole = np.rint(np.ldexp(mantissa, SIGNIFICANT_BITS))
    return np.asarray(np.ldexp(whole, exponent - SIGNIFICANT_BITS), np.float32)


def _standard_error(moments: ChannelMoments, rule: DriftRule) -> FloatArray:
    """Return the standard error of each channel's mean, drawn toward the prior where devices are few."""
    devices = max(moments.devices, 1)
    observed = moments.standard_error() ** 2 * devices if devices > 1 else np.zeros_like(moments.mean())
    between = ((devices - 1) * observed + rule.prior_std**2) / devices
    return np.asarray(np.sqrt(between / devices), np.float64)


def _shrinkage(estimate: FloatArray, error: FloatArray) -> float:
    """Return the factor, 0 to 1, that is left of an estimate whose size chance explains in part."""
    size = float(np.mean(np.square(estimate)))
    return max(0.0, 1.0 - float(np.mean(np.square(error))) / size) if size > 0 else 0.0


def _log_spread(moments: ChannelMoments) -> FloatArray:
    return np.asarray(0.5 * np.log(np.maximum(moments.variance(), 1e-12)), np.float64)


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
