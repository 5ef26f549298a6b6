"""What a fleet's applications counted over time: who answered how much, with which version, and how much rightly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Moment:
    """What was counted in half a second.

    Attributes:
        at_seconds: When it ended, by the machine's monotonic clock.
        answered: Inputs that were answered.
        hits: Those that were answered rightly.
        versions: By device: the version that answered last.
    """

    at_seconds: float
    answered: int
    hits: int
    versions: Mapping[str, int]


@dataclass(slots=True)
class Timeline:
    """All moments so far.

    Attributes:
        moments: In order.
        asked: Inputs that agents were asked about.
        unanswered: Those that they did not answer.
        errors: What they said then, some of it.
    """

    moments: list[Moment] = field(default_factory=list)
    asked: int = 0
    unanswered: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a record of `simulation.fleet_load`."""
        answered = hits = 0
        versions = dict(self.moments[-1].versions) if self.moments else {}
        for name, counts in record["devices"].items():
            self.asked += counts["asked"]
            self.unanswered += counts["unanswered"]
            self.errors = (self.errors + counts["errors"])[:20]
            for version, (number, right) in counts["versions"].items():
                answered, hits = answered + number, hits + right
                versions[name] = int(version)
        self.moments.append(Moment(record["at_seconds"], answered, hits, versions))

    def accuracy(self, since_seconds: float, until_seconds: float = float("inf")) -> tuple[float, int]:
        """Return the part of answers that were right, and of how many, within a time; 0 of none."""
        chosen = [m for m in self.moments if since_seconds < m.at_seconds <= until_seconds]
        answered = sum(moment.answered for moment in chosen)
        return (sum(moment.hits for moment in chosen) / answered if answered else 0.0), answered

    def least_accuracy(
        self, since_seconds: float, until_seconds: float, window_seconds: float
    ) -> tuple[float, int]:
        """Return the lowest accuracy of any window within a time, and of how many answers."""
        found = [
            self.accuracy(moment.at_seconds - window_seconds, moment.at_seconds)
            for moment in self.moments
            if since_seconds + window_seconds < moment.at_seconds <= until_seconds
        ]
        return min(found, default=(1.0, 0))

    def devices_with(self, version: int) -> set[str]:
        """Return the devices that have answered with a version."""
        return {n for moment in self.moments for n, found in moment.versions.items() if found == version}

    def series(self, since_seconds: float, step_seconds: float) -> "Series":
        """Return the timeline in steps, for plots."""
        if not self.moments:
            return Series((), (), {})
        last = self.moments[-1].at_seconds
        count = max(1, int((last - since_seconds) / step_seconds))
        ends = [since_seconds + step_seconds * (number + 1) for number in range(count)]
        accuracies = []
        for end in ends:
            accuracy, answered = self.accuracy(end - step_seconds, end)
            accuracies.append(accuracy if answered else None)
        versions = sorted({version for moment in self.moments for version in moment.versions.values()})
        devices = {version: tuple(self._running(version, end) for end in ends) for version in versions}
        return Series(tuple(end - since_seconds for end in ends), tuple(accuracies), devices)

    def _running(self, version: int, at_seconds: float) -> int:
        """Return how many devices ran a version at a time."""
        before = [moment for moment in self.moments if moment.at_seconds <= at_seconds]
        return sum(found == version for found in before[-1].versions.values()) if before else 0


@dataclass(frozen=True, slots=True)
class Series:
    """A timeline in steps.

    Attributes:
        seconds: When each step ended.
        accuracies: Part of right answers in each; None where there were none.
        devices: By version: how many devices ran it at the end of each.
    """

    seconds: Sequence[float]
    accuracies: Sequence[float | None]
    devices: Mapping[int, Sequence[int]]
