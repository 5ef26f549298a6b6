"""Settings of the telemetry service."""

from dataclasses import dataclass

from quantization.errors import ConfigurationError
from server.telemetry_budget import DEFAULT_MAX_INPUTS_PER_SECOND


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """How often devices report, and how many reports are taken at once.

    Attributes:
        report_seconds: Mean time between two reports of one device.
        reports_per_second: Reports that the database is expected to take; the more devices wait, the later they are
            told to come again.
        max_waiting_calls: Calls that wait for the database; a further one is refused until later.
        calls_per_transaction: Calls that are stored together.
        wait_seconds: Longest time that a call waits for the database.
        max_inputs_per_second: Inputs that one device can answer; what reports it beyond that is not counted.
    """

    report_seconds: float = 60.0
    reports_per_second: float = 200.0
    max_waiting_calls: int = 8192
    calls_per_transaction: int = 128
    wait_seconds: float = 60.0
    max_inputs_per_second: float = DEFAULT_MAX_INPUTS_PER_SECOND

    def __post_init__(self) -> None:
        """Refuse what would stop the service."""
        wrong = [name for name in self.__slots__ if not getattr(self, name) > 0]
        if wrong:
            raise ConfigurationError(f"settings of the telemetry service must be above 0: {', '.join(wrong)}")
