"""A device's settings: one frozen value, parsed once from a TOML file and the options of a command.

The file has the tables `[device]`, `[limits]`, `[network]`, `[trial]`, `[sample]`, `[judge]`, `[report]`, `[pace]` and
`[local]`; keys are the fields' names. Unknown tables and keys, and values of other types, are refused.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, get_type_hints

from client.garbage import Limits
from client.judging import JudgeSettings
from client.metered import NetworkSettings
from client.reporting import ReportSettings
from client.sampler import Keep
from client.trial import TrialRules
from client.update_worker import UpdatePace
from quantization.blob import check_digest
from quantization.blob_ref import check_name
from quantization.errors import ConfigurationError, MalformedError

_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """Which inputs are kept for calibration; they never leave the device.

    Attributes:
        max_bytes: Most that they may take, in memory and on the disk; 0 keeps none.
        rate: Probability with which an input is looked at, 0 to 1.
        keep: Which of those stay: "latest" or "uniform".
        write_seconds: Between writings to the disk.
    """

    max_bytes: int = 4 << 20
    rate: float = 0.1
    keep: Keep = Keep.LATEST
    write_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Refuse what no sampler can do."""
        if self.max_bytes < 0 or not 0 <= self.rate <= 1 or not self.write_seconds > 0:
            raise ConfigurationError(
                f"sample settings {self}: max_bytes is 0 or more, rate 0 to 1, write_seconds above 0"
            )


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How the device's own processes reach its agent.

    Attributes:
        workers: Calls that are answered at the same time.
        waiting: Calls that may wait for a worker; others are refused.
        max_request_bytes: Largest batch of inputs.
        remembered_samples: Answers that a label may come for.
        group_access: Whether the socket is open to the group that owns it (mode 660), not to its owner alone (600).
            Who can open it can also turn the device back.
    """

    workers: int = 4
    waiting: int = 64
    max_request_bytes: int = 16 << 20
    remembered_samples: int = 4096
    group_access: bool = False

    def __post_init__(self) -> None:
        """Refuse what no service can do."""
        if self.workers < 1 or self.waiting < 0 or self.max_request_bytes < 1024:
            raise ConfigurationError(
                f"local settings {self}: workers is 1 or more, waiting 0 or more, max_request_bytes 1024 or more"
            )
        if not 1 <= self.remembered_samples <= 1 << 20:
            raise ConfigurationError(f"remembered_samples is 1 to {1 << 20}, not {self.remembered_samples}")


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """All that an agent is told.

    Attributes:
        device_class: Name of the device's class.
        model_digest: SHA-256 of the model that a device without one asks for, hex; empty for none.
        threads: Of one inference.
        gives_way: Whether background threads have a lower priority than inference; not with more than one thread an
            inference, whose helpers would inherit it.
        limits: What updates may cost.
        network: When the network is paid by the byte.
        trial: When a trial ends.
        sample: Which inputs are kept.
        judge: How many answers the float model judges.
        report: When telemetry is reported.
        pace: When the device asks for its target.
        local: How its own processes reach the agent.
    """

    device_class: str
    model_digest: str = ""
    threads: int = 1
    gives_way: bool = True
    limits: Limits = field(default_factory=Limits)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    trial: TrialRules = field(default_factory=TrialRules)
    sample: SampleSettings = field(default_factory=SampleSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    pace: UpdatePace = field(default_factory=UpdatePace)
    local: LocalSettings = field(default_factory=LocalSettings)

    def __post_init__(self) -> None:
        """Refuse what no device can be."""
        try:
            check_name(self.device_class, "device class")
            if self.model_digest:
                check_digest(self.model_digest)
        except MalformedError as error:
            raise ConfigurationError(str(error)) from error
        if not 1 <= self.threads <= 256:
            raise ConfigurationError(f"threads is 1 to 256, not {self.threads}")

    @property
    def is_quiet(self) -> bool:
        """Whether background threads give way to inference."""
        return self.gives_way and self.threads == 1

    @classmethod
    def from_toml(cls, path: Path, **options: Any) -> Self:  # noqa: ANN401
        """Return the settings of a file, with the options that are not None in their place.

        Args:
            path: Of the file.
            options: Fields of the table `[device]`.

        Raises:
            ConfigurationError: If the file cannot be read, or says something that cannot be used.
        """
        return cls.from_tables(_read(path), str(path), **options)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any], name: str = "settings", **options: Any) -> Self:  # noqa: ANN401
        """Return the settings of parsed TOML; see `from_toml`.

        Args:
            tables: What the file says.
            name: Of the file, for messages.
            options: Fields of the table `[device]`.
        """
        kinds: dict[str, type] = {
            kind: hint for kind, hint in get_type_hints(cls).items() if hasattr(hint, "__dataclass_fields__")
        }
        unknown = sorted(tables.keys() - kinds.keys() - {"device"})
        if unknown:
            raise ConfigurationError(
                f"{name}: unknown table or key {', '.join(unknown)}; known are device, {', '.join(kinds)}"
            )
        given = {key: value for key, value in options.items() if value is not None}
        device = {"class" if key == "device_class" else key: value for key, value in given.items()}
        own = _fields(
            cls,
            {**_table(tables, "device", name), **device},
            f"{name} [device]",
            renamed={"class": "device_class"},
        )
        if "device_class" not in own:
            raise ConfigurationError(
                f"{name}: the device's class is missing; give --device-class, or set `class` in the table [device]"
            )
        parts = {
            kind: _part(kinds[kind], _table(tables, kind, name), f"{name} [{kind}]")
            for kind in kinds
            if kind in tables
        }
        return cls(**own, **parts)

    def with_model(self, model_digest: str) -> "DeviceSettings":
        """Return the settings of a device that asks for this model."""
        return replace(self, model_digest=model_digest)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror})") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error


def _table(tables: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    table = tables.get(key, {})
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{name}: {key} is a table, not {table!r:.40}")
    return table


def _part(kind: type, table: Mapping[str, Any], where: str) -> Any:  # noqa: ANN401
    return kind(**_fields(kind, table, where))


def _fields(
    kind: Any,  # noqa: ANN401  # any dataclass
    table: Mapping[str, Any],
    where: str,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the plain fields that a table sets, each with the type that it must have."""
    hints = get_type_hints(kind)
    known = {one.name for one in fields(kind) if not hasattr(hints[one.name], "__dataclass_fields__")}
    names = {name: name for name in known - set(renamed.values())} | dict(renamed)
    unknown = sorted(table.keys() - names.keys())
    if unknown:
        raise ConfigurationError(
            f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(names))}"
        )
    return {names[key]: _as(hints[names[key]], value, f"{where} {key}") for key, value in table.items()}


def _as(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401
    """Return a value as the type of its field."""
    if kind is Keep and isinstance(value, str) and value in {*Keep}:
        return Keep(value)
    if (
        kind is float
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    ):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    wanted = (
        "one of " + ", ".join(Keep)
        if kind is Keep
        else "a list of texts"
        if kind == tuple[str, ...]
        else kind.__name__
    )
    raise ConfigurationError(f"{where} is {wanted}, not {value!r:.40}")
