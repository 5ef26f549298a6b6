"""Rounds, runs of the tuner, its lease, requests, and drift as telemetry shows it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    _create_rounds()
    _create_runs()
    op.create_table(
        "tuner_leases",
        sa.Column("model_name", sa.String(200), nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("expires_at_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("model_name", name="pk_tuner_leases"),
    )
    op.create_table(
        "tuning_requests",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_name", sa.String(200), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_seconds", sa.Double(), nullable=False),
        sa.Column("run_key", sa.String(32), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tuning_requests"),
    )
    op.create_index("ix_tuning_requests_model_name", "tuning_requests", ["model_name"])
    op.create_table(
        "field_drifts",
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("device_class", sa.String(200), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("drop", sa.Double(), nullable=True),
        sa.Column("is_drifting", sa.Boolean(), nullable=False),
        sa.Column("at_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("model_digest", "device_class", name="pk_field_drifts"),
        sa.ForeignKeyConstraint(["model_digest"], ["models.digest"], name="fk_field_drifts_model_digest"),
        sa.ForeignKeyConstraint(
            ["device_class"], ["device_classes.name"], name="fk_field_drifts_device_class"
        ),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("field_drifts", "tuning_requests", "tuner_leases", "tuning_runs", "rounds"):
        op.drop_table(table)


def _create_rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("device_class", sa.String(200), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("replied", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Text(), nullable=False),
        sa.Column("reply_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("at_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rounds"),
        sa.ForeignKeyConstraint(["model_digest"], ["models.digest"], name="fk_rounds_model_digest"),
    )
    op.create_index("ix_rounds_name", "rounds", ["name"])


def _create_runs() -> None:
    op.create_table(
        "tuning_runs",
        sa.Column("key", sa.String(32), nullable=False),
        sa.Column("model_name", sa.String(200), nullable=False),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("marker", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("started_at_seconds", sa.Double(), nullable=False),
        sa.Column("finished_at_seconds", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_tuning_runs"),
    )
    op.create_index(
        "uq_tuning_runs_open",
        "tuning_runs",
        ["model_name"],
        unique=True,
        sqlite_where=sa.text("finished_at_seconds IS NULL"),
        postgresql_where=sa.text("finished_at_seconds IS NULL"),
    )
    op.create_index("ix_tuning_runs_model_name", "tuning_runs", ["model_name", "started_at_seconds"])
