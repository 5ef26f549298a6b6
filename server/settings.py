"""The server's settings: one frozen value, parsed once from a run's configuration.

Keys of the run configuration are the fields' names with hyphens, such as `blob-folder` or `deadline-seconds`;
defaults are in the types, and a value that cannot be used is refused before any device is asked.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe
from quantization.errors import ConfigurationError
from server.calibration_settings import recipe_from_run_config
from server.default_home import DEFAULT_HOME
from server.precision_settings import PrecisionSettings
from strategies.rounds import RoundSettings

ConfigValue = str | int | float | bool
"""What a Flower run configuration holds."""


@dataclass(frozen=True, slots=True)
class CohortSettings:
    """Which devices are asked.

    Attributes:
        expected_nodes: Devices to wait for before the first round; 0 goes on with the first that are there.
        wait_seconds: Longest wait for them; then the run goes on with those that came, if any did.
        sample_fraction: Share of a class's devices that a calibration or assessment asks, above 0 to 1.
        seed: Of the sampling of devices.
    """

    expected_nodes: int = 0
    wait_seconds: float = 120.0
    sample_fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no round can run with."""
        _require("expected-nodes", self.expected_nodes, "0 or more", is_met=self.expected_nodes >= 0)
        _require("wait-seconds", self.wait_seconds, "0 or more", is_met=self.wait_seconds >= 0)
        is_share = 0 < self.sample_fraction <= 1
        _require("sample-fraction", self.sample_fraction, "above 0, at most 1", is_met=is_share)
        _require("seed", self.seed, "0 or more", is_met=self.seed >= 0)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What one run of the ServerApp does.

    Attributes:
        home: Folder for what is not placed elsewhere; a leading "~" stands for the home folder of the user that the
            ServerApp runs as.
        registry_url: The database, as SQLAlchemy reads it; empty for the file `registry.db` in `home`.
        blob_folder: Where content lies, as fsspec reads it; empty for the folder `blobs` in `home`.
        model_name: The model to tune, as the registry names it; a model source names its model itself.
        model_source: Entry point (group `quantfleet.models`) that prepares the model if the registry lacks
            it; empty for none.
        generations: How many generations to run, one after the other.
        tuning_run: Key of the run in the registry, where the tuner started it; empty otherwise.
        resume_seconds: A generation that a run left open longer ago than this is given up, not resumed.
        batch_size: Inputs in one inference on a device that observes or assesses.
        fixed_grids: Have all devices count on the same bins, around the lab's: histograms then add as plain vectors,
            a hundred times as fast, on bins that may be wider than those of the pooled data.
        cohort: Which devices are asked.
        rounds: When a round is over; its keys are `quorum-fraction`, `deadline-seconds`, `poll-seconds`,
            `push-batch` and `pull-batch`.
        calibration: Which inputs weigh more, and which augmented copies join them; its keys are `calibration-strategy`,
            `hard-sample-weight` and `calibration-augmentations`.
        precision: Budget of the weights; None to leave their bit-widths as they are. Its keys are those of
            `server.precision_settings`; a goal of 0 is none.
    """

    home: str = DEFAULT_HOME
    registry_url: str = ""
    blob_folder: str = ""
    model_name: str = "model"
    model_source: str = ""
    generations: int = 1
    tuning_run: str = ""
    resume_seconds: float = 86400.0
    batch_size: int = 32
    fixed_grids: bool = False
    cohort: CohortSettings = field(default_factory=CohortSettings)
    rounds: RoundSettings = field(default_factory=RoundSettings)
    calibration: CalibrationRecipe = field(default_factory=lambda: DEFAULT_RECIPE)
    precision: PrecisionSettings | None = None

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        _require("home", self.home, "not empty", is_met=bool(self.home))
        is_named = bool(self.model_name or self.model_source)
        _require("model-name", self.model_name, "not empty, or model-source", is_met=is_named)
        _require("generations", self.generations, "1 or more", is_met=self.generations >= 1)
        _require("resume-seconds", self.resume_seconds, "0 or more", is_met=self.resume_seconds >= 0)
        _require("batch-size", self.batch_size, "1 to 65536", is_met=1 <= self.batch_size <= 65536)

    @property
    def registry_place(self) -> str:
        """The database to open, as SQLAlchemy reads it."""
        return self.registry_url or f"sqlite:///{Path(self.home).expanduser() / 'registry.db'}"

    @property
    def blob_place(self) -> str:
        """The blob store to open, as fsspec reads it."""
        return self.blob_folder or str(Path(self.home).expanduser() / "blobs")

    def augmentation_seed(self, generation: int) -> int:
        """Return the seed of the augmented copies in a generation; 0 where there are none."""
        return generation if self.calibration.augmentations else 0

    @classmethod
    def from_run_config(cls, config: Mapping[str, ConfigValue]) -> Self:
        """Return the settings in a Flower run configuration; keys of other parts are left to them.

        Raises:
            ConfigurationError: A value has the wrong type or is out of range.
        """
        cohort = CohortSettings(**_parsed(CohortSettings, config))
        rounds = RoundSettings(**_parsed(RoundSettings, config))
        calibration = recipe_from_run_config(config)
        precision = PrecisionSettings.from_run_config(config)
        return cls(
            **_parsed(cls, config), cohort=cohort, rounds=rounds, calibration=calibration, precision=precision
        )


def to_json(settings: ServerSettings) -> str:
    """Return what of the settings decides a generation's course as JSON, for the record."""
    record = {
        "batch_size": settings.batch_size,
        "calibration": str(settings.calibration),
        "precision": None if settings.precision is None else settings.precision.to_options(),
        "cohort": asdict(settings.cohort),
        "rounds": asdict(settings.rounds),
    }
    return json.dumps(record, sort_keys=True)


def _parsed(kind: type, config: Mapping[str, ConfigValue]) -> dict[str, Any]:
    """Return the plain fields of `kind` that the configuration sets, each with the type of its default."""
    found = {}
    for setting in fields(kind):
        key = setting.name.replace("_", "-")
        if key in config and setting.default is not MISSING:
            found[setting.name] = _as(type(setting.default), key, config[key])
    return found


def _as(kind: type, key: str, value: ConfigValue) -> ConfigValue:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigurationError(f"{key} must be of type {kind.__name__}, not {value!r}")
    return value


def _require(key: str, value: object, rule: str, *, is_met: bool) -> None:
    if not is_met:
        raise ConfigurationError(f"{key} is {value!r}; it must be {rule}")
