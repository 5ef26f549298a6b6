"""How much memory this process takes."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def rss_bytes() -> int:
    """Return the resident set; 0 where the system does not tell."""
    return _field("VmRSS:")


def peak_rss_bytes() -> int:
    """Return the greatest resident set so far; 0 where the system does not tell."""
    peak = _field("VmHWM:")
    if peak or sys.platform == "win32":
        return peak
    import resource  # noqa: PLC0415  # not on every system

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def _field(name: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0
