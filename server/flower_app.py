"""The Flower app that a run of the tuner starts: a folder made of nothing but names.

`flwr run` wants a folder with a project file. The components that it names are in the installed package, on the
machines of SuperLink and SuperNodes as well as here, so the bundle that travels holds a project file and no code.
Flower takes for a run the keys alone that the project file has a default for: the run's configuration is written there
as a whole.
"""

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from quantization.errors import ConfigurationError
from server.settings import ConfigValue

APP_NAME = "quantfleet-tuner"

_KEY = re.compile(r"[a-z][a-z0-9-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_PROJECT = """[project]
name = "{name}"
version = "{version}"
description = "Brings one generation of a quantized model."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "quantfleet"
fab-include = ["pyproject.toml"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
{config}
"""


def write_app(folder: Path, run_config: Mapping[str, ConfigValue]) -> Path:
    """Return `folder`, made if need be, once it is an app whose runs have this configuration.

    Raises:
        ConfigurationError: A key or a value cannot be written, or the folder cannot.
    """
    project = project_file(run_config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / "pyproject.toml.tmp"
        fresh.write_text(project, encoding="utf-8")
        fresh.replace(folder / "pyproject.toml")
    except OSError as error:
        raise ConfigurationError(f"the Flower app cannot be written to {folder}: {error}") from error
    return folder


def project_file(run_config: Mapping[str, ConfigValue]) -> str:
    """Return the app's `pyproject.toml`.

    Raises:
        ConfigurationError: A key or a value cannot be written.
    """
    lines = [f"{_checked(key)} = {toml_value(key, value)}" for key, value in sorted(run_config.items())]
    return _PROJECT.format(name=APP_NAME, version=_app_version(), config="\n".join(lines))


def toml_value(key: str, value: ConfigValue) -> str:
    """Return a value as TOML has it.

    Raises:
        ConfigurationError: It has another type than a run configuration can hold, or control characters.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and value == value and abs(value) != float("inf"):  # noqa: PLR0124  # NaN
        return repr(value)
    if isinstance(value, str) and not _CONTROL.search(value):
        return json.dumps(value, ensure_ascii=False)
    raise ConfigurationError(f"{key} = {value!r} cannot be in a run configuration")


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ConfigurationError(f"{key!r} is no key of a run configuration, such as expected-nodes")
    return key


def _app_version() -> str:
    """Return the release that the package is of, as Flower reads versions: three numbers."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version("quantfleet"))
    return ".".join(numbers.groups()) if numbers else "0.0.0"
