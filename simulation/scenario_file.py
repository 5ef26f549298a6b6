"""A scenario's TOML file, read into the fields of `simulation.scenario.Scenario`.

Keys and types are checked here, and named with the file; whether a value can be simulated is for the scenario to say.
"""

import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantization.errors import ConfigurationError
from server.calibration_settings import recipe_from_options
from server.precision_settings import read_options

_MAX_FILE_BYTES, _MAX_DEPTH = 1 << 16, 8
_MAX_DOTS = 64  # of a key; the time that reading it takes grows with their square


def read_file(file: Path) -> dict[str, Any]:
    """Return the fields that a TOML file sets; its relative paths start at its folder.

    Its "precision" are options as `server.precision_settings` names them.

    Raises:
        ConfigurationError: The file cannot be read, a key is unknown, or a value has the wrong type.
    """
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
    if any(line.partition(b"=")[0].count(b".") > _MAX_DOTS for line in content.splitlines()):
        raise ConfigurationError(f"scenario {file} is nested too deep; see docs/cli.md")
    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, or a number of thousands of digits
        raise ConfigurationError(f"scenario {file} is not TOML: {error}; see docs/cli.md") from error
    except RecursionError as error:
        raise ConfigurationError(f"scenario {file} is nested too deep; see docs/cli.md") from error
    _require_plain(document, file)
    return _parse(document, file)


def _require_plain(document: Mapping[str, object], file: Path) -> None:
    """Refuse what no setting is and no message can show: tables in tables in tables, and endless numbers."""
    level: list[object] = [document]
    for _ in range(_MAX_DEPTH):
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ConfigurationError(
                    f"scenario {file} has a whole number of more than 64 bits; see docs/cli.md"
                )
        level = inner
    if level:
        raise ConfigurationError(f"scenario {file} is nested too deep; see docs/cli.md")


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
        except ConfigurationError as error:
            raise ConfigurationError(f"scenario {file}: {error}") from None
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


def _precision(value: object) -> dict[str, object]:
    """Return the options of a table; another goal may be typed, so that they make no settings yet."""
    if not isinstance(value, dict):
        raise TypeError("a table of settings, such as { size-ratio = 10 }")
    read_options(value)
    return value


def _calibration(value: object) -> dict[str, object]:
    """Return the options of a table, which by themselves make a recipe."""
    if not isinstance(value, dict):
        raise TypeError('a table of settings, such as { strategy = "margin" }')
    recipe_from_options(value)
    return value


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
    "liars": ("liars", _number),
    "device-class": ("device_classes", _texts),
    "range-method": ("range_method", _text),
    "precision": ("precision", _precision),
    "calibration": ("calibration", _calibration),
    "check-pooled": ("check_pooled", _flag),
    "out": ("out", _path),
    "cache-dir": ("cache_dir", _path),
}
