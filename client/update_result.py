"""What becomes of an update on a device."""

from dataclasses import dataclass
from enum import StrEnum

from client.slots import Target


class Outcome(StrEnum):
    """What became of an update."""

    UNCHANGED = "unchanged"
    """What serves is what should serve."""
    DEFERRED = "deferred"
    """It is too large for the network that is there now."""
    INSTALLED = "installed"
    """It serves, as the first one of the device."""
    ON_TRIAL = "on_trial"
    """It serves, watched."""
    CONFIRMED = "confirmed"
    """It passed its trial."""
    REFUSED = "refused"
    """It does not load, or does not compute what it must; it never served."""
    REVERTED = "reverted"
    """It failed on trial, or was withdrawn; what served before serves."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an update, and why.

    Attributes:
        outcome: What became of it.
        target: Which one it was; None where there was none.
        reason: In words, where it was refused or reverted.
        fetched_bytes: What came over the network.
        retry_after_seconds: When the service wants to be asked again; 0 if it did not say.
    """

    outcome: Outcome
    target: Target | None = None
    reason: str = ""
    fetched_bytes: int = 0
    retry_after_seconds: float = 0.0
