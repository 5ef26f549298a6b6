"""Running totals of what the devices of a class count, so that nobody has to read all devices to know them."""

from dataclasses import dataclass

TotalsKey = tuple[str, str, int]
"""A model's digest, the name of a device class, and a version."""


@dataclass(frozen=True, slots=True)
class ClassTotals:
    """Sums over the devices of a class.

    Attributes:
        devices: Devices that last reported the version.
        samples: As in `TelemetryCounts`, like all that follow.
        failures: Inputs that should have been answered and were not.
        load_failures: Times that the version could not be built.
        labelled: Samples whose class became known.
        hits: Labelled samples that were right.
        judged: Samples that another model answered too.
        agreements: Those where both said the same.
        observed_values: Values observed at activation sites.
        clipped_values: Those beyond their site's range.
    """

    devices: int = 0
    samples: int = 0
    failures: int = 0
    load_failures: int = 0
    labelled: int = 0
    hits: int = 0
    judged: int = 0
    agreements: int = 0
    observed_values: int = 0
    clipped_values: int = 0
