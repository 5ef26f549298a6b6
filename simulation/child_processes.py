"""Processes that are started for a while and never outlive the one that started them.

The rules:

1. However this process ends, the kernel ends its children: each asks for SIGTERM at the death of its parent.
2. Children have sessions of their own, so that Ctrl-C reaches this process alone, which then ends them in order.
3. What a child starts and leaves behind comes to this process (it is a *subreaper*) and is ended with the rest.
"""

import contextlib
import ctypes
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from quantization.errors import ConfigurationError, UnreachableError

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_LOG_TAIL = 500
_STOP_SECONDS = 8.0


@dataclass(slots=True, eq=False)
class Child:
    """One process.

    Attributes:
        name: What it is, for messages.
        process: As `subprocess` has it.
        log: Where its stderr goes, and its stdout where nobody listens to it.
    """

    name: str
    process: subprocess.Popen[str]
    log: Path

    def write_line(self, line: str) -> None:
        """Tell it something; nobody listens if it is dead."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()

    def lines(self) -> Iterator[str]:
        """Yield what it says, until it has ended."""
        if self.process.stdout is not None:
            with contextlib.suppress(ValueError):  # it was forgotten meanwhile
                yield from self.process.stdout

    def first_line(self, seconds: float) -> str:
        """Return the first line that it says, and let nobody wait for the others.

        Raises:
            UnreachableError: It ended, or said nothing for too long.
        """
        said: queue.Queue[str] = queue.Queue()

        def read() -> None:
            for line in self.lines():
                said.put(line)
            said.put("")

        threading.Thread(target=read, daemon=True).start()
        with contextlib.suppress(queue.Empty):
            line = said.get(timeout=seconds)
            if line:
                return line
        raise UnreachableError(f"'{self.name}' did not start: {self.log_tail()}")

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
        """Log to files in a folder, which is made; logs of an earlier run go."""
        logs.mkdir(parents=True, exist_ok=True)
        for earlier in logs.glob("*.log"):
            earlier.unlink()
        self._logs = logs
        self._children: list[Child] = []
        self._others: frozenset[int] = frozenset()

    def __enter__(self) -> Self:
        self._others = frozenset(descendants(os.getpid()))
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        is_heard: bool = True,
        folder: Path | None = None,
    ) -> Child:
        """Start a process; must be called by the main thread, whose end the kernel takes for this process's.

        Args:
            name: Names its log.
            command: Program and arguments.
            environment: All of it; this process's own if None.
            is_heard: Whether somebody reads what it says on stdout.
            folder: Where it works; this process's own if None.

        Raises:
            ConfigurationError: If there is no such program.
        """
        log = self._logs / f"{name}.log"
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(  # noqa: S603 - the commands are this package's own
                    command,
                    stdin=subprocess.PIPE if is_heard else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if is_heard else output,
                    stderr=output,
                    text=True,
                    cwd=folder,
                    env=dict(environment) if environment is not None else None,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - it calls the kernel and nothing else
                )
        except FileNotFoundError as error:
            raise ConfigurationError(f"'{command[0]}' is not installed, or not on the path") from error
        child = Child(name, process, log)
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
            for pid in set(descendants(os.getpid())) - self._others:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)

    def finish(self, child: Child, seconds: float) -> str:
        """Return what a process said, once it has ended well; nobody else may listen to it.

        Raises:
            UnreachableError: It failed, or took too long.
        """
        try:
            said, _ = child.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"'{child.name}' did not end within {seconds:g} s") from error
        status = child.process.returncode
        self._children.remove(child)
        if status:
            raise UnreachableError(f"'{child.name}' ended with status {status}: {child.log_tail()}")
        return said or ""

    def check(self) -> None:
        """See that all are still there.

        Raises:
            UnreachableError: One has ended; says what it logged.
        """
        for child in self._children:
            if not child.is_running():
                raise UnreachableError(
                    f"'{child.name}' ended with status {child.process.returncode}: {child.log_tail()}"
                )

    def _forget(self, child: Child) -> None:
        child.process.wait()
        if child.process.stdin is not None:
            with contextlib.suppress(OSError):
                child.process.stdin.close()
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


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM at the parent's death; for `preexec_fn`, in a child before its program."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def descendants(pid: int) -> list[int]:
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
