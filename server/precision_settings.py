"""What is asked of a model's precision: a budget, and how much work may go into meeting it.

As options, in a table of a scenario, and in a run's configuration, settings have the same names:

    size-ratio = 10.0          fp32 bytes of the weights over their bytes as stored
    max-drop = 0.5             points of accuracy that may be lost; the smallest model within them
    weight-bits = 4            every layer alike, to compare with
    latency-budget = 2.5       milliseconds per inference
    rounding-rounds = 1        rounds with devices in which weights are rounded, group by group of layers
    learned-rounding = 0       rounds in which devices learn which way each weight is rounded
    train-rounds = 0           rounds in which devices train the rounded weights
    float-layer = ["head=fp16", "auto"]

The first three exclude each other. `float-layer` names layers that stay float; "auto" lets the allocator choose
more of them.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from quantization.errors import ConfigurationError

FLOAT_TYPES: Final = ("fp16", "bf16")
"""What a layer that stays float may be stored as."""

AUTO: Final = "auto"
"""Stands for a layer's name where the allocator may choose."""

MAX_SIZE_RATIO, MAX_ROUNDS, MAX_LATENCY_SECONDS = 100.0, 1000, 3600.0
_GOALS = ("size-ratio", "max-drop", "weight-bits")
_REMEDY = "give --size-ratio R, --max-drop POINTS, --weight-bits B or --latency-budget MS"


@dataclass(frozen=True, slots=True)
class PrecisionSettings:
    """What precision is to be reached, and with how much work.

    One of `size_ratio`, `max_drop` and `weight_bits` is given, or none of them and `latency_budget_seconds`.

    Attributes:
        size_ratio: fp32 bytes of the weights over their bytes as stored, codes and scales; above 1, at most 100.
        max_drop: Points of accuracy (percent) that the smallest model may lose; above 0, at most 100.
        weight_bits: Bits of every layer's codes, 2 to 8; nothing is allocated.
        rounding_rounds: Rounds with devices in which weights are rounded; 1 rounds all layers at once.
        learned_rounding: Rounds in which devices learn which way each weight is rounded; 0 for none.
        train_rounds: Rounds in which devices train the rounded weights; 0 for none.
        latency_budget_seconds: Longest inference, by the table of the device class; None for any.
        float_layers: Layers that stay float, as (name, "fp16" or "bf16").
        may_choose_float: Whether the allocator may keep more layers in float.
    """

    size_ratio: float | None = None
    max_drop: float | None = None
    weight_bits: int | None = None
    rounding_rounds: int = 1
    learned_rounding: int = 0
    train_rounds: int = 0
    latency_budget_seconds: float | None = None
    float_layers: tuple[tuple[str, str], ...] = ()
    may_choose_float: bool = False

    def __post_init__(self) -> None:
        """Refuse what no allocation can meet, whatever the model."""
        self._check_budget()
        _require_between("size-ratio", self.size_ratio, 1.0, MAX_SIZE_RATIO, "such as 10")
        _require_between("max-drop", self.max_drop, 0.0, 100.0, "points of accuracy, such as 0.5")
        _require_count("weight-bits", self.weight_bits, 2, 8)
        _require_count("rounding-rounds", self.rounding_rounds, 1, MAX_ROUNDS)
        _require_count("learned-rounding", self.learned_rounding, 0, MAX_ROUNDS)
        _require_count("train-rounds", self.train_rounds, 0, MAX_ROUNDS)
        seconds = self.latency_budget_seconds
        if seconds is not None and not 0.0 < seconds <= MAX_LATENCY_SECONDS:
            raise ConfigurationError(
                f"latency-budget is {1000 * seconds:g}; give milliseconds above 0, at most"
                f" {1000 * MAX_LATENCY_SECONDS:g}, such as 2.5"
            )
        _require_float_layers(self.float_layers)

    def _check_budget(self) -> None:
        values = (self.size_ratio, self.max_drop, self.weight_bits)
        given = [f"{name} {value}" for name, value in zip(_GOALS, values, strict=True) if value is not None]
        if len(given) > 1:
            raise ConfigurationError(f"{' and '.join(given)} are different goals; give one of them")
        if not given and self.latency_budget_seconds is None:
            raise ConfigurationError(f"precision is asked for without a goal; {_REMEDY}")
        if self.weight_bits is None:
            return
        if self.latency_budget_seconds is not None:
            raise ConfigurationError(
                f"weight-bits {self.weight_bits} leaves a latency-budget nothing to choose; give one of them"
            )
        if self.may_choose_float:
            raise ConfigurationError(
                f"weight-bits {self.weight_bits} leaves float-layer 'auto' nothing to choose; name the layers"
            )

    @property
    def trains(self) -> bool:
        """Whether devices train weights, one way or the other."""
        return bool(self.learned_rounding or self.train_rounds)

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self | None:
        """Return the settings that options describe, by their names above; None where there are none.

        Raises:
            ConfigurationError: A name is unknown, a value has the wrong type, or cannot be used.
        """
        return cls(**read_options(options)) if options else None

    @classmethod
    def from_run_config(cls, config: Mapping[str, object]) -> Self | None:
        """Return the settings in a Flower run configuration; None where no goal is set.

        A run configuration has every key: a goal of 0 is none, and `float-layer` holds words with spaces between them.

        Raises:
            ConfigurationError: A value has the wrong type, or cannot be used.
        """
        options = {name: config[name] for name in OPTIONS if name in config and config[name] not in ("", 0)}
        if not any(name in options for name in (*_GOALS, "latency-budget")):
            return None
        if isinstance(options.get("float-layer"), str):
            options["float-layer"] = str(options["float-layer"]).split()
        return cls.from_options(options)

    def to_options(self) -> dict[str, Any]:
        """Return what differs from the defaults, as `from_options` reads it."""
        plain: dict[str, Any] = {
            "size-ratio": self.size_ratio,
            "max-drop": self.max_drop,
            "weight-bits": self.weight_bits,
            "rounding-rounds": self.rounding_rounds if self.rounding_rounds != 1 else None,
            "learned-rounding": self.learned_rounding or None,
            "train-rounds": self.train_rounds or None,
        }
        if self.latency_budget_seconds is not None:
            plain["latency-budget"] = float(f"{1000 * self.latency_budget_seconds:.12g}")
        layers = [f"{name}={kind}" for name, kind in self.float_layers]
        plain["float-layer"] = (*layers, *([AUTO] if self.may_choose_float else [])) or None
        return {name: value for name, value in plain.items() if value is not None}


