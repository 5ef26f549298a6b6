"""How work in the background leaves the processor to inference."""

import os
import sys
import threading

_NICER, _NICEST = 5, 19  # than the process is, as whoever started it decided
_SWITCH_SECONDS = 0.0005


def lower_priority() -> bool:
    """Let the other threads of this process go first from now on; return whether the system can.

    On Linux every thread has a priority of its own, which the processes and threads that it starts inherit: so do the
    self-test and whatever builds a session. There is no way back for a process without privileges.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        thread = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, os.getpid()) + _NICER
        os.setpriority(os.PRIO_PROCESS, thread, min(nice, _NICEST))
    except OSError:
        return False
    return True


def switch_quickly() -> None:
    """Let a thread that waits for the interpreter have it after half a millisecond, not five.

    It holds for the whole process, and is never set back to something longer than it was.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
