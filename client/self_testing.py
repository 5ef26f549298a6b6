"""Tries an artifact before anything depends on it: does it load, and does it compute what it must?

`check_session` compares a session with what the artifact says that it must give. `run_isolated` does so in a process of
its own, so that a graph which kills its process, or never ends, kills nothing else.
"""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from client.folder_lock import Access
from client.runtime import Runtime
from client.slots import Target
from client.state import StateFolder
from quantization.errors import (
    DigestMismatchError,
    NotFoundError,
    OverloadedError,
    QuantFleetError,
    UpdateRejectedError,
)

IsolatedTest = Callable[[Path, str], None]
"""Tries the artifact that a manifest's digest names in a state folder.

UpdateRejectedError if it fails; NotFoundError if it is not all there; anything else says nothing of the artifact.
"""

_UNCAUGHT = 1  # exit code of Python where an exception ended it
_REFUSED, _INCOMPLETE, _NO_MEMORY = 3, 4, 5  # exit codes that Python itself does not use
_FROM_OUTSIDE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a service that is stopped, Ctrl-C
_NO_MEMORY_WORDS = (  # of Python, the loader, OpenBLAS, C++ and ONNX Runtime
    "MemoryError",
    "failed to map segment",
    "Cannot allocate memory",
    "Memory allocation still failed",
    "bad_alloc",
    "bad allocation",
    "Failed to allocate memory",
)
_LONGEST_REASON = 500
_MEMORY_PAUSE_SECONDS = 600.0  # memory that is short now may be there again


def run_isolated(folder: Path, manifest_digest: str, timeout_seconds: float = 120.0) -> None:
    """Load an artifact and run its self-test in another process, which is gone when this returns.

    Takes about half a second and, for as long, the memory of one more runtime.

    Args:
        folder: State folder that holds the artifact.
        manifest_digest: Names it.
        timeout_seconds: After which it counts as failed.

    Raises:
        UpdateRejectedError: If it fails, kills its process, or takes longer.
        NotFoundError: If a blob of it is missing or damaged.
        OverloadedError: If somebody ended the process, or there was too little memory for it, which need not be the
            artifact's fault.
    """
    command = [sys.executable, "-m", "client.self_testing", str(folder.absolute()), manifest_digest]
    try:
        done = subprocess.run(  # noqa: S603  # our own module
            command,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UpdateRejectedError(f"the self-test was not done after {timeout_seconds:.0f} s") from error
    if -done.returncode in _FROM_OUTSIDE:
        raise OverloadedError(f"the self-test was ended from outside, signal {-done.returncode}", 0.0)
    if -done.returncode == signal.SIGKILL or _is_short_of_memory(done):
        raise OverloadedError(
            "the self-test was killed, or found too little memory; it is done again later",
            _MEMORY_PAUSE_SECONDS,
        )
    if done.returncode < 0:
        raise UpdateRejectedError(
            f"the artifact killed the process of its self-test, signal {-done.returncode}"
        )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        error_type = NotFoundError if done.returncode == _INCOMPLETE else UpdateRejectedError
        raise error_type(f"the self-test failed: {reason:.{_LONGEST_REASON}}")


def _is_short_of_memory(done: "subprocess.CompletedProcess[str]") -> bool:
    """Return whether a process says that there was too little memory, whichever way it ended."""
    if done.returncode in (_UNCAUGHT, -signal.SIGABRT):
        return any(words in done.stderr for words in _NO_MEMORY_WORDS)
    return done.returncode == _NO_MEMORY


def load(folder: Path, manifest_digest: str) -> None:
    """Load an artifact of a state folder and run its self-test, as `Runtime` does before it serves.

    Raises:
        QuantFleetError: If it fails.
    """
    with StateFolder(folder, Access.GUEST) as state:
        manifest = state.read_manifest(Target(0, manifest_digest))
        if manifest is None:
            raise NotFoundError(f"no artifact {manifest_digest[:12]} in {folder}")
        Runtime(manifest, state.read_blob).close()


def _main(arguments: list[str]) -> int:
    """Run one self-test; the exit code says how it went."""
    try:
        load(Path(arguments[0]), arguments[1])
    except MemoryError:
        return _NO_MEMORY
    except QuantFleetError as error:
        sys.stderr.write(f"{error}\n")
        if any(words in str(error) for words in _NO_MEMORY_WORDS):
            return _NO_MEMORY
        return _INCOMPLETE if isinstance(error, NotFoundError | DigestMismatchError) else _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
