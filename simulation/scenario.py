"""The settings of one simulated experiment, from the command line or a TOML file.

A file's keys are the long names of the options, without the dashes in front; an option that is typed
replaces the key of the same name:

    task = "cifar10"
    devices = 20
    device-class = ["x86-vnni", "arm"]

    [drift]
    contrast = 0.3
"""

import difflib
import math
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from quantization.calibration import method_from_name
from quantization.device_class import DeviceClass
from quantization.errors import ConfigurationError
from simulation.drift import parse_drifts

MAX_DEVICES = 1_000_000
MAX_GENERATIONS = 1_000
_MAX_FILE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated.

    Attributes:
        task: Name of a built-in task; None when `model` and `data` are given.
        model: An ONNX file of one's own.
        data: An npz file that goes with it.
        devices: Size of the fleet.
        generations: How many generations are tuned, at most.
        drifts: As typed, "contrast=0.3".
        labelled: Fraction of devices that have labels, 0 to 1.
        seed: Of splits, devices, drifts and faults.
        partition: Who holds which rows: "auto", "owner", "classes:K", "dirichlet:ALPHA", "iid".
        dropout: Fraction of devices that fail in a round, 0 to 1.
        stragglers: Fraction of devices that answer too late, 0 to 1.
        device_classes: Names of the hardware kinds in the fleet, dealt out in turn.
        range_method: As `calibration.method_from_name` reads it.
        check_pooled: Also pool all statistics inputs and compare.
        out: Folder for the report and result; None for none.
        cache_dir: Folder that keeps trained models; None for the user's cache folder.
    """

    task: str | None = "digits"
    model: Path | None = None
    data: Path | None = None
    devices: int = 50
    generations: int = 2
    drifts: tuple[str, ...] = ()
    labelled: float = 0.1
    seed: int = 0
    partition: str = "auto"
    dropout: float = 0.0
    stragglers: float = 0.0
    device_classes: tuple[str, ...] = ("x86-vnni",)
    range_method: str = "mse"
    check_pooled: bool = False
    out: Path | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        self._check_source()
        _require_count("devices", self.devices, 1, MAX_DEVICES)
        _require_count("generations", self.generations, 1, MAX_GENERATIONS)
        _require_count("seed", self.seed, 0, 2**63 - 1)
        for name in ("labelled", "dropout", "stragglers"):
            _require_fraction(name, getattr(self, name))
        if self.dropout + self.stragglers > 1.0:
            raise ConfigurationError(
                f"dropout {self.dropout} and stragglers {self.stragglers} are more than all devices;"
                " give fractions that add up to 1 at most"
            )
        parse_drifts(self.drifts)
        _require_partition(self.partition)
        method_from_name(self.range_method)
        if not self.device_classes:
            raise ConfigurationError("device-class names no hardware kind; name one, such as x86-vnni")
        for name in self.device_classes:
            DeviceClass(name)

    def _check_source(self) -> None:
        if self.task is not None and (self.model is not None or self.data is not None):
            raise ConfigurationError(
                f"task {self.task!r} has a model and data of its own; give --task, or --model with --data"
            )
        if self.task is None and (self.model is None or self.data is None):
            missing = "data" if self.model is not None else "model"
            raise ConfigurationError(
                f"a {missing} file is missing; give --model FILE.onnx with --data FILE.npz, or --task"
            )
        if self.task == "":
            raise ConfigurationError("task '' is empty; `quantfleet-sim tasks` lists the names")

    def to_command(self) -> str:
        """Return the shell command that runs this again: what differs from the defaults, without folders."""
        words = ["quantfleet-sim", "run"]
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in ("out", "cache_dir") or value is None or value == setting.default:
                continue
            option = f"--{_OPTIONS.get(setting.name, setting.name.replace('_', '-'))}"
            if value is True:
                words.append(option)
            else:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"{option}={item}" for item in values]
        return shlex.join(words)


_OPTIONS = {"drifts": "drift", "device_classes": "device-class"}
"""Fields whose option, given once for each entry, has another name."""


def read_scenario(file: Path | None, **options: Any) -> Scenario:  # noqa: ANN401 - checked by Scenario
    """Return the scenario that a file and options describe; an option wins over the file.

    Args:
        file: TOML file; None for the defaults.
        **options: Fields of `Scenario` as typed; None or an empty list where an option was not given.

    Raises:
        ConfigurationError: The file cannot be read, or a value cannot be used.
    """
    settings = _read_file(file) if file is not None else {}
    given = {name: value for name, value in options.items() if value is not None and value != []}
    if "task" in given:
        settings.pop("model", None)
        settings.pop("data", None)
    elif "model" in given or "data" in given:
        settings.pop("task", None)
    merged = settings | {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if "model" in merged or "data" in merged:
        merged.setdefault("task", None)
    return Scenario(**merged)


def _read_file(file: Path) -> dict[str, Any]:
    """Return the fields that a TOML file sets; its relative paths start at its folder."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read scenario {file}: {error.strerror}; check --scenario"
        ) from error
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigurationError(
            f"scenario {file} is longer than {_MAX_FILE_BYTES} bytes; is it the right file?"
        )
    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, or a number of thousands of digits
        raise ConfigurationError(f"scenario {file} is not TOML: {error}; see docs/cli.md") from error
    except RecursionError as error:
        raise ConfigurationError(f"scenario {file} is nested too deep; see docs/cli.md") from error
    return _parse(document, file)


