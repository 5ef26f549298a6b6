"""Tokens, devices and revocations on a real SQLite file, and on a real PostgreSQL server."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgres_server import postgres_server
from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from quantization.errors import (
    ConfigurationError,
    ForbiddenError,
    MalformedError,
    NotFoundError,
    OverloadedError,
    QuantFleetError,
    UnauthenticatedError,
)
from quantization.principal import Principal, Role
from server.certificates import Issued
from server.database import connect
from server.entries import AuditEntry
from server.identity_registry import MIN_RENEWAL_SECONDS, IdentityRegistry
from server.identity_tables import CertificateRow, EnrolmentTokenRow
from server.registry import Registry
from server.tables import Base

HOUR, DAY = 3600.0, 86_400.0
START = 1_800_000_000.0
KEY, OTHER = "aa" * 45, "bb" * 45


class Clock:
    now = START

    def __call__(self) -> float:
        return self.now


class Signer:
    """Signs without keys: serial numbers count up."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.count = 0

    def __call__(self, principal: Principal) -> Issued:
        with self._lock:
            self.count += 1
            return Issued(principal, f"{self.count:x}", b"pem", self._clock() + 90 * DAY)


@pytest.fixture(scope="session")
def identity_postgres() -> Iterator[str]:
    with postgres_server() as url:
        Registry.open(url).close()
        yield url


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("identity") / "registry.db"
    Registry.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_file: Path) -> str:
    if request.param == "postgresql":
        url: str = request.getfixturevalue("identity_postgres")
        with transaction(url) as connection:
            connection.exec_driver_sql("TRUNCATE enrolment_tokens, devices, certificates, audit")
        return url
    shutil.copy(empty_file, tmp_path / "registry.db")
    return f"sqlite:///{tmp_path / 'registry.db'}"


