"""What the field does to the inputs of a fleet: drifts with physical units, typed as NAME=SEVERITY.

`DRIFT_KINDS` is the whole list; `docs/scenarios.md` shows it. A drift acts on raw rows, before the model's
own normalisation, on what devices hold and on the test rows alike.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quantization.arrays import FloatArray
from quantization.errors import ConfigurationError
from simulation import effects
from simulation.effects import EffectFunction, saturated

Domain = Literal["image", "sensor", "audio", "generic"]
"""Kind of raw rows; see `simulation.tasks.task.TaskData`."""

_MOST_CHANNELS = 4096


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that the field does.

    Attributes:
        name: As in `DRIFT_KINDS`.
        severity: In the unit of that kind; a tuple where several numbers were given.
    """

    name: str
    severity: float | tuple[float, ...]

    @property
    def severities(self) -> tuple[float, ...]:
        """The severity as a tuple, of one number at least."""
        return self.severity if isinstance(self.severity, tuple) else (self.severity,)


@dataclass(frozen=True, slots=True)
class DriftKind:
    """A drift as it acts in some domains.

    Attributes:
        name: What is typed before the equals sign.
        domains: Where it acts this way.
        unit: Meaning and unit of the severity, in words.
        example: A severity as typed.
        lowest: Least severity.
        highest: Greatest severity.
        counts: How many numbers a severity may have, from least to most.
        is_whole: Severities are whole numbers.
        is_odd: Severities are odd numbers.
        effect: What happens to the rows.
    """

    name: str
    domains: tuple[Domain, ...]
    unit: str
    example: str
    effect: EffectFunction
    lowest: float
    highest: float
    counts: tuple[int, int] = (1, 1)
    is_whole: bool = False
    is_odd: bool = False

    def why_refused(self, severities: tuple[float, ...]) -> str | None:
        """Return what is wrong with a severity, as the end of a sentence; None if nothing is."""
        least, most = self.counts
        if not least <= len(severities) <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            return f"has {len(severities)} numbers; give {wanted}, such as {self.name}={self.example}"
        for value in severities:
            if not (math.isfinite(value) and self.lowest <= value <= self.highest):
                return f"has {value:g}; give {self.unit}, from {self.lowest:g} to {self.highest:g}"
            if (self.is_whole and value != int(value)) or (self.is_odd and value % 2 != 1):
                kind = "an odd" if self.is_odd else "a whole"
                return f"has {value:g}; give {kind} number, such as {self.name}={self.example}"
        return None


def _image(effect: EffectFunction) -> EffectFunction:
    return saturated(effect, 0.0, 1.0)


def _wave(effect: EffectFunction) -> EffectFunction:
    return saturated(effect, -1.0, 1.0)


DRIFT_KINDS: tuple[DriftKind, ...] = (
    DriftKind(
        "gain", ("image",), "factor on the light, saturating at white", "1.8", _image(effects.gain), 0, 100
    ),
    DriftKind("brightness", ("image",), "added to pixels of 0..1", "0.35", _image(effects.offset), -1, 1),
    DriftKind(
        "contrast",
        ("image",),
        "factor on the distance from mid-grey",
        "0.3",
        _image(effects.contrast),
        0,
        100,
    ),
    DriftKind(
        "blur",
        ("image",),
        "width of a box filter in pixels, odd",
        "3",
        _image(effects.blur),
        1,
        101,
        is_odd=True,
    ),
    DriftKind(
        "noise", ("image",), "standard deviation, in pixels of 0..1", "0.1", _image(effects.noise), 0, 10
    ),
    DriftKind("sensor-gain", ("sensor",), "factor on all channels", "1.5", effects.gain, 0, 100),
    DriftKind(
        "acc-offset",
        ("sensor",),
        "g, added to accelerometer x,y,z",
        "0.3,0.2,-0.2",
        effects.accelerometer_offset,
        -100,
        100,
        (3, 3),
    ),
    DriftKind(
        "gyro-dead",
        ("sensor",),
        "share of the gyroscope's signal lost; 1 is dead",
        "1",
        effects.gyroscope_loss,
        0,
        1,
    ),
    DriftKind(
        "rotation",
        ("sensor",),
        "degrees the phone is turned about its z axis",
        "30",
        effects.rotation,
        -180,
        180,
    ),
    DriftKind("noise", ("sensor",), "standard deviation, in g and rad/s", "0.1", effects.noise, 0, 100),
    DriftKind(
        "mic-gain", ("audio",), "dB on the microphone", "-12", _wave(effects.microphone_gain), -120, 60
    ),
    DriftKind(
        "snr",
        ("audio",),
        "dB of speech over white background noise",
        "10",
        _wave(effects.background_noise),
        -40,
        120,
    ),
    DriftKind("gain", ("generic",), "factor on the model's input", "1.5", effects.gain, -1e6, 1e6),
    DriftKind(
        "offset",
        ("generic",),
        "added to the model's input; one number, or one per channel",
        "0.3",
        effects.offset,
        -1e9,
        1e9,
        (1, _MOST_CHANNELS),
    ),
    DriftKind(
        "contrast",
        ("generic",),
        "factor on the distance from the row's own mean",
        "0.3",
        effects.contrast_around_mean,
        0,
        1e6,
    ),
    DriftKind(
        "blur",
        ("generic",),
        "width of a box filter over the last two axes of images, odd",
        "3",
        effects.blur,
        1,
        101,
        is_odd=True,
    ),
    DriftKind(
        "noise",
        ("generic",),
        "standard deviation, in units of the model's input",
        "0.1",
        effects.noise,
        0,
        1e9,
    ),
    DriftKind(
        "dead-channels",
        ("image", "sensor", "generic"),
        "numbers of the channels that read zero, from 0",
        "3,4,5",
        effects.dead_channels,
        0,
        _MOST_CHANNELS - 1,
        (1, _MOST_CHANNELS),
        is_whole=True,
    ),
)
"""Every drift there is; the same name may mean another unit in another domain."""


