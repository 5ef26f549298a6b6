"""Flower's own processes for tests: a SuperLink, SuperNodes and runs, apart from the user's and gone after the test."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PROJECT = Path(__file__).parents[2]
_START_SECONDS = 60.0
_RUN_SECONDS = 240.0
_STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """How a run ended.

    Attributes:
        status: Such as "finished:completed" or "finished:failed".
        details: Flower's words on it.
        log: Everything the ServerApp wrote, and with Ray the ClientApps too.
    """

    status: str
    details: str
    log: str

    def events(self, name: str) -> list[str]:
        """Return the log's lines about an event."""
        return [line for line in self.log.splitlines() if f"event={name} " in line]


class FlowerProcesses:
    """A SuperLink and what belongs to it; as a context manager, it ends them all."""

    def __init__(self, folder: Path, *, is_simulation: bool) -> None:
        """Choose ports and folders; nothing runs yet.

        Args:
            folder: Stands for the user's home folder; Flower's state and all logs lie in it too.
            is_simulation: Whether nodes are simulated on Ray, as `flwr run` does by default.
        """
        self.home = folder
        self._is_simulation = is_simulation
        self._port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = _environment(folder, self._port)

    @property
    def address(self) -> str:
        """Host and port of the SuperLink."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        """Start the SuperLink; `flwr run` takes it for the one that it would start itself."""
        command = ["flower-superlink", "--insecure", "--host=127.0.0.1", f"--port={self._port}"]
        try:
            self._start(*command, *(["--simulation"] if self._is_simulation else []))
            self._wait("the SuperLink answers", self._is_answering, _START_SECONDS)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_supernode(self, node_config: str) -> None:
        """Start a device; the run waits for it, so this does not."""
        self._start(
            "flower-supernode",
            "--insecure",
            f"--superlink=127.0.0.1:{self._port}",
            f"--port={free_port()}",
            f"--node-config={node_config}",
        )

    def run(self, *options: str) -> FinishedRun:
        """Return how `flwr run .` of this project ended, with more options."""
        started = json.loads(self._flwr("run", str(PROJECT), "--format=json", *options))
        assert started["success"], started
        log = self._flwr("log", started["run-id"])  # ends with the run
        self._wait(
            "the run has a result",
            lambda: self._status(started["run-id"])[0].startswith("finished"),
            _START_SECONDS,
        )
        return FinishedRun(*self._status(started["run-id"]), log)

    def close(self) -> None:
        """End every process, SuperNodes first."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()

    def _start(self, *command: str) -> None:
        log = self.home / f"{command[0]}-{len(self._processes)}.log"
        with log.open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=self.home,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _flwr(self, command: str, *arguments: str) -> str:
        """Return what a `flwr` command prints."""
        done = subprocess.run(
            ["flwr", command, *arguments],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"flwr {command}: {done.stdout}{done.stderr}\n{self._logs()}"
        return done.stdout

    def _status(self, run_id: str) -> tuple[str, str]:
        """Return where a run stands, and Flower's words on it."""
        (found,) = json.loads(self._flwr("list", f"--run-id={run_id}", "--format=json"))["runs"]
        return found["status"], found["status-details"]

    def _is_answering(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _wait(self, goal: str, is_reached: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_reached():
            self._check_alive()
            assert time.monotonic() < deadline, f"not within {seconds} s: {goal}; {self._logs()}"
            time.sleep(0.2)

    def _check_alive(self) -> None:
        assert all(process.poll() is None for process in self._processes), self._logs()

    def _logs(self) -> str:
        """Return the end of every process's output, for the message of a failed test."""
        tails = [
            f"== {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in self.home.glob("*.log")
        ]
        return "\n".join(tails)


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(home: Path, port: int) -> dict[str, str]:
    """Return the environment of a user whose home is `home`, with this Python's commands and nothing of Flower's."""
    kept = {
        name: value for name, value in os.environ.items() if not re.match("FLWR_|RAY_|XDG_|QUANTFLEET_", name)
    }
    return kept | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home / ".flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
