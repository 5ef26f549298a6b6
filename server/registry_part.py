"""What every part of the registry has: a database that others share, transactions, and an audit.

The rules:

1. A change is one transaction: all of it is stored, or nothing.
2. Every change adds a row to the audit, in the same transaction.
3. Migrations run whenever a part is opened; a database from a newer version is refused.
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from server.database import connect, migrate, reading, writing
from server.tables import AuditRow

Clock = Callable[[], float]
"""Returns seconds since 1970 (UTC)."""


class RegistryPart:
    """Facts of one kind in the registry's database, which parts share; a context manager that closes it."""

    def __init__(self, engine: Engine, clock: Clock = time.time) -> None:
        """Share an engine, of a database that is migrated."""
        self._engine = engine
        self._clock = clock

    @classmethod
    def open(cls, url: str, clock: Clock = time.time) -> Self:
        """Return the part of the database at `url`, made or migrated as needed.

        Args:
            url: As SQLAlchemy reads it, such as `sqlite:///quantfleet.db`.
            clock: Seconds since 1970 (UTC).

        Raises:
            ConfigurationError: If the database cannot be opened, or a newer version has written it.
        """
        engine = connect(url)
        migrate(engine)
        return cls(engine, clock)

    def now(self) -> float:
        """Return the time by the registry's clock, seconds since 1970 (UTC)."""
        return self._clock()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reading(self) -> AbstractContextManager[Session]:
        return reading(self._engine)

    def _writing(self) -> AbstractContextManager[Session]:
        return writing(self._engine)

    def _audit(self, session: Session, action: str, subject: str, **detail: str | float) -> None:
        """Add a row to the audit, in the transaction of the change."""
        record = json.dumps(detail, sort_keys=True)
        session.add(AuditRow(at_seconds=self._clock(), action=str(action), subject=subject, detail=record))
