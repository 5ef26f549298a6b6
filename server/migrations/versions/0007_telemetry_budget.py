"""Until when a device has counted: no report counts more than the device had time for."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; what devices have counted so far took no time."""
    op.add_column(
        "device_telemetry",
        sa.Column("counted_until_seconds", sa.Double(), nullable=False, server_default="0"),
    )


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("device_telemetry", "counted_until_seconds")
