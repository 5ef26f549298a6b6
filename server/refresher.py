"""Signs anew what is about to expire, and says what only an operator can renew."""

from collections.abc import Callable, Mapping

import structlog

_log = structlog.get_logger()

Renewal = Callable[[], object]
"""Renews what is due and returns something true if it did; may block."""


class Refresher:
    """Runs renewals, each whatever becomes of the others."""

    def __init__(self, renewals: Mapping[str, Renewal]) -> None:
        """Know renewals by what they renew, for the log."""
        self._renewals = renewals

    def refresh(self) -> None:
        """Renew what is due; what cannot be renewed now is logged."""
        for name, renew in self._renewals.items():
            try:
                renewed = renew()
            except Exception as error:  # noqa: BLE001 - the others are due all the same
                _log.error("renewal_failed", what=name, error=str(error))
            else:
                if renewed:
                    _log.info("renewed", what=name)
