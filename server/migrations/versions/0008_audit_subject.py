"""What happened to one thing is found without reading the whole audit."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_audit_subject", "audit", ["subject"])


def downgrade() -> None:
    """Drop the index."""
    op.drop_index("ix_audit_subject", table_name="audit")
