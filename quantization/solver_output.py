"""Keeps what a solver prints away from standard output.

HiGHS, which `scipy.optimize.milp` runs, prints a line from C now and then, whatever its options say
(https://github.com/jump-dev/HiGHS.jl/issues/312). A command that prints JSON could then not be read by a machine.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_STDOUT = 1
_LOCK = threading.Lock()  # the file descriptor belongs to the process


@contextmanager
def discarded_solver_output() -> Iterator[None]:
    """Discard what C code writes to standard output inside.

    The file descriptor belongs to the whole process: what its other threads write to it meanwhile is lost too. One
    thread is inside at a time. Nothing happens where the process has no standard output.
    """
    with _LOCK:
        _flush()
        try:
            kept = os.dup(_STDOUT)
        except OSError:  # a daemon that closed it
            yield
            return
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, _STDOUT)
            os.close(sink)
            yield
        finally:
            _flush()
            os.dup2(kept, _STDOUT)
            os.close(kept)


def _flush() -> None:
    """Write out what C and Python hold back for standard output, so that it goes where it was meant to go."""
    with suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it
        sys.stdout.flush()
    with suppress(AttributeError, OSError, TypeError):  # a system whose C library is not part of the process
        ctypes.CDLL(None).fflush(None)
