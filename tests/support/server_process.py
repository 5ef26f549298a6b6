"""A real `quantfleet-server serve`, which ends with the test that started it."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
_START_SECONDS = 90.0
_STOP_SECONDS = 60.0


@dataclass
class ServerProcess:
    """One process that serves.

    Attributes:
        process: As `subprocess` has it.
        addresses: What it printed when it was ready.
        log: Its stderr.
    """

    process: subprocess.Popen[str]
    addresses: dict[str, str]
    log: Path

    @property
    def address(self) -> str:
        """Where devices and operators come."""
        return self.addresses["address"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(_STOP_SECONDS)


@contextmanager
def server_process(home: Path, *options: str) -> Iterator[ServerProcess]:
    """Serve in a process of its own while the block runs."""
    log = home / "serve.log"
    command = [sys.executable, "-m", "server.cli", "serve", "--home", str(home), "--verbose", *options]
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - it calls the kernel and nothing else
        )
    try:
        killer = threading.Timer(_START_SECONDS, process.kill)
        killer.start()
        assert process.stdout is not None
        line = process.stdout.readline()
        killer.cancel()
        assert line, f"it is not ready: {log.read_text()}"
        yield ServerProcess(process, json.loads(line), log)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def anywhere(*more: str) -> tuple[str, ...]:
    """Return options to serve on free ports of this machine, without certificates."""
    return ("--insecure", "--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0", *more)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
