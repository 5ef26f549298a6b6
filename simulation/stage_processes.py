"""Programs of a stage, any of which may be killed at any time, and whatever they leave behind.

Processes are told apart by the folders that stand for Flower's home in their environment, so whatever one of them
leaves behind is found, and ended, too.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from quantization.errors import ConfigurationError
from simulation.child_processes import descendants, die_with_parent

_LOG_TAIL = 3000
_STOP_SECONDS = 5.0


class StageProcesses:
    """Programs by name, each with a log in one folder."""

    def __init__(self, folder: Path, other_homes: Sequence[Path]) -> None:
        """Start nothing yet.

        Args:
            folder: Stands for the user's home; logs lie in it.
            other_homes: What else stands for Flower's home in the environment of something that these programs start.
        """
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = _environment(folder)
        homes = (folder / ".flwr", *other_homes)
        self._marks = [f"FLWR_HOME={home}\0".encode() for home in homes]

    def start(self, name: str, program: str, *arguments: str) -> None:
        """Start a program that is installed beside this Python, under a name that no other has that runs.

        Raises:
            ConfigurationError: It is not.
        """
        path = Path(sys.executable).with_name(program)
        if not path.exists():
            raise ConfigurationError(f"'{program}' is not installed beside this Python")
        with (self._folder / f"{name}.log").open("ab") as output:
            self._processes[name] = subprocess.Popen(  # noqa: S603  # our own commands
                [str(path), *arguments],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - it calls the kernel and nothing else
            )

    def ended(self) -> dict[str, int]:
        """Return by name the exit status of what has ended and was not started again."""
        statuses = {name: process.poll() for name, process in self._processes.items()}
        return {name: status for name, status in statuses.items() if status is not None}

    def kill(self, name: str, *, with_all_below: bool = False) -> bool:
        """Kill a program without a warning, and wait for its end; return whether it was there."""
        process = self._processes[name]
        victims = [process.pid, *(descendants(process.pid) if with_all_below else ())]
        found = [_kill(pid) for pid in victims]
        process.wait()
        return any(found)

    def kill_found(self, word: str) -> bool:
        """Kill whatever came of these programs and has a word in its command line; return whether there was any."""
        killed = [_kill(pid) for pid in self._found(word)]
        return any(killed)

    def tail(self, name: str) -> str:
        """Return the end of what a program logged."""
        return (self._folder / f"{name}.log").read_text(errors="replace")[-_LOG_TAIL:]

    def tails(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(f"== {name}\n{self.tail(name)}" for name in self._processes)

    def close(self) -> None:
        """End every program, and whatever they left behind."""
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in reversed(self._processes.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        for _ in range(3):  # a process may have started another while it was killed
            self.kill_found("")
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def _found(self, word: str) -> Iterator[int]:
        """Yield processes of this stage whose command line has a word."""
        for path in Path("/proc").iterdir():
            if not path.name.isdigit() or int(path.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                environment, command = (path / "environ").read_bytes(), (path / "cmdline").read_bytes()
                if any(mark in environment for mark in self._marks) and word.encode() in command:
                    yield int(path.name)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of a user whose home is `folder`, with this Python's commands and nothing of Flower's."""
    kept = {
        name: value for name, value in os.environ.items() if not re.match("FLWR_|RAY_|XDG_|QUANTFLEET_", name)
    }
    return kept | {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / ".flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
