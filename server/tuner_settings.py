"""Settings of the tuner: one frozen value from the table `[tuner]` of a TOML file.

Keys are the fields' names with hyphens. `[tuner.run]` holds keys of the run configuration (docs/flower.md) that differ
from their defaults. A key that there is not is refused, with the one that was meant.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

from quantization.errors import ConfigurationError
from server.field_drift import DriftRules
from server.settings import ConfigValue
from server.tuning_triggers import TriggerRules

_Rules = TypeVar("_Rules", DriftRules, TriggerRules, "Pace")

HOUR_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the tuner looks, and how long it waits.

    Attributes:
        look_seconds: Between two looks at the registry.
        flower_seconds: Between two questions to the SuperLink about a run at work.
        drift_seconds: Between two looks at what devices have counted.
        start_seconds: A run whose ServerApp has not begun by then is given up.
        run_seconds: Longest that a run may take.
        lease_seconds: A tuner that has not renewed its lease for so long is taken to be gone.
    """

    look_seconds: float = 2.0
    flower_seconds: float = 15.0
    drift_seconds: float = 300.0
    start_seconds: float = 180.0
    run_seconds: float = 6 * HOUR_SECONDS
    lease_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what would spin, or never end."""
        if not all(0 < getattr(self, name) < float("inf") for name in self.__slots__):
            raise ConfigurationError(f"the tuner's times must be above 0 seconds, not {self}")
        if self.lease_seconds < 3 * self.look_seconds:
            raise ConfigurationError(
                f"lease-seconds {self.lease_seconds:g} must be at least three times look-seconds {self.look_seconds:g}"
            )


@dataclass(frozen=True, slots=True)
class TunerSettings:
    """What the tuner does.

    Attributes:
        model: Name of the model that it looks after, as the registry has it.
        drift: When a class drifts.
        triggers: When a run starts.
        pace: How often it looks.
        run: Keys of the run configuration that differ from their defaults.
    """

    model: str = ""
    drift: DriftRules = field(default_factory=DriftRules)
    triggers: TriggerRules = field(default_factory=TriggerRules)
    pace: Pace = field(default_factory=Pace)
    run: Mapping[str, ConfigValue] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Refuse what the tuner says itself."""
        own = {"tuning-run", "model-name", "generations"} & self.run.keys()
        if own:
            raise ConfigurationError(
                f"[tuner.run] holds {', '.join(sorted(own))}, which the tuner sets itself"
            )

    @classmethod
    def from_toml(cls, data: bytes, origin: str) -> Self:
        """Return the settings in a TOML file; tables of other parts are left to them.

        Args:
            data: The file's content.
            origin: The file's name, for messages.

        Raises:
            ConfigurationError: It is no TOML, a key is not known, or a value cannot be used.
        """
        try:
            document = tomllib.loads(data.decode())
        except ValueError as error:
            raise ConfigurationError(f"{origin} is not TOML: {error}") from error
        table = document.get("tuner", {})
        if not isinstance(table, dict):
            raise ConfigurationError(f"{origin}: tuner must be a table, [tuner]")
        try:
            return cls.from_table(table)
        except ConfigurationError as error:
            raise ConfigurationError(f"{origin}: {error}") from error

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """Return the settings in a table `[tuner]`.

        Raises:
            ConfigurationError: A key is not known, or a value cannot be used.
        """
        rest = dict(table)
        model, run = rest.pop("model", ""), rest.pop("run", {})
        if not isinstance(model, str) or not isinstance(run, dict):
            raise ConfigurationError("[tuner] model must be a name, and [tuner.run] a table")
        if any(not isinstance(value, str | int | float | bool) for value in run.values()):
            raise ConfigurationError("[tuner.run] holds texts, numbers and booleans alone")
        hours = rest.pop("every-hours", None)
        if hours is not None:
            rest["every-seconds"] = _number("every-hours", hours) * HOUR_SECONDS
        parts = {name: _taken(kind, rest) for name, kind in _PARTS.items()}
        if rest:
            raise ConfigurationError(_unknown_key(min(rest)))
        return cls(model=model, run=MappingProxyType(run), **parts)

    def every_hours(self, hours: float | None) -> Self:
        """Return the settings with another schedule; None leaves it."""
        if hours is None:
            return self
        return replace(self, triggers=replace(self.triggers, every_seconds=hours * HOUR_SECONDS))

    def of_model(self, name: str) -> Self:
        """Return the settings for another model; an empty name leaves it."""
        return replace(self, model=name) if name else self


_PARTS: Mapping[str, Any] = MappingProxyType({"drift": DriftRules, "triggers": TriggerRules, "pace": Pace})
"""Fields of the settings whose own fields are keys of the table."""


def read_settings(home: Path, config: Path | None) -> TunerSettings:
    """Return the settings in a file.

    Args:
        home: The server's folder.
        config: The file; None for `tuner.toml` in the home folder, if it is there.

    Raises:
        ConfigurationError: The file cannot be read, or holds what cannot be used.
    """
    path = config or home / "tuner.toml"
    if config is None and not path.exists():
        return TunerSettings()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"settings {path} cannot be read ({error.strerror})") from error
    return TunerSettings.from_toml(data, str(path))


def _taken(kind: type[_Rules], rest: dict[str, Any]) -> _Rules:
    """Return the value whose fields are keys of the table, and take those keys out of it."""
    found: dict[str, Any] = {}
    for setting in fields(kind):
        key = _key(setting.name)
        if key not in rest:
            continue
        value, default = rest.pop(key), setting.default
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise ConfigurationError(f"{key} must be true or false, not {value!r}")
        elif isinstance(default, int):
            if type(value) is not int:
                raise ConfigurationError(f"{key} must be a whole number, not {value!r}")
        else:
            value = _number(key, value)
        found[setting.name] = value
    return kind(**found)


def _number(key: str, value: object) -> float:
    if type(value) not in (int, float) or not abs(float(value)) < float("inf"):  # type: ignore[arg-type]
        raise ConfigurationError(f"{key} must be a number, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def _key(name: str) -> str:
    """Return the key of a field; a question becomes a statement: `is_drift_watched` is `drift-watched`."""
    return name.removeprefix("is_").replace("_", "-")


def _unknown_key(key: str) -> str:
    known = ["model", "run", "every-hours"]
    known += [_key(setting.name) for kind in _PARTS.values() for setting in fields(kind)]
    close = get_close_matches(key, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(sorted(known))}"
    return f"unknown key '{key}' in [tuner]{hint}"
