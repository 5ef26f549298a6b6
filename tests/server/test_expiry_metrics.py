"""Tests of what expires, as metrics."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry
from trust import DAY, NOW, Repository

from server.expiry_metrics import ExpiryMetrics


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"quantfleet_{name}_expiry_seconds", labels)


def certificate(expires: datetime) -> bytes:
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(expires - timedelta(days=30)).not_valid_after(expires)
    return builder.sign(key, None).public_bytes(Encoding.PEM)


def test_each_role_says_when_its_newest_file_expires(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path)
    registry = CollectorRegistry()
    ExpiryMetrics(registry, repository.metadata.read)
    days = {"root": 365, "targets": 180, "snapshot": 7, "timestamp": 1}
    for role, lifetime in days.items():
        assert value(registry, "metadata", role=role) == NOW + lifetime * DAY
    repository.metadata.refresh(repository.online, now_seconds=NOW + 0.9 * DAY)
    assert value(registry, "metadata", role="timestamp") == NOW + 1.9 * DAY


def test_certificates_say_when_they_expire(tmp_path: Path) -> None:
    expires = datetime(2030, 1, 2, tzinfo=UTC)
    (tmp_path / "server.crt").write_bytes(certificate(expires))
    registry = CollectorRegistry()
    ExpiryMetrics(registry, certificates={"server": tmp_path / "server.crt", "ca": tmp_path / "ca.crt"})
    assert value(registry, "certificate", certificate="server") == expires.timestamp()
    assert value(registry, "certificate", certificate="ca") is None


def test_what_cannot_be_read_has_no_series(tmp_path: Path) -> None:
    (tmp_path / "server.crt").write_text("not a certificate")
    registry = CollectorRegistry()
    ExpiryMetrics(registry, lambda _role, _version: b"[]", {"server": tmp_path / "server.crt"})
    assert value(registry, "metadata", role="root") is None
    assert value(registry, "certificate", certificate="server") is None
