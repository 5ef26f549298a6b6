import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantization.errors import ConfigurationError, UnreachableError
from simulation.child_processes import ChildProcesses, interrupted_by_sigterm

_SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
_DEADLINE_SECONDS = 30.0
# Starts a child, which it leaves alone, and says its process id.
_LEAVER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
"""
_PARENT = """
import sys, time
from pathlib import Path
from simulation.child_processes import ChildProcesses
with ChildProcesses(Path(sys.argv[1])) as children:
    child = children.start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.process.pid, flush=True)
    time.sleep(600)
"""


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _await_gone(pid: int) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not _is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


def test_children_end_with_the_block(tmp_path: Path) -> None:
    with ChildProcesses(tmp_path) as children:
        child = children.start("sleeper", _SLEEP)
        assert child.first_line(_DEADLINE_SECONDS) == "ready\n"
        assert child.peak_rss_bytes() > 1 << 20
        children.check()
    assert _is_gone(child.process.pid)


def test_what_a_child_leaves_behind_ends_too(tmp_path: Path) -> None:
    with ChildProcesses(tmp_path) as children:
        child = children.start("leaver", [sys.executable, "-c", _LEAVER])
        left = int(child.first_line(_DEADLINE_SECONDS))
        assert not _is_gone(left)
    _await_gone(left)


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    _await_gone(child)


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with ChildProcesses(tmp_path) as children:
        child = children.start("failing", [sys.executable, "-c", "import sys; sys.exit('no luck')"])
        with pytest.raises(UnreachableError, match="'failing' ended with status 1: no luck"):
            children.finish(child, _DEADLINE_SECONDS)
        silent = children.start("silent", [sys.executable, "-c", "import sys; sys.exit('again')"])
        with pytest.raises(UnreachableError, match="did not start"):
            silent.first_line(_DEADLINE_SECONDS)
        silent.process.wait(_DEADLINE_SECONDS)  # its output ends a moment before it does
        with pytest.raises(UnreachableError, match="'silent' ended"):
            children.check()


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with ChildProcesses(tmp_path) as children, pytest.raises(ConfigurationError, match="'no-such-program'"):
        children.start("absent", ["no-such-program"])


def test_sigterm_ends_a_block_as_ctrl_c_does() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():  # noqa: PT012 - it comes when it comes
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_DEADLINE_SECONDS)
