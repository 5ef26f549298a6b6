"""Settings of a fleet on one machine."""

from dataclasses import dataclass
from pathlib import Path

from quantization.errors import ConfigurationError
from simulation.bad_generations import BAD_KINDS
from simulation.drift import parse_drifts


@dataclass(frozen=True, slots=True)
class LocalFleetSettings:
    """What is shown.

    Attributes:
        agents: Devices.
        nodes: Those of them with a SuperNode beside the agent.
        drift: What the field does.
        bad: What is wrong with the bad generation; one of `BAD_KINDS`.
        registry_url: Of a database that is there; empty for SQLite, or a PostgreSQL of one's own.
        has_postgres: Whether to start one.
        has_prometheus: Likewise.
        lab_seconds: How long the world stays as the lab knows it, at least.
        wait_seconds: Longest that any one thing may take.
        seed: Of data and model.
        logs: Where logs go; None for a folder that is removed.
        cache_dir: Where trained models are kept; None for the user's.
    """

    agents: int = 12
    nodes: int = 4
    drift: str = "contrast=0.3"
    bad: str = "destroyed-ranges"
    registry_url: str = ""
    has_postgres: bool = False
    has_prometheus: bool = True
    lab_seconds: float = 12.0
    wait_seconds: float = 240.0
    seed: int = 0
    logs: Path | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what shows nothing."""
        if not 1 <= self.nodes <= self.agents or not 6 <= self.agents <= 100:
            raise ConfigurationError(
                f"the fleet has 6 to 100 agents, 1 or more of them with a SuperNode, not {self.agents} and {self.nodes}"
            )
        if self.bad not in BAD_KINDS:
            raise ConfigurationError(
                f"bad generation '{self.bad}' is unknown; known are {', '.join(BAD_KINDS)}"
            )
        if self.registry_url and self.has_postgres:
            raise ConfigurationError("give the URL of a database, or have one started, not both")
        parse_drifts((self.drift,))
