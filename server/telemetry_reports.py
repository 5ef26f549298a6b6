"""What devices report, as values, and what becomes of it."""

from dataclasses import dataclass

from quantization.errors import MalformedError
from server.tables import NAME_LENGTH
from server.telemetry_counts import TelemetryCounts

_MAX_SEQUENCE = (1 << 63) - 1
_MAX_VERSION = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a device counted since its last report.

    Attributes:
        model_digest: SHA-256 of the canonical float model, hex.
        device_class: Name of the device class.
        device_id: Name of the device, as its identity proves it.
        sequence: Grows with every report of the device, from 1.
        version: Version of the target that answered.
        counts: What was counted.
        failed_versions: Versions that could not be loaded, failed their self-test or their trial, one for each
            attempt; the device then runs, and reports of, another version.
        manifest_digest: SHA-256 of the manifest that answered, hex; empty where it is not known.
        observed_values: Values observed at activation sites.
        clipped_values: Those beyond their site's range.
    """

    model_digest: str
    device_class: str
    device_id: str
    sequence: int
    version: int
    counts: TelemetryCounts
    failed_versions: tuple[int, ...] = ()
    manifest_digest: str = ""
    observed_values: int = 0
    clipped_values: int = 0

    def __post_init__(self) -> None:
        """Refuse what no device can report."""
        if not 1 <= len(self.device_id) <= NAME_LENGTH:
            raise MalformedError(
                f"a device's name has 1 to {NAME_LENGTH} characters, not {len(self.device_id)}"
            )
        if not (1 <= self.sequence <= _MAX_SEQUENCE and 0 <= self.version <= _MAX_VERSION):
            raise MalformedError(f"report {self.sequence} of version {self.version}")


@dataclass(frozen=True, slots=True)
class DeviceReports:
    """What one device sends at once.

    Attributes:
        device_id: Name of the device, as its identity proves it.
        reports: In order of their sequence; none only asks what is stored.
    """

    device_id: str
    reports: tuple[DeviceReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Folded:
    """What became of the reports of one device.

    Attributes:
        stored_sequence: The device's reports up to this number are counted; 0 where none is.
        counted: Those that were new, in order of their sequence.
        implausible: How many of these told more than the device can have counted, and so count nothing.
    """

    stored_sequence: int
    counted: tuple[DeviceReport, ...] = ()
    implausible: int = 0