def read_options(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the fields of `PrecisionSettings` that options set, their types checked and their values not yet.

    Raises:
        ConfigurationError: A name is unknown, or a value has the wrong type.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _READERS:
            near = difflib.get_close_matches(name.replace("_", "-").lower(), _READERS, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_READERS)}"
            raise ConfigurationError(f"unknown setting {name!r} of precision; {known}")
        try:
            found |= _READERS[name](value)
        except TypeError as error:
            raise ConfigurationError(f"{name} must be {error}, not {value!r}") from None
    return found


def replace_options(options: Mapping[str, object], typed: Mapping[str, object]) -> dict[str, object]:
    """Return `options` with those that are typed in their place; a goal that is typed replaces other goals."""
    dropped = _GOALS if any(name in typed for name in _GOALS) else ()
    return {name: value for name, value in options.items() if name not in dropped} | dict(typed)


# Readers return fields of `PrecisionSettings`, or raise TypeError with the type in words.


def _number(field: str, unit: float = 1.0) -> Callable[[object], dict[str, Any]]:
    def read(value: object) -> dict[str, Any]:
        if type(value) not in (int, float):
            raise TypeError("a number")
        try:
            return {field: float(value) / unit}  # type: ignore[arg-type]  # int or float, see above
        except OverflowError:
            return {field: math.inf}

    return read


def _whole(field: str) -> Callable[[object], dict[str, Any]]:
    def read(value: object) -> dict[str, Any]:
        if type(value) is not int:
            raise TypeError("a whole number")
        return {field: value}

    return read


def _float_layers(value: object) -> dict[str, Any]:
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
        raise TypeError('a list of texts, such as ["head=fp16"] or ["auto"]')
    named = [entry.rpartition("=") for entry in entries if entry != AUTO]
    for _, sign, rest in named:
        if not sign:
            raise ConfigurationError(
                f"float-layer {rest!r} has no type; give {rest}=fp16, {rest}=bf16, or auto"
            )
    layers = tuple((name, kind) for name, _, kind in named)
    return {"float_layers": layers, "may_choose_float": AUTO in entries}


_READERS: Mapping[str, Callable[[object], dict[str, Any]]] = {
    "size-ratio": _number("size_ratio"),
    "max-drop": _number("max_drop"),
    "weight-bits": _whole("weight_bits"),
    "rounding-rounds": _whole("rounding_rounds"),
    "learned-rounding": _whole("learned_rounding"),
    "train-rounds": _whole("train_rounds"),
    "latency-budget": _number("latency_budget_seconds", unit=1000.0),
    "float-layer": _float_layers,
}

OPTIONS: Final = tuple(_READERS)
"""Names of all settings, as typed."""


def _require_between(name: str, value: float | None, above: float, most: float, example: str) -> None:
    if value is not None and (isinstance(value, bool) or not above < value <= most):
        raise ConfigurationError(
            f"{name} is {value!r}; give a number above {above:g}, at most {most:g}: {example}"
        )


def _require_count(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise ConfigurationError(f"{name} is {value!r}; give a whole number from {least} to {most}")


def _require_float_layers(layers: Sequence[tuple[str, str]]) -> None:
    names = [name for name, _ in layers]
    for name, kind in layers:
        if kind not in FLOAT_TYPES:
            raise ConfigurationError(
                f"float-layer '{name}={kind}' has an unknown type {kind!r}; give {' or '.join(FLOAT_TYPES)}"
            )
        if not name:
            raise ConfigurationError(f"float-layer '={kind}' names no layer; give NAME={kind}, or auto")
        if names.count(name) > 1:
            raise ConfigurationError(f"float-layer {name!r} is given {names.count(name)} times; give it once")
