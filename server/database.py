"""Opening the registry's database: connections, SQLite's settings, migrations."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from quantization.errors import ConfigurationError

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a writer waits for another one before it gives up (SQLite)."""
SILENT_SECONDS = 30.0
"""How long a database's host may be silent before its connections are given up (PostgreSQL)."""
_PASSWORD = re.compile(r"(?<=:)[^:/@]+(?=@)|(?<=password=)[^&]+")
_MIGRATION_LOCK = 5_130_904_117_530_042_484
"""Number of the lock that migrations take on PostgreSQL; nobody else's."""


def connect(url: str) -> Engine:
    """Return an engine for the database at `url`; nothing is opened yet, but a file's folder is made.

    Raises:
        ConfigurationError: The URL is not one that SQLAlchemy reads, or the folder cannot be made.
    """
    try:
        engine = create_engine(url, pool_pre_ping=True, connect_args=_connect_arguments(url))
    except (SQLAlchemyError, ImportError, ValueError) as error:  # the last for a port that is no number
        raise ConfigurationError(
            f"registry '{shown_url(url)}' is not a database URL, such as sqlite:///quantfleet.db: "
            f"{str(error).replace(url, shown_url(url))}"
        ) from error
    if engine.dialect.name == "sqlite":
        _make_folder(engine.url.database)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def migrate(engine: Engine) -> None:
    """Bring the database to this version's tables; processes that start at the same time do it one after the other.

    Raises:
        ConfigurationError: The database cannot be opened, or a newer version has written it.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":  # SQLite has taken its lock with the transaction
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            _refuse_newer(connection, ScriptDirectory.from_config(config))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except SQLAlchemyError as error:
        shown = shown_url(engine.url)
        raise ConfigurationError(f"registry '{shown}' cannot be opened: {_cause(error)}") from error


def shown_url(url: str | URL) -> str:
    """Return a database's URL as messages and logs may have it: without a password, wherever it stands."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return _PASSWORD.sub("***", str(url))
    query = {key: "***" if key == "password" else value for key, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True)


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Yield a session whose work is committed as a whole, or not at all."""
    with Session(engine) as session, session.begin():
        yield session


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Yield a session that takes no write lock."""
    with Session(engine.execution_options(begin="DEFERRED")) as session:
        yield session


def revision(engine: Engine) -> str:
    """Return the revision of the database's tables; empty where there are none."""
    with engine.execution_options(begin="DEFERRED").connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() or ""


def _connect_arguments(url: str) -> dict[str, int]:
    """Return what makes a connection to a database that has gone an error, not a wait without end."""
    if make_url(url).get_backend_name() != "postgresql":
        return {}
    milliseconds = int(SILENT_SECONDS * 1000)
    return {"connect_timeout": 10, "keepalives_idle": 10, "tcp_user_timeout": milliseconds}


def _make_folder(database: str | None) -> None:
    if not database or database == ":memory:" or database.startswith("file:"):
        return
    try:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"registry folder of '{database}' cannot be made: {error}") from error


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
    if unknown:
        shown = shown_url(connection.engine.url)
        raise ConfigurationError(
            f"registry '{shown}' is at revision {', '.join(sorted(unknown))}, written by a newer version; "
            f"this one knows up to {scripts.get_current_head()}: upgrade quantfleet, or name another database"
        )


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """Let `_begin_sqlite` open transactions, and readers work beside one writer."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_SECONDS * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once unless the caller only reads: two that upgrade a lock would deadlock."""
    connection.exec_driver_sql("BEGIN " + connection.get_execution_options().get("begin", "IMMEDIATE"))


def _cause(error: SQLAlchemyError) -> str:
    """Return the driver's one-line message, without the statement and SQLAlchemy's link."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
