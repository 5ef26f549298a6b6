"""Targets, rollouts, and the telemetry that decides them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MARKS = ("devices", "marked", "loading", "destroyed", "slow", "large")
MEASURES = ("accuracy", "agreement", "failures", "latency", "memory")


def upgrade() -> None:
    """Create the tables; a registry from before has no target, and publishing makes the first."""
    op.create_table(
        "targets",
        *_target_columns(),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("manifest_digest", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("model_digest", "device_class", "version", name="pk_targets"),
        *_target_keys("targets"),
    )
    _create_rollouts()
    op.create_table(
        "device_telemetry",
        *_target_columns(),
        sa.Column("device_id", sa.String(200), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("counts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model_digest", "device_class", "device_id", name="pk_device_telemetry"),
        *_target_keys("device_telemetry"),
    )
    _create_rollout_devices()
    _create_rollout_units()


def downgrade() -> None:
    """Drop the tables."""
    for table in ("rollout_units", "rollout_devices", "device_telemetry", "rollouts", "targets"):
        op.drop_table(table)


def _target_columns() -> tuple[sa.Column[str], ...]:
    return (
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("device_class", sa.String(200), nullable=False),
    )


def _target_keys(table: str) -> tuple[sa.ForeignKeyConstraint, ...]:
    return (
        sa.ForeignKeyConstraint(["model_digest"], ["models.digest"], name=f"fk_{table}_model_digest"),
        sa.ForeignKeyConstraint(["device_class"], ["device_classes.name"], name=f"fk_{table}_device_class"),
    )


def _create_rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", sa.String(64), nullable=False),
        *_target_columns(),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("base_version", sa.Integer(), nullable=False),
        sa.Column("manifest_digest", sa.String(64), nullable=False),
        sa.Column("base_manifest_digest", sa.String(64), nullable=False),
        sa.Column("shares", sa.Text(), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("started_at_seconds", sa.Double(), nullable=False),
        sa.Column("step_at_seconds", sa.Double(), nullable=False),
        sa.Column("finished_at_seconds", sa.Double(), nullable=True),
        sa.Column("rolled_back_version", sa.Integer(), nullable=True),
        sa.Column("fleet_counts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("rollout_id", name="pk_rollouts"),
        *_target_keys("rollouts"),
    )
    op.create_index(
        "uq_rollouts_open",
        "rollouts",
        ["model_digest", "device_class"],
        unique=True,
        sqlite_where=sa.text("finished_at_seconds IS NULL"),
        postgresql_where=sa.text("finished_at_seconds IS NULL"),
    )
    op.create_index("ix_rollouts_target", "rollouts", ["model_digest", "device_class", "version"])


def _create_rollout_devices() -> None:
    op.create_table(
        "rollout_devices",
        sa.Column("rollout_id", sa.String(64), nullable=False),
        sa.Column("device_id", sa.String(200), nullable=False),
        sa.Column("is_canary", sa.Boolean(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("counts", sa.Text(), nullable=False),
        sa.Column("has_unit", sa.Boolean(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in MARKS),
        sa.PrimaryKeyConstraint("rollout_id", "device_id", name="pk_rollout_devices"),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.rollout_id"], name="fk_rollout_devices_rollout_id"
        ),
    )


def _create_rollout_units() -> None:
    op.create_table(
        "rollout_units",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rollout_id", sa.String(64), nullable=False),
        sa.Column("device_id", sa.String(200), nullable=False),
        sa.Column("is_canary", sa.Boolean(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=True) for name in MEASURES),
        sa.PrimaryKeyConstraint("id", name="pk_rollout_units"),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.rollout_id"], name="fk_rollout_units_rollout_id"),
    )
    op.create_index("ix_rollout_units_rollout_id", "rollout_units", ["rollout_id"])
