"""The registry's first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "models",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("created_at_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_models"),
    )
    op.create_index("ix_models_name", "models", ["name"])
    op.create_table(
        "device_classes",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_device_classes"),
    )
    op.create_table(
        "lab_references",
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("device_class", sa.String(200), nullable=False),
        sa.Column("statistics_digest", sa.String(64), nullable=False),
        sa.Column("inputs", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("model_digest", "device_class", name="pk_lab_references"),
        sa.ForeignKeyConstraint(["model_digest"], ["models.digest"], name="fk_lab_references_model_digest"),
        sa.ForeignKeyConstraint(
            ["device_class"], ["device_classes.name"], name="fk_lab_references_device_class"
        ),
    )
    _create_generations()
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at_seconds", sa.Double(), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(500), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )


def downgrade() -> None:
    """Drop all tables."""
    for table in ("audit", "generations", "lab_references", "device_classes", "models"):
        op.drop_table(table)


def _create_generations() -> None:
    op.create_table(
        "generations",
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("device_class", sa.String(200), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("base_number", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("moments_digest", sa.String(64), nullable=False),
        sa.Column("ranges_digest", sa.String(64), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("manifest_digest", sa.String(64), nullable=False),
        sa.Column("drift", sa.Text(), nullable=False),
        sa.Column("assessment", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("clients", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("update_bytes", sa.Integer(), nullable=False),
        sa.Column("started_at_seconds", sa.Double(), nullable=False),
        sa.Column("finished_at_seconds", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "number >= 0 AND base_number >= 0 AND base_number <= number", name="ck_generations_numbers"
        ),
        sa.PrimaryKeyConstraint("model_digest", "device_class", "number", name="pk_generations"),
        sa.ForeignKeyConstraint(["model_digest"], ["models.digest"], name="fk_generations_model_digest"),
        sa.ForeignKeyConstraint(
            ["device_class"], ["device_classes.name"], name="fk_generations_device_class"
        ),
    )
    op.create_index(
        "uq_generations_open",
        "generations",
        ["model_digest", "device_class"],
        unique=True,
        sqlite_where=sa.text("finished_at_seconds IS NULL"),
        postgresql_where=sa.text("finished_at_seconds IS NULL"),
    )
