"""What drifts do to raw rows, as functions: rows, severities and a source of randomness in, new rows out.

No function changes its input; all return float32. Image rows stay in 0..1, as a camera saturates, and waves
in -1..1, as a converter clips.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import AnyArray, FloatArray
from quantization.errors import ConfigurationError

Severities = tuple[float, ...]
EffectFunction = Callable[[FloatArray, Severities, np.random.Generator], FloatArray]

MID_GREY = 0.5
"""Contrast of an image acts around this value."""


def _float32(x: AnyArray) -> NDArray[np.float32]:
    return np.asarray(x, np.float32)


def saturated(effect: EffectFunction, low: float, high: float) -> EffectFunction:
    """Return the effect as a sensor with a limited range records it: values clipped to [low, high]."""

    def clipped(x: FloatArray, severities: Severities, rng: np.random.Generator) -> FloatArray:
        return _float32(np.clip(effect(x, severities, rng), low, high))

    return clipped


def gain(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return the rows times a factor."""
    return _float32(x * np.float32(severities[0]))


def offset(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return the rows plus a constant; plus one per channel (axis 1) if there are several."""
    if len(severities) == 1:
        return _float32(x + np.float32(severities[0]))
    return _float32(x + _per_channel(x, severities))


def contrast(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return images whose distance from mid-grey is scaled by a factor."""
    grey = np.float32(MID_GREY)
    return _float32((x - grey) * np.float32(severities[0]) + grey)


def contrast_around_mean(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return rows whose distance from their own mean is scaled by a factor."""
    mean = x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)
    return _float32((x - mean) * np.float32(severities[0]) + mean)


def blur(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return images (N, C, H, W) behind a square box filter; borders are mirrored.

    Args:
        x: Images, each side longer than half the filter.
        severities: Width of the filter in pixels, odd.
    """
    width = int(severities[0])
    if x.ndim != 4 or min(x.shape[2:]) <= width // 2:
        raise ConfigurationError(
            f"drift blur={width} needs images (N, C, H, W) of more than {width // 2} pixels a side, "
            f"and these rows have shape {x.shape[1:]}; give a smaller width"
        )
    return _box(_box(_float32(x), width, axis=2), width, axis=3)


def _box(x: AnyArray, width: int, axis: int) -> AnyArray:
    """Return the running mean along one axis, as long as it was."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (width // 2, width // 2)
    padded = np.moveaxis(np.pad(x, pads, mode="reflect"), axis, 0)
    length = x.shape[axis]
    total = np.zeros((length, *padded.shape[1:]), np.float32)
    for start in range(width):
        total += padded[start : start + length]
    return np.moveaxis(total / np.float32(width), 0, axis)


def noise(x: FloatArray, severities: Severities, rng: np.random.Generator) -> FloatArray:
    """Return the rows plus white Gaussian noise of a standard deviation."""
    return _float32(x + np.float32(severities[0]) * rng.standard_normal(x.shape, np.float32))


def dead_channels(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return the rows with some channels (axis 1) at zero.

    Args:
        x: Rows (N, C, ...).
        severities: Numbers of the channels, from 0.
    """
    channels = [int(number) for number in severities]
    count = x.shape[1] if x.ndim > 1 else 0
    if max(channels) >= count:
        raise ConfigurationError(
            f"drift dead-channels names channel {max(channels)}, and there are {count}; "
            f"give numbers from 0 to {count - 1}"
        )
    changed = np.array(x, np.float32)
    changed[:, channels] = 0.0
    return changed


def accelerometer_offset(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return windows (N, 6, T) whose accelerometer (channels 0 to 2) reads too much, by axis, in g."""
    return _float32(x + _per_channel(x, (*severities, 0.0, 0.0, 0.0)))


def gyroscope_loss(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return windows (N, 6, T) whose gyroscope (channels 3 to 5) has lost a share of its signal."""
    factor = 1.0 - severities[0]
    return _float32(x * _per_channel(x, (1.0, 1.0, 1.0, factor, factor, factor)))


def rotation(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return windows (N, 6, T) of a phone turned about its z axis: both sensors turn with it.

    Args:
        x: Accelerometer x, y, z and gyroscope x, y, z.
        severities: Angle in degrees, from x towards y.
    """
    angle = np.deg2rad(severities[0])
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], np.float32)
    sensors = x.reshape(len(x), 2, 3, x.shape[2])
    return _float32((turn @ sensors).reshape(x.shape))


def microphone_gain(x: FloatArray, severities: Severities, _rng: np.random.Generator) -> FloatArray:
    """Return waves louder by some decibels; quieter if negative."""
    return _float32(x * np.float32(10.0 ** (severities[0] / 20.0)))


def background_noise(x: FloatArray, severities: Severities, rng: np.random.Generator) -> FloatArray:
    """Return waves (N, T) in white noise, at a ratio of signal to noise power in decibels.

    The power of a clip is its mean square where it is not padded with zeros; a silent clip stays silent.
    """
    recorded = np.maximum(np.count_nonzero(x, axis=1, keepdims=True), 1)
    power = np.sum(np.square(x, dtype=np.float64), axis=1, keepdims=True) / recorded
    sigma = np.sqrt(power / 10.0 ** (severities[0] / 10.0))
    return _float32(x + _float32(sigma) * rng.standard_normal(x.shape, np.float32))


def _per_channel(x: FloatArray, values: Severities) -> FloatArray:
    """Return one value per channel (axis 1) of the rows, to add or multiply."""
    count = x.shape[1] if x.ndim > 1 else 0
    if len(values) != count:
        raise ConfigurationError(
            f"a drift gives {len(values)} values, and these rows have {count} channels; give one each"
        )
    return np.asarray(values, np.float32).reshape(1, -1, *[1] * (x.ndim - 2))
