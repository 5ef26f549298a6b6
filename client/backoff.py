"""How long to wait before trying again: longer after every failure, and never the same for two devices."""

import random
from dataclasses import dataclass

_GROWTH = 2.0


@dataclass(slots=True)
class Backoff:
    """Waits that double with every failure in a row, each drawn from half to all of what it may be.

    Attributes:
        first_seconds: Longest wait after the first failure.
        most_seconds: Longest wait after many.
        rng: Draws the waits.
        failures: In a row, so far.
    """

    first_seconds: float
    most_seconds: float
    rng: random.Random
    failures: int = 0

    def next_seconds(self, least_seconds: float = 0.0) -> float:
        """Return how long to wait after one more failure.

        Args:
            least_seconds: What the service asks for; it has spread that over devices itself.
        """
        longest = min(self.most_seconds, self.first_seconds * _GROWTH ** min(self.failures, 64))
        self.failures += 1
        return max(least_seconds, longest * self.rng.uniform(0.5, 1.0))

    def reset(self) -> None:
        """Start over, because something worked."""
        self.failures = 0
