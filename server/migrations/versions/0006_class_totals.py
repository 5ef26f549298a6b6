"""Running totals of what the devices of a class count."""

import json
from collections import defaultdict

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COUNTS = (
    "devices",
    "samples",
    "failures",
    "load_failures",
    "labelled",
    "hits",
    "judged",
    "agreements",
    "observed_values",
    "clipped_values",
)
ALL_VERSIONS = -1


def upgrade() -> None:
    """Create the table, with what devices have counted so far."""
    totals = op.create_table(
        "class_totals",
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("device_class", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.PrimaryKeyConstraint("model_digest", "device_class", "version", "shard", name="pk_class_totals"),
        sa.ForeignKeyConstraint(["model_digest"], ["models.digest"], name="fk_class_totals_model_digest"),
        sa.ForeignKeyConstraint(
            ["device_class"], ["device_classes.name"], name="fk_class_totals_device_class"
        ),
    )
    if rows := _counted_so_far():
        op.bulk_insert(totals, rows)


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("class_totals")


def _counted_so_far() -> list[dict[str, int | str]]:
    """Return the rows of shard 0; values observed and clipped were not kept before."""
    telemetry = sa.table(
        "device_telemetry",
        *(sa.column(name) for name in ("model_digest", "device_class", "version", "counts")),
    )
    sums: defaultdict[tuple[str, str, int], dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    for model, name, version, text in op.get_bind().execute(sa.select(telemetry)):
        counts = {"devices": 1, **json.loads(text)}
        for key in ((model, name, version), (model, name, ALL_VERSIONS)):
            for count in COUNTS:
                sums[key][count] += counts.get(count, 0)
    return [
        {"model_digest": model, "device_class": name, "version": version, "shard": 0, **counts}
        for (model, name, version), counts in sums.items()
    ]
