"""Tokens for enrolment, devices, and their certificates."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "enrolment_tokens",
        sa.Column("token_id", sa.String(16), nullable=False),
        sa.Column("secret_digest", sa.String(64), nullable=False),
        sa.Column("device", sa.String(128), nullable=True),
        sa.Column("created_at_seconds", sa.Double(), nullable=False),
        sa.Column("expires_at_seconds", sa.Double(), nullable=False),
        sa.Column("used_at_seconds", sa.Double(), nullable=True),
        sa.Column("used_by", sa.String(128), nullable=True),
        sa.Column("used_key", sa.String(500), nullable=True),
        sa.PrimaryKeyConstraint("token_id", name="pk_enrolment_tokens"),
    )
    op.create_table(
        "devices",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("public_key", sa.String(500), nullable=False),
        sa.Column("enrolled_at_seconds", sa.Double(), nullable=False),
        sa.Column("issued_at_seconds", sa.Double(), nullable=False),
        sa.Column("not_after_seconds", sa.Double(), nullable=False),
        sa.Column("revoked_at_seconds", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_devices"),
    )
    op.create_index("ix_devices_revoked_at_seconds", "devices", ["revoked_at_seconds"])
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("principal", sa.String(200), nullable=False),
        sa.Column("not_after_seconds", sa.Double(), nullable=False),
        sa.Column("revoked_at_seconds", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("serial", name="pk_certificates"),
    )
    op.create_index("ix_certificates_principal", "certificates", ["principal"])
    op.create_index("ix_certificates_revoked_at_seconds", "certificates", ["revoked_at_seconds"])


def downgrade() -> None:
    """Drop the tables."""
    for table in ("certificates", "devices", "enrolment_tokens"):
        op.drop_table(table)
