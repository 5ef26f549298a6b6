"""Processes that are started for a while and never outlive the one that started them.

The rules:

1. However this process ends, the kernel ends its children: each asks for SIGTERM at the death of its parent.
2. Children have sessions of their own, so that Ctrl-C reaches this process alone, which then ends them in order.
3. What a child starts and leaves behind comes to this process (it is a *subreaper*) and is ended with the rest.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

from quantization.errors import ConfigurationError

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_LOG_TAIL = 2000
_STOP_SECONDS = 8.0


@dataclass(slots=True, eq=False)
class Child:
    """One process.

    Attributes:
        name: What it is, for messages.
        process: As `subprocess` has it.
        stdin: What it reads.
        stdout: What it says.
        log: Where its stderr goes.
    """

    name: str
    process: subprocess.Popen[str]
    stdin: IO[str]
    stdout: IO[str]
    log: Path

    def write_line(self, line: str) -> None:
        """Tell it something; nobody listens if it is dead."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.write(line + "\n")
            self.stdin.flush()

    def is_running(self) -> bool:
        """Return whether it has not ended."""
        return self.process.poll() is None

    def log_tail(self) -> str:
        """Return the end of what it logged."""
        return self.log.read_text(errors="replace")[-_LOG_TAIL:].strip()

    def peak_rss_bytes(self) -> int:
        """Return the greatest resident set that it has had; 0 once it is gone."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10
        return 0

    def cpu_seconds(self) -> float:
        """Return the processor time that it has taken; 0 once it is gone."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
        return 0.0


class ChildProcesses:
    """All children of one run; as a context manager it ends them, last started first."""

    def __init__(self, logs: Path) -> None:
        """Log to files in a folder, which is made."""
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def start(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> Child:
        """Start a process; must be called by the main thread, whose end the kernel takes for this process's.

        Args:
            name: Names its log.
            command: Program and arguments.
            environment: All of it; this process's own if None.

        Raises:
            ConfigurationError: If there is no such program.
        """
        log = self._logs / f"{name}.log"
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(  # noqa: S603 - the commands are this package's own
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    text=True,
                    env=dict(environment) if environment is not None else None,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,  # noqa: PLW1509 - it calls the kernel and nothing else
                )
        except FileNotFoundError as error:
            raise ConfigurationError(f"'{command[0]}' is not installed, or not on the path") from error
        if process.stdin is None or process.stdout is None:
            raise ConfigurationError(f"'{command[0]}' has no pipes")
        child = Child(name, process, process.stdin, process.stdout, log)
        self._children.append(child)
        return child

    def kill(self, child: Child) -> None:
        """End a process at once, without a warning."""
        child.process.kill()
        self._forget(child)

    def stop(self, child: Child, *, seconds: float = _STOP_SECONDS) -> int:
        """Ask a process to end, wait, and return its exit status; what does not end is killed."""
        if child.is_running():
            child.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(seconds)
        status = child.process.poll()
        child.process.kill()
        self._forget(child)
        return -signal.SIGKILL if status is None else status

    def stop_all(self) -> None:
        """Ask all to end, wait for them together, and kill those, and whatever they left, that do not."""
        for child in reversed(self._children):
            if child.is_running():
                child.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in reversed(self._children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
        for child in list(self._children):
            child.process.kill()
            self._forget(child)
        for _ in range(3):  # a process may have started another while it was killed
            for pid in _descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

    def check(self) -> None:
        """See that all are still there.

        Raises:
            ConfigurationError: One has ended; says what it logged.
        """
        for child in self._children:
            if not child.is_running():
                raise ConfigurationError(
                    f"'{child.name}' ended with status {child.process.returncode}: {child.log_tail()}"
                )

    def _forget(self, child: Child) -> None:
        child.process.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._children.remove(child)


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what is open is closed."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM at the parent's death; runs in the child, before its program."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _descendants(pid: int) -> list[int]:
    """Return the processes that came of one, nearest first."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in parents.get(parent, [])]
        found += new
    return found
