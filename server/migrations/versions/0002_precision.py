"""What allocating precision finds, step by step."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COLUMNS = (
    ("inputs_digest", sa.String(64)),
    ("probes_digest", sa.String(64)),
    ("weights", sa.Text()),
    ("precision", sa.Text()),
)


def upgrade() -> None:
    """Add the columns; generations from before have none of it."""
    with op.batch_alter_table("generations") as table:
        for name, kind in COLUMNS:
            table.add_column(sa.Column(name, kind, nullable=False, server_default=""))


def downgrade() -> None:
    """Drop the columns."""
    with op.batch_alter_table("generations") as table:
        for name, _ in reversed(COLUMNS):
            table.drop_column(name)
