"""Processes that a test interrupts."""

import signal


def listen_to_interrupts() -> None:
    """Undo that a shell's background jobs, and all that they start, ignore Ctrl-C; for `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
