"""A real Prometheus in a temporary folder, and its tool for rules."""

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

_DEADLINE_SECONDS = 120.0
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end this process with the one that started it; for `preexec_fn`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def prometheus_tool() -> str:
    """Return the program that checks rules; skips where Prometheus is not installed."""
    return _program("promtool")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip("Prometheus is not installed (Debian package 'prometheus')")
    return found


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that runs.

    Attributes:
        address: Host and port.
    """

    address: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression gives now; raises `AssertionError` where Prometheus refuses it."""
        answer = self._get("query", query=expression)
        assert answer["status"] == "success", (expression, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expression: str) -> float | None:
        """Return the one value of an expression; None where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire now."""
        alerts = self._get("alerts")["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def metadata(self) -> set[str]:
        """Return the names of all metrics that were scraped, without `_total` and the like."""
        return set(self._get("metadata")["data"])

    def wait_for(self, expression: str, value: float = 1.0) -> None:
        """Wait until an expression has a value."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while (found := self.value(expression)) != value:
            assert time.monotonic() < deadline, f"{expression} is {found}, not {value}"
            time.sleep(0.2)

    def wait_for_alert(self, name: str) -> None:
        """Wait until an alert fires."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while name not in (firing := self.firing()):
            assert time.monotonic() < deadline, f"{name} does not fire; {sorted(firing)} do"
            time.sleep(0.2)

    def _get(self, path: str, **arguments: str) -> dict[str, Any]:
        url = f"http://{self.address}/api/v1/{path}?{urlencode(arguments)}"
        try:
            with urlopen(url, timeout=30) as answer:
                found: dict[str, Any] = json.load(answer)
        except URLError as error:
            body = error.read().decode() if hasattr(error, "read") else str(error)
            raise AssertionError(f"{path} {arguments}: {body}") from error
        return found


@contextmanager
def prometheus_server(
    folder: Path, targets: Mapping[str, Sequence[str]], rules: Sequence[Path]
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes targets by job every second; skips where it is not installed.

    Args:
        folder: For its settings and data.
        targets: Addresses by job.
        rules: Files of rules, copied first.
    """
    program = _program("prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    for path in rules:
        (folder / path.name).write_text(path.read_text())
    settings = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [path.name for path in rules],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
            for job, addresses in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{_free_port()}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it calls the kernel and nothing else
        )
    try:
        _wait_until_ready(address, process, folder / "log")
        yield Prometheus(address)
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def _wait_until_ready(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            with urlopen(f"http://{address}/-/ready", timeout=5):
                return
        except (URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
