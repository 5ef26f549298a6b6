"""Alembic migrations of the registry's database, run whenever it is opened."""
