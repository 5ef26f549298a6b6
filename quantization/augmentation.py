"""Augmentations of model inputs, which widen a small sample on the device that holds it.

The rules:

1. Typed as drifts are: "flip", or "name=severity" such as "noise=0.05".
2. They act on model inputs, float32 (N, ...), and keep shape and type. Severities are relative to the input's
   own spread (its standard deviation) or in degrees: a device does not know the units of what it measures.
3. What happens to an input follows from the seed, the augmentation and the input's own bytes: not from its
   place, nor from what else the device holds.
4. An augmentation that an input's shape does not allow is refused where the shape is known before a round
   begins, and left out on the device.

Random numbers are those of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195), a few lines of integer
arithmetic: NumPy's own generators cost a device 7 MB to import.
"""

import difflib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import FloatArray
from quantization.errors import ConfigurationError

Shape = tuple[int | None, ...]
"""Length of the axes of one input, without the batch axis; None where unknown."""

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1
_SENSOR_CHANNELS = 6


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One way of making another input of an input.

    Attributes:
        name: One of `AUGMENTATION_KINDS`.
        severity: How much, in the unit of that kind; 0 where it has none.
    """

    name: str
    severity: float = 0.0

    def __post_init__(self) -> None:
        """Refuse names and severities that there are not."""
        kind = AUGMENTATION_KINDS.get(self.name)
        if kind is None:
            near = difflib.get_close_matches(self.name, AUGMENTATION_KINDS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(f"unknown augmentation {self.name!r:.80}; {hint}{known_augmentations()}")
        is_plain = kind.highest == 0.0
        if is_plain and self.severity != 0.0:
            raise ConfigurationError(f"augmentation {self.name!r} takes no severity; give {kind.example!r}")
        if not is_plain and not 0.0 < self.severity <= kind.highest:  # NaN compares false
            raise ConfigurationError(
                f"augmentation {self.name!r} has severity {self.severity:g}; give {kind.unit}, above 0 to"
                f" {kind.highest:g}, such as {kind.example!r}"
            )

    def __str__(self) -> str:
        return f"{self.name}={self.severity!r}" if self.severity else self.name

    def fits(self, shape: Shape) -> bool:
        """Return whether inputs of this shape can be augmented so; an unknown length may fit."""
        return AUGMENTATION_KINDS[self.name].fits(shape)


def parse_augmentations(texts: Sequence[str]) -> tuple[Augmentation, ...]:
    """Return augmentations as typed: "flip", "rotation=10".

    Raises:
        ConfigurationError: If a name is unknown or given twice, or a severity is missing, no number or out of range.
    """
    found = tuple(_parse(text) for text in texts)
    names = [augmentation.name for augmentation in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(f"augmentation {twice!r} is given {names.count(twice)} times; give it once")
    return found


def require_augmentations(augmentations: Sequence[Augmentation], shape: Shape) -> None:
    """Refuse augmentations that inputs of this shape cannot have.

    Raises:
        ConfigurationError: Names the shape that the augmentation needs.
    """
    for augmentation in augmentations:
        if not augmentation.fits(shape):
            kind = AUGMENTATION_KINDS[augmentation.name]
            sizes = ", ".join("n" if size is None else str(size) for size in shape)
            raise ConfigurationError(
                f"augmentation {augmentation.name!r} is for {kind.shapes}, the model takes ({sizes}); leave it out"
            )


def known_augmentations() -> str:
    """Return the names with their units, in words."""
    kinds = (f"{kind.example} ({kind.unit}; {kind.shapes})" for kind in AUGMENTATION_KINDS.values())
    return f"known: {'; '.join(kinds)}"


def augmented(augmentation: Augmentation, inputs: FloatArray, seed: int) -> FloatArray:
    """Return one augmented copy of each input, float32 of the same shape; the same call gives the same copies.

    Args:
        augmentation: One that fits the inputs.
        inputs: Shape (N, ...), float32, finite; not changed. N may be 0. Values that the augmentation takes beyond
            float32 stay as they are.
        seed: Of the random numbers, 0 or more.
    """
    copies = np.empty_like(inputs, np.float32)
    effect = AUGMENTATION_KINDS[augmentation.name].effect
    with np.errstate(over="ignore", invalid="ignore"):
        for place, row in enumerate(inputs):
            copies[place] = effect(row, augmentation.severity, _Draws(row, augmentation.name, seed))
    is_finite = np.isfinite(copies)
    return copies if is_finite.all() else np.where(is_finite, copies, inputs)


def _parse(text: str) -> Augmentation:
    name, equals, typed = (part.strip() for part in text.partition("="))
    if not equals:
        if name in AUGMENTATION_KINDS and AUGMENTATION_KINDS[name].highest > 0.0:
            kind = AUGMENTATION_KINDS[name]
            raise ConfigurationError(
                f"augmentation {name!r} has no severity; give {kind.example!r}, {kind.unit}"
            )
        return Augmentation(name)
    try:
        severity = float(typed)
    except ValueError as error:
        raise ConfigurationError(
            f"augmentation {text!r:.80}: {typed!r:.40} is no number; {known_augmentations()}"
        ) from error
    if severity == 0.0:
        severity = math.nan  # "flip=0" and "noise=0" are refused like any other severity that there is not
    return Augmentation(name, severity)


class _Draws:
    """The random numbers of one input under one augmentation."""

    def __init__(self, row: FloatArray, name: str, seed: int) -> None:
        content = zlib.crc32(np.ascontiguousarray(row, "<f4").tobytes())
        key = zlib.crc32(f"{name} {seed}".encode())
        self._state = np.array([(content << 32 | key) & _WORD], np.uint64)

    def uniform(self, count: int) -> FloatArray:
        """Return the next numbers in [0, 1), float64 (count,)."""
        counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        mixed = _mixed(_mixed(self._state) + counter)
        self._state = self._state + np.uint64(count)
        return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    def signed(self, reach: float) -> float:
        """Return the next number in [-reach, reach)."""
        return float(reach * (2.0 * self.uniform(1)[0] - 1.0))

    def normal(self, count: int) -> FloatArray:
        """Return normally distributed numbers, float64 (count,), by the method of Box and Muller."""
        half = -(-count // 2)
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(half)))
        angle = 2.0 * math.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's output function of each state."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _spread(row: FloatArray) -> float:
    return float(np.std(row, dtype=np.float64))


def _flip(row: FloatArray, _severity: float, _draws: _Draws) -> FloatArray:
    """Mirror an image left to right."""
    return row[..., ::-1]


def _brightness(row: FloatArray, severity: float, draws: _Draws) -> FloatArray:
    """Shift all values by one number, at most `severity` standard deviations of the input either way."""
    return np.asarray(row + np.float32(draws.signed(severity) * _spread(row)))


def _noise(row: FloatArray, severity: float, draws: _Draws) -> FloatArray:
    """Add white noise of `severity` standard deviations of the input."""
    return np.asarray(row + draws.normal(row.size).reshape(row.shape) * (severity * _spread(row)))


def _rotation(row: FloatArray, severity: float, draws: _Draws) -> FloatArray:
    angle = math.radians(draws.signed(severity))
    return _turn_image(row, angle) if row.ndim == 3 else _turn_sensors(row, angle, draws)


def _turn_image(row: FloatArray, angle: float) -> FloatArray:
    """Turn an image (C, H, W) about its centre, bilinear; what comes in over an edge repeats it."""
    height, width = row.shape[1:]
    y, x = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    cos, sin = math.cos(angle), math.sin(angle)
    from_y = np.clip(cos * y - sin * x + (height - 1) / 2, 0, height - 1)
    from_x = np.clip(sin * y + cos * x + (width - 1) / 2, 0, width - 1)
    top, left = np.floor(from_y).astype(np.intp), np.floor(from_x).astype(np.intp)
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    part_y, part_x = from_y - top, from_x - left
    upper = row[:, top, left] * (1 - part_x) + row[:, top, right] * part_x
    lower = row[:, below, left] * (1 - part_x) + row[:, below, right] * part_x
    return np.asarray(upper * (1 - part_y) + lower * part_y)


def _turn_sensors(row: FloatArray, angle: float, draws: _Draws) -> FloatArray:
    """Turn accelerometer and gyroscope, (6, T), about one random axis (Rodrigues' formula)."""
    axis = draws.normal(3)
    x, y, z = axis / max(float(np.linalg.norm(axis)), 1e-12)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross
    return np.asarray((turn @ row.reshape(2, 3, -1)).reshape(row.shape))


def _shift(row: FloatArray, severity: float, draws: _Draws) -> FloatArray:
    """Move an image (C, H, W) or a window (C, T) along its axes; what comes in over an edge repeats it."""
    for axis in range(1, row.ndim):
        length = row.shape[axis]
        most = round(severity * length)
        by = min(int(draws.uniform(1)[0] * (2 * most + 1)) - most, length)
        row = np.take(row, np.clip(np.arange(length) - by, 0, length - 1), axis)
    return row


def _is_image(shape: Shape) -> bool:
    return len(shape) == 3


def _is_image_or_sensors(shape: Shape) -> bool:
    return _is_image(shape) or (len(shape) == 2 and shape[0] in (_SENSOR_CHANNELS, None))


def _has_places(shape: Shape) -> bool:
    return len(shape) in (2, 3)


def _is_any(shape: Shape) -> bool:
    return len(shape) >= 1


@dataclass(frozen=True, slots=True)
class AugmentationKind:
    """An augmentation as it is typed and done.

    Attributes:
        example: As typed.
        unit: Meaning and unit of the severity, in words.
        shapes: Inputs that it is for, in words.
        highest: Greatest severity; 0 where there is none to give.
        fits: Whether inputs of a shape can have it.
        effect: One input, the severity and the input's random numbers to the copy.
    """

    example: str
    unit: str
    shapes: str
    highest: float
    fits: Callable[[Shape], bool]
    effect: Callable[[FloatArray, float, _Draws], FloatArray]


AUGMENTATION_KINDS: MappingProxyType[str, AugmentationKind] = MappingProxyType(
    {
        "flip": AugmentationKind("flip", "left and right", "images (C, H, W)", 0.0, _is_image, _flip),
        "brightness": AugmentationKind(
            "brightness=0.1",
            "largest shift, in standard deviations of the input",
            "any input",
            10.0,
            _is_any,
            _brightness,
        ),
        "rotation": AugmentationKind(
            "rotation=10",
            "largest angle, in degrees",
            "images (C, H, W), or accelerometer and gyroscope (6, T)",
            180.0,
            _is_image_or_sensors,
            _rotation,
        ),
        "shift": AugmentationKind(
            "shift=0.125",
            "farthest, as part of each axis",
            "images (C, H, W) or windows (C, T)",
            0.5,
            _has_places,
            _shift,
        ),
        "noise": AugmentationKind(
            "noise=0.05",
            "standard deviation, as part of the input's own",
            "any input",
            10.0,
            _is_any,
            _noise,
        ),
    }
)
"""Every augmentation there is, by name."""


def fitting(augmentations: Sequence[Augmentation], shape: Shape) -> Iterator[Augmentation]:
    """Yield the augmentations that inputs of this shape can have."""
    return (augmentation for augmentation in augmentations if augmentation.fits(shape))