def parse_drifts(specifications: Sequence[str]) -> tuple[Drift, ...]:
    """Return drifts as typed: "contrast=0.3", "acc-offset=0.3,0.2,-0.2".

    Raises:
        ConfigurationError: If a name is unknown or given twice, or a severity is no number, not finite or out of
            range.
    """
    drifts = tuple(_parse_drift(text) for text in specifications)
    names = [drift.name for drift in drifts]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"drift {name!r} is given {names.count(name)} times; give it once")
    return drifts


def _parse_drift(text: str) -> Drift:
    name, _, typed = (part.strip() for part in text.partition("="))
    kinds = [kind for kind in DRIFT_KINDS if kind.name == name]
    if not kinds:
        raise ConfigurationError(f"unknown drift {name!r}; {_suggestion(name)}{known_drifts()}")
    if not typed:
        raise ConfigurationError(
            f"drift {text!r} has no severity; give {name}={kinds[0].example}, {kinds[0].unit}"
        )
    try:
        severities = tuple(float(part) for part in typed.split(","))
    except ValueError as error:
        raise ConfigurationError(
            f"drift {text!r}: {typed!r} is no number; give {kinds[0].unit}, such as {name}={kinds[0].example}"
        ) from error
    refusals = [kind.why_refused(severities) for kind in kinds]
    if all(refusals):
        raise ConfigurationError(f"drift {text!r} {refusals[0]}")
    return Drift(name, severities[0] if len(severities) == 1 else severities)


def known_drifts(domain: Domain | None = None) -> str:
    """Return the names with their units, in words: of one domain, or of all."""
    kinds = [kind for kind in DRIFT_KINDS if domain is None or domain in kind.domains]
    listed = "; ".join(
        f"{kind.name} ({kind.unit}{'' if domain else ': ' + ', '.join(kind.domains)})" for kind in kinds
    )
    return f"known: {listed}"


def require_drifts(drifts: Sequence[Drift], domain: Domain) -> None:
    """Refuse drifts that rows of a domain cannot have.

    Raises:
        ConfigurationError: Lists the drifts of the domain, with units.
    """
    for drift in drifts:
        _kind_of(drift, domain)


def apply_drifts(
    raw: FloatArray, drifts: Sequence[Drift], domain: Domain, rng: np.random.Generator
) -> FloatArray:
    """Return what the field makes of raw rows: each drift in turn, float32, of the same shape.

    Args:
        raw: Rows in the units of the domain; not changed.
        drifts: In the order in which they happen.
        domain: What the rows are.
        rng: Source of noise; the same state gives the same noise.

    Raises:
        ConfigurationError: If a drift is not one of the domain, or does not fit the shape of the rows.
    """
    rows: FloatArray = np.asarray(raw, np.float32)
    for drift in drifts:
        rows = _kind_of(drift, domain).effect(rows, drift.severities, rng)
    return rows


def _kind_of(drift: Drift, domain: Domain) -> DriftKind:
    for kind in DRIFT_KINDS:
        if kind.name == drift.name and domain in kind.domains:
            refusal = kind.why_refused(drift.severities)
            if refusal is not None:
                raise ConfigurationError(f"drift {drift.name!r} {refusal}")
            return kind
    raise ConfigurationError(f"drift {drift.name!r} is not for {domain} data; {known_drifts(domain)}")


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name.replace("_", "-").lower(), [kind.name for kind in DRIFT_KINDS], n=1)
    return f"did you mean {near[0]!r}? " if near else ""
