"""How this process asks the system for memory; for the shells of a device to call once, before anything else."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 256 << 10


def keep_memory_small() -> bool:
    """Let freed blocks of 256 KiB and more go back to the system at once; return whether the system can.

    By default glibc raises that limit as large blocks come and go, and then keeps them: the activations of one
    observed batch would stay resident (ResNet-20, batches of 32: 15 MB). Single inferences use smaller blocks and
    run as fast as before; batches of 32 take about 1.5 times as long. The setting is the environment variable
    MALLOC_MMAP_THRESHOLD_, made from inside.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES) == 1)