@contextmanager
def transaction(url: str) -> Iterator[Connection]:
    engine = connect(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sign(clock: Clock) -> Signer:
    return Signer(clock)


@pytest.fixture
def registry(url: str, clock: Clock) -> Iterator[IdentityRegistry]:
    with IdentityRegistry(connect(url), clock) as opened:
        yield opened


def secret(registry: IdentityRegistry, device: str | None = None, seconds: float = HOUR) -> str:
    return registry.new_token(valid_seconds=seconds, actor="ana", device=device).secret


def test_the_migrations_make_the_tables_that_the_code_declares(url: str, registry: IdentityRegistry) -> None:
    assert registry.devices() == ()
    with transaction(url) as connection:
        context = MigrationContext.configure(connection)
        mine = [
            change
            for change in compare_metadata(context, Base.metadata)
            if any(name in str(change) for name in ("enrolment_tokens", "devices", "certificates"))
        ]
        assert mine == []


def test_a_device_is_enrolled(registry: IdentityRegistry, sign: Signer) -> None:
    issued = registry.enrol(secret(registry, "press-7"), KEY, "press-7", sign, peer="10.0.0.1")
    assert issued.principal == Principal(Role.DEVICE, "press-7")
    (device,) = registry.devices()
    assert device == registry.device("press-7")
    assert (device.name, device.serial, device.public_key) == ("press-7", issued.serial, KEY)
    assert device.enrolled_at_seconds == device.issued_at_seconds == START
    assert device.not_after_seconds == issued.not_after_seconds
    assert device.status(START) == "enrolled"
    assert device.status(START + 91 * DAY) == "expired"
    (token,) = registry.tokens()
    assert (token.device, token.used_by, token.used_at_seconds) == ("press-7", "press-7", START)


@pytest.mark.parametrize(("bound", "wanted", "name"), [("a", "", "a"), ("a", "a", "a"), (None, "b", "b")])
def test_the_token_or_the_device_says_the_name(
    registry: IdentityRegistry, sign: Signer, bound: str | None, wanted: str, name: str
) -> None:
    assert registry.enrol(secret(registry, bound), KEY, wanted, sign).principal.name == name


def test_the_secret_is_not_in_the_database(registry: IdentityRegistry, url: str) -> None:
    said = secret(registry)
    with transaction(url) as connection, Session(connection) as session:
        row = session.scalars(select(EnrolmentTokenRow)).one()
        assert said not in str(vars(row))
        assert row.secret_digest.startswith(row.token_id)
    assert said not in str(audit(url))


def test_secrets_differ_and_are_long(registry: IdentityRegistry) -> None:
    secrets = {secret(registry) for _ in range(20)}
    assert len(secrets) == 20
    assert {len(one) for one in secrets} == {43}


@pytest.mark.parametrize("wrong", ["", "x", "y" * 43, "z" * 100_000])
def test_a_guessed_token_is_refused(registry: IdentityRegistry, sign: Signer, wrong: str) -> None:
    secret(registry)
    with pytest.raises(UnauthenticatedError, match="unknown"):
        registry.enrol(wrong, KEY, "a", sign)
    assert sign.count == 0


def test_a_token_with_the_same_first_digits_is_refused(
    registry: IdentityRegistry, sign: Signer, url: str
) -> None:
    said = secret(registry)
    with transaction(url) as connection, Session(connection) as session:
        row = session.scalars(select(EnrolmentTokenRow)).one()
        row.secret_digest = row.secret_digest[:-1] + ("0" if row.secret_digest[-1] != "0" else "1")
        session.commit()
    with pytest.raises(UnauthenticatedError, match="unknown"):
        registry.enrol(said, KEY, "a", sign)


def test_an_expired_token_is_refused(registry: IdentityRegistry, sign: Signer, clock: Clock) -> None:
    said = secret(registry, seconds=60.0)
    clock.now += 61
    with pytest.raises(UnauthenticatedError, match="expired"):
        registry.enrol(said, KEY, "a", sign)


def test_a_token_is_used_once(registry: IdentityRegistry, sign: Signer) -> None:
    said = secret(registry)
    registry.enrol(said, KEY, "a", sign)
    for wanted in ("a", "b", ""):
        with pytest.raises(UnauthenticatedError, match="used already"):
            registry.enrol(said, OTHER, wanted, sign)
    assert sign.count == 1


def test_a_device_that_lost_the_answer_asks_again(
    registry: IdentityRegistry, sign: Signer, clock: Clock
) -> None:
    said = secret(registry)
    first = registry.enrol(said, KEY, "a", sign)
    second = registry.enrol(said, KEY, "a", sign)
    assert registry.device("a").serial == second.serial != first.serial
    assert registry.revoked().serials == {first.serial}
    with pytest.raises(ForbiddenError, match="not for 'b'"):
        registry.enrol(said, KEY, "b", sign)
    clock.now += 2 * HOUR
    with pytest.raises(UnauthenticatedError, match="expired"):
        registry.enrol(said, KEY, "a", sign)


def test_a_used_token_does_not_bring_a_revoked_device_back(registry: IdentityRegistry, sign: Signer) -> None:
    said = secret(registry)
    registry.enrol(said, KEY, "a", sign)
    registry.revoke_device("a", actor="ana")
    with pytest.raises(UnauthenticatedError, match="used already"):
        registry.enrol(said, KEY, "a", sign)


def test_a_used_token_does_not_take_a_name_back(registry: IdentityRegistry, sign: Signer) -> None:
    said = secret(registry)
    registry.enrol(said, KEY, "a", sign)
    registry.enrol(secret(registry, "a"), OTHER, "a", sign)
    with pytest.raises(UnauthenticatedError, match="used already"):
        registry.enrol(said, KEY, "a", sign)
    assert registry.device("a").public_key == OTHER


def test_a_token_for_another_name_is_refused(registry: IdentityRegistry, sign: Signer) -> None:
    said = secret(registry, "a")
    with pytest.raises(ForbiddenError, match="for device 'a', not for 'b'"):
        registry.enrol(said, KEY, "b", sign)
    assert registry.enrol(said, KEY, "a", sign).principal.name == "a"


def test_a_free_token_takes_nobody_s_name(registry: IdentityRegistry, sign: Signer) -> None:
    registry.enrol(secret(registry), KEY, "a", sign)
    with pytest.raises(ForbiddenError, match="'a' already"):
        registry.enrol(secret(registry), OTHER, "a", sign)
    registry.revoke_device("a", actor="ana")
    with pytest.raises(ForbiddenError, match="'a' already"):
        registry.enrol(secret(registry), OTHER, "a", sign)


@pytest.mark.parametrize("wanted", ["", "a/b", "-a", "x" * 129, "a\n"])
def test_a_name_is_said_and_is_one(registry: IdentityRegistry, sign: Signer, wanted: str) -> None:
    said = secret(registry)
    with pytest.raises(MalformedError):
        registry.enrol(said, KEY, wanted, sign)
    assert registry.tokens()[0].used_by is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 31 * DAY])
