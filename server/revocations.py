"""Which certificates are good no more, in memory: read from the registry every few seconds, asked for every call."""

from collections.abc import Callable

from server.identity_records import Revoked


class Revocations:
    """What was revoked when it was read last; while the registry cannot be read, that holds."""

    def __init__(self, source: Callable[[], Revoked]) -> None:
        """Know nothing yet: `read` before the first call is answered.

        Args:
            source: Such as `IdentityRegistry.revoked`; it may block.
        """
        self._source = source
        self._revoked = Revoked()

    def read(self) -> None:
        """Read what is revoked now, in whatever thread; errors are the source's."""
        self._revoked = self._source()

    def is_revoked(self, serial: str, uri: str) -> bool:
        """Return whether a certificate, or whom it names, was revoked."""
        return self._revoked.holds(serial, uri)
