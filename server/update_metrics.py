"""Metrics of the update service; the number of devices does not change how many series there are."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class UpdateMetrics:
    """Metrics on the registry that is handed in.

    Attributes:
        watchers: Devices that watch this server process.
        sent_bytes: Bytes of payloads sent, by class and encoding.
        sent_blobs: Blobs sent to their end, likewise.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("device_class", "encoding")
        self.watchers = Gauge(
            "quantfleet_update_watchers", "Devices that watch this server process.", registry=registry
        )
        self.sent_bytes = Counter(
            "quantfleet_update_sent_bytes", "Bytes of blobs sent to devices.", labels, registry=registry
        )
        self.sent_blobs = Counter(
            "quantfleet_update_sent_blobs", "Blobs sent to devices to their end.", labels, registry=registry
        )
