"""The settings of one simulated experiment, from the command line or a TOML file.

A file's keys are the long names of the options, without the dashes in front; an option that is typed
replaces the key of the same name:

    task = "cifar10"
    devices = 20
    device-class = ["x86-vnni", "arm"]

    [drift]
    contrast = 0.3

    [precision]
    size-ratio = 10.0
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from quantization.calibration import method_from_name
from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe
from quantization.device_class import DeviceClass
from quantization.errors import ConfigurationError
from server import calibration_settings
from server.precision_settings import PrecisionSettings, replace_options
from simulation.drift import parse_drifts
from simulation.scenario_file import read_file

MAX_DEVICES = 1_000_000
MAX_GENERATIONS = 1_000


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
        liars: Fraction of devices that send well-formed lies about moments and probes, 0 to 1.
        device_classes: Names of the hardware kinds in the fleet, dealt out in turn.
        range_method: As `calibration.method_from_name` reads it.
        precision: What is asked of the weights' precision; None for 8 bits everywhere.
        calibration: Which inputs weigh more on devices, and which augmented copies join them.
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
    liars: float = 0.0
    device_classes: tuple[str, ...] = ("x86-vnni",)
    range_method: str = "mse"
    precision: PrecisionSettings | None = None
    calibration: CalibrationRecipe = DEFAULT_RECIPE
    check_pooled: bool = False
    out: Path | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        self._check_source()
        _require_count("devices", self.devices, 1, MAX_DEVICES)
        _require_count("generations", self.generations, 1, MAX_GENERATIONS)
        _require_count("seed", self.seed, 0, 2**63 - 1)
        for name in ("labelled", "dropout", "stragglers", "liars"):
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

    def to_command(self, command: str = "run") -> str:
        """Return the shell command that runs this again: what differs from the defaults, without folders.

        Args:
            command: "run", or a study, which has fewer options.
        """
        words = ["quantfleet-sim", command]
        for setting in fields(self):
            value = getattr(self, setting.name)
            is_left_out = setting.name in (_FOLDERS if command == "run" else (*_FOLDERS, *_OF_RUN_ALONE))
            if is_left_out or value is None or value == setting.default:
                continue
            if isinstance(value, PrecisionSettings):
                for name, chosen in value.to_options().items():
                    words += _as_typed(name, chosen)
            elif isinstance(value, CalibrationRecipe):
                for name, chosen in calibration_settings.recipe_to_options(value).items():
                    words += _as_typed(_CALIBRATION_OPTIONS[name], chosen)
            else:
                words += _as_typed(_OPTIONS.get(setting.name, setting.name.replace("_", "-")), value)
        return shlex.join(words)


def _as_typed(option: str, value: object) -> list[str]:
    """Return the words that give an option: one for each entry of a tuple."""
    if value is True:
        return [f"--{option}"]
    return [f"--{option}={item}" for item in (value if isinstance(value, tuple) else (value,))]


_FOLDERS, _OF_RUN_ALONE = ("out", "cache_dir"), ("generations", "precision", "check_pooled")

_OPTIONS = {"drifts": "drift", "device_classes": "device-class"}
"""Fields whose option, given once for each entry, has another name."""

_CALIBRATION_OPTIONS = {
    calibration_settings.STRATEGY: "calibration",
    calibration_settings.HARD_SAMPLE_WEIGHT: "hard-sample-weight",
    calibration_settings.AUGMENTATIONS: "augment",
}
"""Options of the settings in the table `calibration`."""


def read_scenario(
    file: Path | None,
    *,
    precision: Mapping[str, object] | None = None,
    calibration: Mapping[str, object] | None = None,
    **options: Any,  # noqa: ANN401 - checked by Scenario
) -> Scenario:
    """Return the scenario that a file and options describe; an option wins over the file.

    Args:
        file: TOML file; None for the defaults.
        precision: Options of `server.precision_settings` as typed, by name; None where one was not given.
        calibration: Options of `server.calibration_settings`, likewise.
        **options: Fields of `Scenario` as typed; None or an empty list where an option was not given.

    Raises:
        ConfigurationError: The file cannot be read, or a value cannot be used.
    """
    settings = read_file(file) if file is not None else {}
    typed, recipe, given = (_given(words) for words in (precision or {}, calibration or {}, options))
    if "task" in given:
        settings.pop("model", None)
        settings.pop("data", None)
    elif "model" in given or "data" in given:
        settings.pop("task", None)
    merged = settings | {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if "model" in merged or "data" in merged:
        merged.setdefault("task", None)
    merged["precision"] = PrecisionSettings.from_options(
        replace_options(settings.get("precision", {}), typed)
    )
    merged["calibration"] = calibration_settings.recipe_from_options(
        calibration_settings.replace_options(settings.get("calibration", {}), recipe)
    )
    return Scenario(**merged)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were typed."""
    return {name: value for name, value in options.items() if value is not None and value != []}


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
