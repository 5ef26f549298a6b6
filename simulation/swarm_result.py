"""What came of a swarm."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """When devices did something, in seconds after the server could have told them.

    Attributes:
        devices: How many did.
        median_seconds: When half of those had.
        p95_seconds: When 95 of 100 of those had.
        max_seconds: When all of those had.
    """

    devices: int
    median_seconds: float
    p95_seconds: float
    max_seconds: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Return the spread of what was measured; zeros for nothing."""
        if not seconds:
            return cls(0, 0.0, 0.0, 0.0)
        median, p95, most = np.quantile(seconds, (0.5, 0.95, 1.0)).tolist()
        return cls(len(seconds), round(median, 3), round(p95, 3), round(most, 3))


@dataclass(frozen=True, slots=True)
class VersionResult:
    """One publication.

    Attributes:
        version: Of the target.
        changes: What is new in it, in words.
        told: When devices knew of it.
        current: When devices had fetched and verified it.
        received_bytes: Data of payloads that all devices received for it.
    """

    version: int
    changes: str
    told: Spread
    current: Spread
    received_bytes: int


@dataclass(frozen=True, slots=True)
class ServerUse:
    """What the server's process took.

    Attributes:
        peak_rss_bytes: Greatest resident set.
        cpu_seconds: Processor time, of all processes if it was killed.
        kills: How often it was.
    """

    peak_rss_bytes: int
    cpu_seconds: float
    kills: int


@dataclass(frozen=True, slots=True)
class SwarmResult:
    """What came of a swarm.

    Attributes:
        devices: How many there were.
        is_at_once: Whether they did not wait for their turn to fetch.
        faults: As `SwarmFaults` writes them; empty for none.
        versions: The first installation, then the upgrades.
        errors: Calls that failed and were made again, by kind.
        wrong_devices: Those that do not run the last version, or lack a part of it: name and why.
        received_bytes: Data of payloads.
        refetched_bytes: Those that had come before.
        refetched_payloads: Payloads of which at least a byte came again.
        verified_blobs: Blobs that were decoded and had the right digest.
        server: What the server took.
        wall_seconds: Of everything but preparing the model.
    """

    devices: int
    is_at_once: bool
    faults: str
    versions: Sequence[VersionResult]
    errors: Mapping[str, int]
    wrong_devices: Mapping[str, str]
    received_bytes: int
    refetched_bytes: int
    refetched_payloads: int
    verified_blobs: int
    server: ServerUse
    wall_seconds: float

    @property
    def is_good(self) -> bool:
        """Whether every device ended as it should."""
        return not self.wrong_devices

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)