def _parse(document: Mapping[str, object], file: Path) -> dict[str, Any]:
    settings = {}
    for key, value in document.items():
        if key not in _KEYS:
            raise ConfigurationError(f"scenario {file} has an unknown key {key!r}; {_suggest(key)}")
        field, read = _KEYS[key]
        try:
            settings[field] = read(value)
        except TypeError as error:
            raise ConfigurationError(f"scenario {file}: {key} must be {error}, not {value!r}") from None
    for field in ("model", "data", "out", "cache_dir"):
        if field in settings:
            settings[field] = file.parent / settings[field]
    return settings


def _suggest(key: str) -> str:
    """Return the nearest known key in words, or all of them."""
    near = difflib.get_close_matches(key.replace("_", "-").lower(), _KEYS, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(_KEYS))}"


# Readers return the value of a key, or raise TypeError with the type in words.


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError('text in quotes, such as "digits"')
    return value


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise TypeError('a path in quotes, such as "model.onnx"')
    return Path(value).expanduser()


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError("a whole number")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise TypeError("a number")
    return float(value)  # type: ignore[arg-type]  # int or float, see above


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError('a list of texts, such as ["x86-vnni", "arm"]')
    return tuple(value)


def _drifts(value: object) -> tuple[str, ...]:
    """Return drifts as they are typed, from a table of severities or a list of "NAME=SEVERITY"."""
    if isinstance(value, list):
        return _texts(value)
    if not isinstance(value, dict):
        raise TypeError("a table of severities, such as { contrast = 0.3 }")
    return tuple(f"{name}={_severity(severity)}" for name, severity in value.items())


def _severity(value: object) -> str:
    if isinstance(value, list) and value and all(type(item) in (int, float) for item in value):
        return ",".join(repr(item) for item in value)
    if type(value) not in (int, float):
        raise TypeError("a table whose severities are numbers or lists of numbers")
    return repr(value)


_KEYS: dict[str, tuple[str, Callable[[object], Any]]] = {
    "task": ("task", _text),
    "model": ("model", _path),
    "data": ("data", _path),
    "devices": ("devices", _whole),
    "generations": ("generations", _whole),
    "drift": ("drifts", _drifts),
    "labelled": ("labelled", _number),
    "seed": ("seed", _whole),
    "partition": ("partition", _text),
    "dropout": ("dropout", _number),
    "stragglers": ("stragglers", _number),
    "device-class": ("device_classes", _texts),
    "range-method": ("range_method", _text),
    "check-pooled": ("check_pooled", _flag),
    "out": ("out", _path),
    "cache-dir": ("cache_dir", _path),
}


def _require_count(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ConfigurationError(f"{name} is {value!r}; give a whole number from {least} to {most}")


def _require_fraction(name: str, value: float) -> None:
    if isinstance(value, bool) or not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise ConfigurationError(f"{name} is {value!r}; give a fraction from 0 to 1")


def _require_partition(partition: str) -> None:
    kind, _, parameter = partition.partition(":")
    try:
        is_known = {
            "auto": lambda: not parameter,
            "owner": lambda: not parameter,
            "iid": lambda: not parameter,
            "classes": lambda: int(parameter) >= 1,
            "dirichlet": lambda: 0.0 < float(parameter) < math.inf,
        }[kind]()
    except (KeyError, ValueError):
        is_known = False
    if not is_known or (parameter == "" and partition.endswith(":")):
        raise ConfigurationError(
            f"partition {partition!r} is unknown; give auto, owner, iid, classes:K (such as classes:2)"
            " or dirichlet:ALPHA (such as dirichlet:0.5)"
        )
