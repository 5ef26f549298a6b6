"""Who calls, by what a connection shows; over real connections it is tested in tests/attacks."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from call_contexts import CallContext

from quantization.errors import ForbiddenError, MalformedError, UnauthenticatedError
from quantization.principal import Principal, Role
from server.admin_service import AdminService
from server.certificates import Authority
from server.identity import LOCAL_OPERATOR, Identity
from server.peers import DEVICE_KEY
from server.pem import new_key
from server.telemetry_service import TelemetryService
from server.update_service import UpdateService

NOW = 1_800_000_000.0
DAY = 86_400.0
AUTHORITY = Authority.create(now_seconds=NOW)
DEVICE = AUTHORITY.issue(Principal(Role.DEVICE, "press-7"), new_key().public_key(), now_seconds=NOW)
OPERATOR = AUTHORITY.issue(Principal(Role.OPERATOR, "ana"), new_key().public_key(), now_seconds=NOW)
SERVER = AUTHORITY.issue_server("fleet", ["a.b"], new_key().public_key(), now_seconds=NOW)


def context(pem: bytes | None, *metadata: tuple[str, str]) -> Any:
    return CallContext(pem, metadata)


def certified(
    revoked: Callable[[str, str], bool] = lambda _serial, _uri: False, now: float = NOW
) -> Identity:
    return Identity.certified(revoked, clock=lambda: now)


def test_a_device_and_an_operator_are_named() -> None:
    assert certified().device(context(DEVICE.certificate_pem)) == "press-7"
    assert certified().operator(context(OPERATOR.certificate_pem)) == "ana"
    assert certified().is_certified


def test_the_caller_s_certificate_is_read() -> None:
    caller = certified().caller(context(DEVICE.certificate_pem))
    assert (caller.principal, caller.serial) == (DEVICE.principal, DEVICE.serial)
    assert caller.not_after_seconds == DEVICE.not_after_seconds


def test_roles_are_apart() -> None:
    with pytest.raises(ForbiddenError, match="role 'device', and quantfleet://operator/ana"):
        certified().device(context(OPERATOR.certificate_pem))
    with pytest.raises(ForbiddenError, match="role 'operator', and quantfleet://device/press-7"):
        certified().operator(context(DEVICE.certificate_pem))
    for named in (certified().device, certified().operator):
        with pytest.raises(ForbiddenError, match="quantfleet://server/fleet"):
            named(context(SERVER.certificate_pem))


def test_what_a_caller_says_in_metadata_counts_for_nothing() -> None:
    says = ((DEVICE_KEY, "somebody-else"),)
    assert certified().device(context(DEVICE.certificate_pem, *says)) == "press-7"
    with pytest.raises(UnauthenticatedError, match="needs a certificate"):
        certified().device(context(None, *says))


@pytest.mark.parametrize("now", [NOW - 3601, NOW + 90 * DAY + 1])
def test_a_certificate_that_ended_while_connected_is_refused(now: float) -> None:
    with pytest.raises(UnauthenticatedError, match="is good from"):
        certified(now=now).device(context(DEVICE.certificate_pem))


def test_the_revoked_are_refused() -> None:
    asked = []

    def is_revoked(serial: str, uri: str) -> bool:
        asked.append((serial, uri))
        return True

    with pytest.raises(UnauthenticatedError, match="was revoked"):
        certified(is_revoked).device(context(DEVICE.certificate_pem))
    assert asked == [(DEVICE.serial, "quantfleet://device/press-7")]


@pytest.mark.parametrize(
    "pem", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(UnauthenticatedError):
        certified().device(context(pem))


def test_the_authority_itself_is_nobody() -> None:
    with pytest.raises(UnauthenticatedError, match="names nobody"):
        certified().operator(context(AUTHORITY.certificate_pem))


def test_without_certificates_a_device_is_who_it_says() -> None:
    identity = Identity.insecure()
    assert not identity.is_certified
    assert identity.device(context(None, (DEVICE_KEY, "press-7"))) == "press-7"
    assert identity.operator(context(None)) == LOCAL_OPERATOR
    with pytest.raises(UnauthenticatedError, match=DEVICE_KEY):
        identity.device(context(None))
    with pytest.raises(MalformedError):
        identity.device(context(None, (DEVICE_KEY, "a/b")))


@pytest.mark.parametrize("service", [AdminService, TelemetryService, UpdateService])
def test_no_service_is_made_without_saying_who_names_callers(service: type) -> None:
    assert inspect.signature(service).parameters["identify"].default is inspect.Parameter.empty
