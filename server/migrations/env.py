"""Alembic's entry: migrates over the connection that `Registry.open` hands in."""

from alembic import context

from server import identity_tables, tuning_tables  # noqa: F401 - their tables belong to the metadata
from server.tables import Base


def run() -> None:
    """Run the migrations inside the transaction that the caller holds.

    SQLite changes a column by copying its table: batch mode does that.
    """
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    context.run_migrations()


run()
