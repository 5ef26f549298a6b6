import pytest
from sqlalchemy.exc import OperationalError

from server.identity_records import Revoked
from server.revocations import Revocations


class Source:
    """What is revoked, and what goes wrong."""

    def __init__(self) -> None:
        self.revoked = Revoked(frozenset({"1"}))
        self.error: Exception | None = None

    def __call__(self) -> Revoked:
        if self.error is not None:
            raise self.error
        return self.revoked


def test_what_is_revoked_is_known_once_it_is_read() -> None:
    source = Source()
    revocations = Revocations(source)
    revocations.read()
    assert revocations.is_revoked("1", "quantfleet://device/a")
    assert not revocations.is_revoked("2", "quantfleet://device/b")
    source.revoked = Revoked(frozenset({"1"}), frozenset({"quantfleet://device/b"}))
    revocations.read()
    assert revocations.is_revoked("2", "quantfleet://device/b")


def test_what_was_known_holds_while_the_registry_is_away() -> None:
    source = Source()
    revocations = Revocations(source)
    revocations.read()
    source.error = OperationalError("select", {}, Exception("gone"))
    with pytest.raises(OperationalError):
        revocations.read()
    assert revocations.is_revoked("1", "")
    source.error, source.revoked = None, Revoked()
    revocations.read()
    assert not revocations.is_revoked("1", "")
