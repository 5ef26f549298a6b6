"""Settings of a server process: one frozen value, parsed once from a TOML file and the command's options.

The file's tables are the dataclasses below, with the fields as keys. Unknown tables and keys, and values of a wrong
type, are refused with what is known. An option that is typed wins over the file.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from quantization.errors import ConfigurationError
from server.certificates import CertificateLifetimes
from server.default_home import DEFAULT_HOME
from server.enrolment_service import EnrolmentSettings
from server.rollout import RolloutPlan
from server.rollout_settings import RolloutRules
from server.telemetry_settings import TelemetrySettings
from server.update_settings import UpdateSettings

_Table = TypeVar("_Table")
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list of numbers",
}


@dataclass(frozen=True, slots=True)
class ServerTable:
    """Where a server process serves, and what from: the table `server`.

    Attributes:
        address: Host and port for devices and operators; port 0 takes a free one.
        enrolment_address: Host and port for devices that are yet to enrol; empty for none.
        metrics_address: Host and port of the page that Prometheus reads, in plain HTTP; empty for none.
        public_address: Host and port under which enrolled devices find `address`; empty for the host that they enrolled
            at and this port.
        registry_url: The database, as SQLAlchemy reads it; empty for the file `registry.db` in the home folder.
        blob_folder: Where content lies, as fsspec reads it; empty for the folder `blobs` in the home folder.
        delta_folder: Where differences are kept, likewise; empty for the folder `deltas`.
        review_seconds: How often telemetry is asked whether a rollout goes on.
        refresh_seconds: How often it is looked whether signed metadata and certificates are due for renewal.
        evidence_days: For how long what single devices counted in a rollout is kept when the rollout has ended.
        garbage_days: Content that nothing needs is removed, once a day, when it is older than this; 0 for never.
        grace_seconds: How long calls may go on when the process is told to stop.
    """

    address: str = "127.0.0.1:9443"
    enrolment_address: str = "127.0.0.1:9444"
    metrics_address: str = "127.0.0.1:9464"
    public_address: str = ""
    registry_url: str = ""
    blob_folder: str = ""
    delta_folder: str = ""
    review_seconds: float = 2.0
    refresh_seconds: float = 300.0
    evidence_days: float = 30.0
    garbage_days: float = 0.0
    grace_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what no process can serve."""
        for name in ("review_seconds", "refresh_seconds", "evidence_days", "grace_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be above 0, not {getattr(self, name)}")
        if not (self.garbage_days == 0 or self.garbage_days >= 1):
            raise ConfigurationError(f"garbage_days must be 0 or at least 1, not {self.garbage_days}")
        check_address("address", self.address)
        for name in ("enrolment_address", "metrics_address", "public_address"):
            if getattr(self, name):
                check_address(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class PlanTable:
    """By which steps a new version reaches a class: the table `plan`.

    Attributes:
        shares: Parts of the devices that have it, growing, each above 0 and below 1; the first are the canaries.
        canaries: Least devices of the first share, where so many are known.
    """

    shares: tuple[float, ...] = (0.05, 0.2, 0.5)
    canaries: int = 4

    def __post_init__(self) -> None:
        """Refuse a plan that is none."""
        RolloutPlan(self.shares)
        if self.canaries < 1:
            raise ConfigurationError(f"canaries must be 1 or more, not {self.canaries}")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What one server process does.

    Attributes:
        home: Its folder (`docs/operations.md`).
        is_insecure: Serve without certificates and signatures, on loopback addresses only.
        server: Where it serves, and what from.
        rollout: How much evidence moves a rollout.
        plan: By which steps.
        update: Limits and times of the update service.
        telemetry: Likewise, of the telemetry service.
        enrolment: Likewise, of enrolment.
        certificates: For how long certificates are good.
    """

    home: Path = field(default_factory=lambda: Path(DEFAULT_HOME).expanduser())
    is_insecure: bool = False
    server: ServerTable = field(default_factory=ServerTable)
    rollout: RolloutRules = field(default_factory=RolloutRules)
    plan: PlanTable = field(default_factory=PlanTable)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    enrolment: EnrolmentSettings = field(default_factory=EnrolmentSettings)
    certificates: CertificateLifetimes = field(default_factory=CertificateLifetimes)

    @property
    def registry_place(self) -> str:
        """The database to open, as SQLAlchemy reads it."""
        return self.server.registry_url or f"sqlite:///{self.home / 'registry.db'}"

    @property
    def blob_place(self) -> str:
        """The blob store to open, as fsspec reads it."""
        return self.server.blob_folder or str(self.home / "blobs")

    @property
    def delta_place(self) -> str:
        """The store of differences to open, likewise."""
        return self.server.delta_folder or str(self.home / "deltas")

    @classmethod
    def read(
        cls, home: Path, config: Path | None, *, is_insecure: bool = False, **options: str | None
    ) -> Self:
        """Return the settings of a file, with options in front of it.

        Args:
            home: The server's folder.
            config: A TOML file; None for `server.toml` in the home folder, if it is there.
            is_insecure: As above.
            options: Fields of `ServerTable`; None leaves them to the file.

        Raises:
            ConfigurationError: The file cannot be read, or has a key or value that cannot be used.
        """
        path = config or home / "server.toml"
        tables = _read_toml(path) if config is not None or path.exists() else {}
        kinds = {f.name: f.default_factory for f in fields(cls) if f.name not in ("home", "is_insecure")}
        unknown = sorted(tables.keys() - kinds.keys())
        if unknown:
            raise ConfigurationError(f"{path}: no table '{unknown[0]}'; there are {', '.join(sorted(kinds))}")
        parsed = {name: _parsed(kind, name, tables.get(name, {}), path) for name, kind in kinds.items()}
        typed = {name: value for name, value in options.items() if value is not None}
        parsed["server"] = replace(parsed["server"], **typed)
        return cls(home=home, is_insecure=is_insecure, **parsed)


def check_address(name: str, address: str) -> str:
    """Return an address of the form host:port.

    Raises:
        ConfigurationError: It is none.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ConfigurationError(f"{name} is {address!r}; it must be host:port, such as 127.0.0.1:9443")
    return address


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"settings {path} cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"settings {path} are not TOML: {error}") from error


def _parsed(kind: Any, name: str, table: object, path: Path) -> Any:  # noqa: ANN401 - whatever the table's class is
    """Return a table as its dataclass."""
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{path}: '{name}' must be a table, [{name}]")
    defaults = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    unknown = sorted(table.keys() - defaults.keys())
    if unknown:
        known = ", ".join(sorted(defaults))
        raise ConfigurationError(f"{path}: [{name}] has no key '{unknown[0]}'; there are {known}")
    values = {key: _as(type(defaults[key]), f"{path}: [{name}] {key}", value) for key, value in table.items()}
    try:
        return kind(**values)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: [{name}]: {error}") from error


def _as(kind: type, where: str, value: object) -> object:
    if kind is tuple and isinstance(value, list):
        return tuple(_as(float, where, one) for one in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and value != value):  # noqa: PLR0124 - NaN
        raise ConfigurationError(f"{where} must be {_NAMES[kind]}, not {value!r}")
    return value
