"""What goes wrong in a simulated fleet: devices that die, and devices that answer too late."""

import numpy as np
from flwr.app import Message

from simulation.grid import Crash, Dropout, Fault, FaultFunction, Straggler
from strategies.records import HELLO

LATE_SECONDS = 1e6
"""A straggler answers after any deadline."""


def random_faults(dropout: float, stragglers: float, seed: int) -> FaultFunction | None:
    """Return faults drawn anew for each device and message, or None if there are none.

    Half of the devices that drop out die with an error, half are never heard of again. The hello round is spared:
    devices that are not there at all make the fleet smaller, which needs no simulation.

    Args:
        dropout: Fraction of devices that drop out of a round, 0 to 1.
        stragglers: Fraction of devices that answer after the deadline, 0 to 1.
        seed: Of the draws.
    """
    if dropout == 0 and stragglers == 0:
        return None
    rng = np.random.default_rng([seed, 4])

    def fault(position: int, message: Message) -> Fault | None:  # noqa: ARG001  # every device is as likely
        if message.metadata.message_type == HELLO:
            return None
        draw, kind = rng.random(2)
        if draw < dropout:
            return Crash() if kind < 0.5 else Dropout()
        return Straggler(LATE_SECONDS) if draw < dropout + stragglers else None

    return fault
