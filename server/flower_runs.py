"""Runs on a SuperLink, through Flower's own command line.

`flwr run`, `flwr list` and `flwr stop` with `--format json` are what Flower documents and keeps; each call takes one
to three seconds and a process. What they say when a run or a SuperLink is not there is a text: `_error` knows them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from quantization.errors import ConfigurationError, NotFoundError, RoundFailedError, UnreachableError
from server.flower_app import toml_value, write_app
from server.settings import ConfigValue

_CALL_SECONDS = 45.0
_OWN_NAME = "tuner"
_UNAVAILABLE = ("is unavailable", "timed out", "Connection refused")
_UNKNOWN_RUN = "Run ID not found"


class Outcome(StrEnum):
    """What Flower says of a run."""

    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RunSight:
    """A run as Flower sees it.

    Attributes:
        outcome: Whether it is at work, or how it ended.
        details: Flower's words on it; empty if it has none.
    """

    outcome: Outcome
    details: str = ""


@dataclass(frozen=True, slots=True)
class SuperLink:
    """Which SuperLink.

    Attributes:
        name: As the user's Flower configuration has it; empty for the address.
        address: Host and port; empty for the name.
        root_certificates: Of the CA that its certificate is from; None for no TLS, on this machine alone.
    """

    name: str = ""
    address: str = ""
    root_certificates: Path | None = None

    def __post_init__(self) -> None:
        """Refuse none, both, and plain text over a network."""
        if bool(self.name) == bool(self.address):
            raise ConfigurationError(
                "say which SuperLink: --superlink with a name of your Flower configuration, or --superlink-address"
            )
        if self.address and self.root_certificates is None and not _is_loopback(self.address):
            raise ConfigurationError(
                f"SuperLink {self.address} is not on this machine: give the CA of its certificate "
                "(--superlink-certificates), or name it in your Flower configuration"
            )


class FlowerRuns:
    """Starts runs on one SuperLink, looks at them, and stops them; one process per call."""

    def __init__(self, superlink: SuperLink, folder: Path) -> None:
        """Use a SuperLink.

        Args:
            superlink: Which.
            folder: Gets the app, and Flower's configuration where the SuperLink is given by its address.

        Raises:
            ConfigurationError: Flower's command is not installed, or the folder cannot be written.
        """
        self._folder = folder
        self._name = superlink.name or _OWN_NAME
        self._command = _flwr()
        self._environment = {
            **os.environ,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_COLOR": "1",
        }
        if superlink.address:
            self._environment["FLWR_HOME"] = str(_write_configuration(folder / "flower", superlink))

    def check(self) -> None:
        """Return if the SuperLink answers.

        Raises:
            UnreachableError: It does not.
            RoundFailedError: It does, but refuses this user.
        """
        self._call("list", self._name, "--limit", "1")

    def start(self, run_config: Mapping[str, ConfigValue]) -> str:
        """Return Flower's id of a new run.

        Raises:
            UnreachableError: The SuperLink does not answer.
            RoundFailedError: It refuses the run.
        """
        app = write_app(self._folder / "app", run_config)
        return str(self._call("run", str(app), self._name)["run-id"])

    def look(self, run_id: str) -> RunSight:
        """Return where a run stands.

        Raises:
            NotFoundError: The SuperLink does not know the run: it was restarted.
            UnreachableError: The SuperLink does not answer.
        """
        (found,) = self._call("list", self._name, "--run-id", run_id)["runs"]
        status, details = str(found["status"]), str(found.get("status-details") or "")
        details = "" if details == "N/A" else details
        if not status.startswith("finished"):
            return RunSight(Outcome.ACTIVE, details)
        is_completed = status.endswith(":completed")
        return RunSight(Outcome.COMPLETED if is_completed else Outcome.FAILED, details or status)

    def stop(self, run_id: str) -> None:
        """Have a run stopped; one that has ended, or is not known, stays as it is.

        Raises:
            UnreachableError: The SuperLink does not answer.
        """
        try:
            self._call("stop", run_id, self._name)
        except (NotFoundError, RoundFailedError):
            return

    def _call(self, command: str, *arguments: str) -> dict[str, Any]:
        try:
            done = subprocess.run(  # noqa: S603  # our own words and a run's id
                [self._command, command, *arguments, "--format", "json"],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_CALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"flwr {command} did not end within {_CALL_SECONDS:g} s") from error
        answer = _parsed(done.stdout)
        if answer is None or not answer.get("success"):
            said = done.stderr if answer is None else str(answer.get("error-message", ""))
            raise _error(command, said or done.stdout)
        return answer


def _error(command: str, said: str) -> Exception:
    """Return what a failed call means."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1][:500] if lines else "no output"
    if _UNKNOWN_RUN in said:
        return NotFoundError(f"the SuperLink does not know this run: {last}")
    if any(text in said for text in _UNAVAILABLE):
        return UnreachableError(f"the SuperLink does not answer: {last}")
    return RoundFailedError(f"flwr {command} failed: {last}")


def _parsed(output: str) -> dict[str, Any] | None:
    start = output.find("{")
    try:
        answer = json.loads(output[start:]) if start >= 0 else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _write_configuration(folder: Path, superlink: SuperLink) -> Path:
    """Return a folder with a Flower configuration of this SuperLink alone; the user's own stays as it is."""
    lines = [f"[superlink.{_OWN_NAME}]", f"address = {toml_value('address', superlink.address)}"]
    if superlink.root_certificates is None:
        lines.append("insecure = true")
    else:
        path = superlink.root_certificates.expanduser().resolve()
        if not path.is_file():
            raise ConfigurationError(f"there is no file with certificates at {path}")
        lines.append(f"root-certificates = {toml_value('root-certificates', str(path))}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / "config.toml.tmp"
        fresh.write_text("\n".join([*lines, ""]), encoding="utf-8")
        fresh.replace(folder / "config.toml")
    except OSError as error:
        raise ConfigurationError(f"Flower's configuration cannot be written to {folder}: {error}") from error
    return folder


def _flwr() -> str:
    """Return Flower's command: that of this Python before any other."""
    own = Path(sys.executable).with_name("flwr")
    found = str(own) if own.exists() else shutil.which("flwr")
    if found is None:
        raise ConfigurationError("the command 'flwr' is not installed beside this Python; pip install flwr")
    return found


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
