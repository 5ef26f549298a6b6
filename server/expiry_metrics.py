"""When what devices trust expires: signed metadata, and certificates of the server and of its authority."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from cryptography import x509
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quantization.errors import QuantFleetError
from server.keys import ROLES


class ExpiryMetrics(Collector):
    """Reads a few small files on every scrape; what cannot be read has no series."""

    def __init__(
        self,
        registry: CollectorRegistry,
        read_metadata: Callable[[str, int], bytes] | None = None,
        certificates: Mapping[str, Path] | None = None,
    ) -> None:
        """Register with a registry of metrics.

        Args:
            registry: What the metrics are made on.
            read_metadata: From role and version (0 for the newest) to signed metadata: `SignedMetadata.read`; None
                where nothing is signed.
            certificates: Files by the name of what they certify, such as "server" and "ca".
        """
        self._read_metadata = read_metadata
        self._certificates = dict(certificates or {})
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Name nothing: registering must not read files."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield when each role's metadata and each certificate expires, seconds since 1970 (UTC)."""
        metadata = GaugeMetricFamily(
            "quantfleet_metadata_expiry_seconds",
            "When the newest signed metadata of a role expires, since 1970 (UTC).",
            labels=("role",),
        )
        certificates = GaugeMetricFamily(
            "quantfleet_certificate_expiry_seconds",
            "When a certificate expires, since 1970 (UTC).",
            labels=("certificate",),
        )
        for role in ROLES if self._read_metadata is not None else ():
            if (expires := self._metadata_expires(role)) is not None:
                metadata.add_metric([role], expires)
        for name, path in self._certificates.items():
            if (expires := _certificate_expires(path)) is not None:
                certificates.add_metric([name], expires)
        yield from (metadata, certificates)

    def _metadata_expires(self, role: str) -> float | None:
        if self._read_metadata is None:
            return None
        try:
            text = json.loads(self._read_metadata(role, 0))["signed"]["expires"]
            return datetime.fromisoformat(text).timestamp()
        except (QuantFleetError, OSError, ValueError, KeyError, TypeError):
            return None


def _certificate_expires(path: Path) -> float | None:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    return certificate.not_valid_after_utc.timestamp()
