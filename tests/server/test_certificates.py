"""The authority, and what its certificates say; that TLS holds to it is in tests/attacks."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from quantization.errors import ConfigurationError, MalformedError
from quantization.principal import Principal, Role
from server.certificates import Authority, CertificateLifetimes
from server.pem import (
    hosts_of,
    key_to_pem,
    new_key,
    parse_certificate,
    parse_key,
    principal_of,
    serial_of,
)

NOW = 1_800_000_000.0
DAY = 86_400.0
DEVICE = Principal(Role.DEVICE, "press-7")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(now_seconds=NOW)


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def verifier(authority: Authority, seconds: float = NOW) -> PolicyBuilder:
    store = Store([parse_certificate(authority.certificate_pem)])
    return PolicyBuilder().store(store).time(at(seconds))


@pytest.mark.parametrize("principal", [DEVICE, Principal(Role.OPERATOR, "ana")])
def test_a_client_is_verified_by_an_independent_reader(authority: Authority, principal: Principal) -> None:
    issued = authority.issue(principal, new_key().public_key(), now_seconds=NOW)
    certificate = parse_certificate(issued.certificate_pem)
    verified = verifier(authority).build_client_verifier().verify(certificate, [])
    assert verified.subjects is not None
    assert [name.value for name in verified.subjects] == [principal.uri]
    assert principal_of(certificate) == issued.principal == principal
    assert serial_of(certificate) == issued.serial
    assert certificate.not_valid_after_utc.timestamp() == issued.not_after_seconds


def test_a_server_is_verified_by_its_hosts(authority: Authority) -> None:
    hosts = ["fleet.example.org", "10.0.0.7", "::1"]
    issued = authority.issue_server("fleet", hosts, new_key().public_key(), now_seconds=NOW)
    certificate = parse_certificate(issued.certificate_pem)
    for host in (x509.DNSName("fleet.example.org"), *map(x509.IPAddress, _addresses("10.0.0.7", "::1"))):
        verifier(authority).build_server_verifier(host).verify(certificate, [])
    with pytest.raises(x509.verification.VerificationError):
        verifier(authority).build_server_verifier(x509.DNSName("other.example.org")).verify(certificate, [])
    assert hosts_of(certificate) == ("fleet.example.org", "10.0.0.7", "::1")
    assert principal_of(certificate) == Principal(Role.SERVER, "fleet")


def _addresses(*texts: str) -> list[IPv4Address | IPv6Address]:
    return [ip_address(text) for text in texts]


def test_a_certificate_is_good_from_an_hour_before_to_its_end(authority: Authority) -> None:
    issued = authority.issue(DEVICE, new_key().public_key(), now_seconds=NOW)
    certificate = parse_certificate(issued.certificate_pem)
    for seconds in (NOW - 3599, NOW + 90 * DAY - 1):
        verifier(authority, seconds).build_client_verifier().verify(certificate, [])
    for seconds in (NOW - 3601, NOW + 90 * DAY + 1):
        with pytest.raises(x509.verification.VerificationError):
            verifier(authority, seconds).build_client_verifier().verify(certificate, [])


def test_purposes_are_apart(authority: Authority) -> None:
    key = new_key().public_key()
    client = parse_certificate(authority.issue(DEVICE, key, now_seconds=NOW).certificate_pem)
    server = parse_certificate(authority.issue_server("a", ["b"], key, now_seconds=NOW).certificate_pem)
    usages = [c.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value for c in (client, server)]
    assert list(usages[0]) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert list(usages[1]) == [ExtendedKeyUsageOID.SERVER_AUTH]
    with pytest.raises(x509.verification.VerificationError):
        verifier(authority).build_client_verifier().verify(server, [])


def test_nobody_but_the_authority_can_sign(authority: Authority) -> None:
    issued = authority.issue(DEVICE, new_key().public_key(), now_seconds=NOW)
    extensions = parse_certificate(issued.certificate_pem).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    own = parse_certificate(authority.certificate_pem).extensions
    assert own.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_long_names_are_whole_in_the_uri(authority: Authority) -> None:
    principal = Principal(Role.DEVICE, "n" * 128)
    certificate = parse_certificate(
        authority.issue(principal, new_key().public_key(), now_seconds=NOW).certificate_pem
    )
    assert principal_of(certificate) == principal
    (common,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common.value == "n" * 64


def test_nothing_outlives_the_authority() -> None:
    lifetimes = CertificateLifetimes(authority=100.0, server=100.0, operator=100.0, device=90.0)
    short = Authority.create(now_seconds=NOW, lifetimes=lifetimes)
    issued = short.issue(DEVICE, new_key().public_key(), now_seconds=NOW + 50 * DAY)
    assert issued.not_after_seconds == NOW + 100 * DAY
    with pytest.raises(ConfigurationError, match="ended"):
        short.issue(DEVICE, new_key().public_key(), now_seconds=NOW + 101 * DAY)


def test_an_authority_is_read_back(authority: Authority) -> None:
    again = Authority.parse(authority.key_pem, authority.certificate_pem)
    assert again.fingerprint == authority.fingerprint
    issued = again.issue(DEVICE, new_key().public_key(), now_seconds=NOW)
    verifier(authority).build_client_verifier().verify(parse_certificate(issued.certificate_pem), [])


def test_a_key_of_another_authority_is_refused(authority: Authority) -> None:
    with pytest.raises(ConfigurationError, match="do not belong together"):
        Authority.parse(key_to_pem(new_key()), authority.certificate_pem)


@pytest.mark.parametrize("host", ["", "a b", "-", "a..b", "ü.de", "a" * 300, "http://a", "a:1"])
def test_what_is_no_host_is_refused(authority: Authority, host: str) -> None:
    with pytest.raises(ConfigurationError, match="host"):
        authority.issue_server("a", [host], new_key().public_key(), now_seconds=NOW)


@pytest.mark.parametrize("count", [0, 33])
def test_the_number_of_hosts_is_bounded(authority: Authority, count: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 32 hosts"):
        authority.issue_server("a", ["a.b"] * count, new_key().public_key(), now_seconds=NOW)


def test_the_authority_issues_no_server_by_name_alone(authority: Authority) -> None:
    with pytest.raises(ConfigurationError, match="no device and no operator"):
        authority.issue(Principal(Role.SERVER, "a"), new_key().public_key(), now_seconds=NOW)


@pytest.mark.parametrize("field", ["authority", "server", "operator", "device"])
@pytest.mark.parametrize("days", [0.0, -1.0, float("nan"), 40_000.0])
def test_lifetimes_are_checked(field: str, days: float) -> None:
    with pytest.raises(ConfigurationError, match="lifetimes"):
        CertificateLifetimes(**{field: days})


def named(*uris: str) -> x509.Certificate:
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "press-7")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, at(NOW), at(NOW) + timedelta(days=1))
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, SHA256())


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("quantfleet://device/a", "quantfleet://operator/a"),
        ("https://example.org",),
        ("quantfleet://king/a",),
    ],
    ids=["none", "two", "another", "no role"],
)
def test_a_certificate_that_names_nobody_or_two_is_refused(uris: tuple[str, ...]) -> None:
    with pytest.raises(MalformedError):
        principal_of(named(*uris))


def test_damaged_files_are_clear_errors(authority: Authority) -> None:
    with pytest.raises(ConfigurationError, match="not a private key"):
        parse_key(b"nothing")
    with pytest.raises(ConfigurationError, match="not a certificate"):
        parse_certificate(authority.certificate_pem[:100])
    certificate = parse_certificate(authority.certificate_pem)
    with pytest.raises(ConfigurationError, match="not a private key"):
        parse_key(certificate.public_bytes(Encoding.PEM))