def test_a_token_has_an_end(registry: IdentityRegistry, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="a token is good for"):
        registry.new_token(valid_seconds=seconds, actor="ana")


def test_old_tokens_are_forgotten(registry: IdentityRegistry, clock: Clock) -> None:
    secret(registry)
    clock.now += 31 * DAY
    secret(registry, "b")
    assert [token.device for token in registry.tokens()] == ["b"]


def test_a_lost_device_is_replaced_by_a_token_for_its_name(registry: IdentityRegistry, sign: Signer) -> None:
    first = registry.enrol(secret(registry, "a"), KEY, "a", sign)
    second = registry.enrol(secret(registry, "a"), OTHER, "a", sign)
    assert registry.device("a").public_key == OTHER
    revoked = registry.revoked()
    assert revoked.holds(first.serial, first.principal.uri)
    assert not revoked.holds(second.serial, second.principal.uri)


def test_a_revoked_device_is_refused_under_all_its_certificates(
    registry: IdentityRegistry, sign: Signer, clock: Clock
) -> None:
    first = registry.enrol(secret(registry), KEY, "a", sign)
    clock.now += DAY
    second = registry.renew("a", first.serial, KEY, sign)
    other = registry.enrol(secret(registry), OTHER, "b", sign)
    clock.now += 1
    assert registry.revoke_device("a", actor="ana", reason="stolen").revoked_at_seconds == clock.now
    revoked = registry.revoked()
    for serial in (first.serial, second.serial, "of a database that was restored"):
        assert revoked.holds(serial, "quantfleet://device/a")
    assert not revoked.holds(other.serial, "quantfleet://device/b")
    assert not revoked.holds("1234", "quantfleet://operator/a")
    assert registry.device("a").status(clock.now) == "revoked"


def test_revoking_twice_is_revoking_once(
    registry: IdentityRegistry, sign: Signer, clock: Clock, url: str
) -> None:
    registry.enrol(secret(registry), KEY, "a", sign)
    first = registry.revoke_device("a", actor="ana")
    clock.now += 1
    assert registry.revoke_device("a", actor="bo") == first
    assert [entry.action for entry in audit(url)].count("device_revoked") == 1


def test_revoking_ends_tokens_for_the_name(registry: IdentityRegistry, sign: Signer, clock: Clock) -> None:
    registry.enrol(secret(registry, "a"), KEY, "a", sign)
    waiting = secret(registry, "a")
    registry.revoke_device("a", actor="ana")
    clock.now += 1
    with pytest.raises(UnauthenticatedError, match="expired"):
        registry.enrol(waiting, OTHER, "a", sign)
    registry.enrol(secret(registry, "a"), OTHER, "a", sign)
    assert registry.device("a").revoked_at_seconds is None
    assert registry.revoked().principals == frozenset()


def test_nobody_is_revoked_by_mistake(registry: IdentityRegistry) -> None:
    with pytest.raises(NotFoundError, match="devices list"):
        registry.revoke_device("nobody", actor="ana")
    with pytest.raises(NotFoundError):
        registry.device("nobody")


def test_what_has_expired_need_not_be_known(
    registry: IdentityRegistry, sign: Signer, clock: Clock, url: str
) -> None:
    first = registry.enrol(secret(registry), KEY, "a", sign)
    registry.revoke_device("a", actor="ana")
    assert registry.revoked().serials == {first.serial}
    clock.now += 91 * DAY
    assert registry.revoked().serials == registry.revoked().principals == frozenset()
    registry.enrol(secret(registry, "a"), KEY, "a", sign)
    with transaction(url) as connection, Session(connection) as session:
        assert session.scalars(select(CertificateRow.serial)).all() == [registry.device("a").serial]


def test_a_renewal_gives_the_next_certificate(registry: IdentityRegistry, sign: Signer, clock: Clock) -> None:
    first = registry.enrol(secret(registry), KEY, "a", sign)
    clock.now += 60 * DAY
    second = registry.renew("a", first.serial, KEY, sign)
    assert second.principal.name == "a"
    device = registry.device("a")
    assert (device.serial, device.not_after_seconds) == (second.serial, clock.now + 90 * DAY)
    assert device.enrolled_at_seconds == START
    assert registry.revoked().serials == frozenset()


