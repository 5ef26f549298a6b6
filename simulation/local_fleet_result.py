"""What came of a fleet on one machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulation.fleet_timeline import Series


@dataclass(frozen=True, slots=True)
class Accuracies:
    """The part of all inputs that the fleet answered rightly.

    Attributes:
        lab: In the world that the lab knows.
        drifted: In the field, before the tuner was done.
        tuned: Likewise, once every device ran the tuned version.
        least: Of any few seconds from the bad version's publication until no device ran it.
        after: Once it was taken back.
    """

    lab: float
    drifted: float
    tuned: float
    least: float
    after: float


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """One rollout.

    Attributes:
        version: That was rolled out.
        what: It was, in words.
        phases: Where it stood and since when, in seconds after it was opened.
        reason: Why it ended as it did.
        devices: That answered with the version.
        seconds: That it was open.
    """

    version: int
    what: str
    phases: Sequence[tuple[str, float]]
    reason: str
    devices: int
    seconds: float


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What Prometheus said.

    Attributes:
        expression: What it was asked.
        series: Labels and value of each series.
    """

    expression: str
    series: Sequence[tuple[Mapping[str, str], float]]


@dataclass(frozen=True, slots=True)
class LocalFleetResult:
    """What came of a fleet on one machine.

    Attributes:
        agents: Devices.
        nodes: Those of them with a SuperNode.
        database: "SQLite" or "PostgreSQL".
        drift: What the field did.
        bad: What was wrong with the bad generation.
        accuracies: Of the fleet.
        rollouts: The tuned one, then the bad one.
        canary_share: Part of the devices that answered with the bad version.
        asked: Inputs that agents were asked about.
        unanswered: Those that they did not answer.
        queries: What Prometheus said at the end.
        status: What `quantfleet-server status` printed at the end.
        history: What `quantfleet-server rollout list` printed.
        phases: What happened, and after how many seconds.
        series: The applications' counts over time.
        failures: What was not as it should be, in words.
        wall_seconds: Of everything.
    """

    agents: int
    nodes: int
    database: str
    drift: str
    bad: str
    accuracies: Accuracies
    rollouts: Sequence[RolloutResult]
    canary_share: float
    asked: int
    unanswered: int
    queries: Sequence[QueryResult]
    status: str
    history: str
    phases: Sequence[tuple[float, str]]
    series: Series
    failures: Sequence[str]
    wall_seconds: float

    @property
    def is_good(self) -> bool:
        """Whether everything went as it should."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)
