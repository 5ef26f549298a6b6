"""Renews a device's certificate when two thirds of its lifetime are over."""

import time
from collections.abc import Callable

from client.connection import Connection
from client.events import event_log
from client.state import StateFolder
from client.update_worker import Chore

_events = event_log("renewal")
CHECK_SECONDS = 600.0


def renewal_chore(
    state: StateFolder, connection: Connection, clock: Callable[[], float] = time.time
) -> Chore:
    """Return what an agent does every ten minutes, so that its certificate never ends.

    What fails is tried again; the certificate is good for a third of its lifetime yet.

    Args:
        state: With the identity; owned by this process.
        connection: Goes on with the new certificate.
        clock: Seconds since 1970 (UTC).
    """
    from client.credentials import ClientCredentials, identity_folder  # noqa: PLC0415  # needs cryptography
    from client.enrolment import renew  # noqa: PLC0415

    def act() -> None:
        if not ClientCredentials.read(identity_folder(state.path)).renew_due(clock()):
            return
        renewed = renew(state.path, disk=state.disk)
        _events.info(
            "certificate_renewed", device=renewed.device, expires_at=round(renewed.expires_at_seconds)
        )
        connection.reopen()

    return Chore("renew_certificate", CHECK_SECONDS, act)