def test_renewals_are_rare(registry: IdentityRegistry, sign: Signer, clock: Clock) -> None:
    first = registry.enrol(secret(registry), KEY, "a", sign)
    clock.now += MIN_RENEWAL_SECONDS - 10
    with pytest.raises(OverloadedError) as caught:
        registry.renew("a", first.serial, KEY, sign)
    assert caught.value.retry_after_seconds == 10.0
    clock.now += 10
    registry.renew("a", first.serial, KEY, sign)


def test_a_renewal_is_for_the_device_that_has_the_key(
    registry: IdentityRegistry, sign: Signer, clock: Clock
) -> None:
    first = registry.enrol(secret(registry), KEY, "a", sign)
    clock.now += DAY
    with pytest.raises(ForbiddenError, match="keeps the key"):
        registry.renew("a", first.serial, OTHER, sign)
    with pytest.raises(UnauthenticatedError, match="never enrolled"):
        registry.renew("b", first.serial, KEY, sign)


def test_a_revoked_device_or_certificate_is_not_renewed(
    registry: IdentityRegistry, sign: Signer, clock: Clock
) -> None:
    said = secret(registry)
    old = registry.enrol(said, KEY, "a", sign)
    new = registry.enrol(said, KEY, "a", sign)
    clock.now += DAY
    with pytest.raises(UnauthenticatedError, match="revoked"):
        registry.renew("a", old.serial, KEY, sign)
    registry.revoke_device("a", actor="ana")
    with pytest.raises(UnauthenticatedError, match="revoked"):
        registry.renew("a", new.serial, KEY, sign)


def test_an_operator_s_certificate_is_revoked(registry: IdentityRegistry, clock: Clock, url: str) -> None:
    ana = Principal(Role.OPERATOR, "ana")
    for _ in range(2):
        registry.revoke_certificate(ana, "ab12", clock() + DAY, actor="bo", reason="left")
    revoked = registry.revoked()
    assert revoked.holds("ab12", ana.uri)
    assert not revoked.holds("ab13", ana.uri)
    assert [entry.action for entry in audit(url)] == ["operator_revoked"]


def audit(url: str) -> tuple[AuditEntry, ...]:
    with Registry(connect(url), lambda: 0.0) as facts:
        return facts.audit()


def test_every_change_is_in_the_audit(
    registry: IdentityRegistry, sign: Signer, clock: Clock, url: str
) -> None:
    made = registry.new_token(valid_seconds=HOUR, actor="ana", device="a")
    first = registry.enrol(made.secret, KEY, "a", sign, peer="10.0.0.1")
    clock.now += DAY
    registry.renew("a", first.serial, KEY, sign)
    registry.revoke_device("a", actor="bo", reason="stolen")
    entries = audit(url)
    assert [entry.action for entry in entries] == [
        "token_created", "device_enrolled", "device_renewed", "device_revoked"
    ]  # fmt: skip
    details = [json.loads(entry.detail) for entry in entries]
    assert [detail["actor"] for detail in details] == ["ana", f"token {made.record.token_id}", "a", "bo"]
    assert details[1]["peer"] == "10.0.0.1"
    assert details[3]["reason"] == "stolen"
    assert entries[1].subject == "device/a"


def raced(count: int, work: Callable[[int], object]) -> list[object]:
    """Return what each of some threads got, all let go at the same moment."""
    barrier, results = threading.Barrier(count), list[object]([None] * count)

    def run(k: int) -> None:
        barrier.wait()
        try:
            results[k] = work(k)
        except QuantFleetError as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_many_that_use_one_token_exactly_one_wins(registry: IdentityRegistry, sign: Signer) -> None:
    said = secret(registry)
    results = raced(8, lambda k: registry.enrol(said, f"{k:02x}" * 45, f"device-{k}", sign))
    won = [result for result in results if isinstance(result, Issued)]
    assert len(won) == 1
    assert [type(result) for result in results].count(UnauthenticatedError) == 7
    assert [device.name for device in registry.devices()] == [won[0].principal.name]


def test_of_many_tokens_that_want_one_name_exactly_one_wins(registry: IdentityRegistry, sign: Signer) -> None:
    said = [secret(registry) for _ in range(8)]
    results = raced(8, lambda k: registry.enrol(said[k], f"{k:02x}" * 45, "a", sign))
    assert [type(result) for result in results].count(Issued) == 1
    assert [type(result) for result in results].count(ForbiddenError) == 7
