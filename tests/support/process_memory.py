"""How much memory a process uses, as Linux counts it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Used:
    """Bytes that were used beyond those before; set when the block ends."""

    bytes: int = 0


def memory_bytes(field: str = "VmRSS", process: int | None = None) -> int:
    """Return a field of a process's status: resident memory now (VmRSS), or at most so far (VmHWM)."""
    status = Path(f"/proc/{process or os.getpid()}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:"))


@contextmanager
def peak_memory() -> Iterator[Used]:
    """Measure the most memory that this process uses in the block."""
    used = Used()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = memory_bytes()
    yield used
    used.bytes = memory_bytes("VmHWM") - before
