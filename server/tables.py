"""The registry's tables. A change here needs a revision in `server/migrations/versions`."""

from typing import ClassVar

from sqlalchemy import CheckConstraint, Double, ForeignKey, Index, MetaData, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DIGEST_LENGTH = 64
NAME_LENGTH = 200


class Base(DeclarativeBase):
    """Declares names for constraints, so that later revisions can change them on every database."""

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ModelRow(Base):
    """A canonical float model; its bytes are the blob of the same digest."""

    __tablename__ = "models"

    digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH), primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH), index=True)
    size_bytes: Mapped[int]
    created_at_seconds: Mapped[float] = mapped_column(Double)


class DeviceClassRow(Base):
    """A device class, as its JSON."""

    __tablename__ = "device_classes"

    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    definition: Mapped[str] = mapped_column(Text)


class LabRow(Base):
    """What the lab measured on a model as one class runs it: references and histograms, in a blob."""

    __tablename__ = "lab_references"

    model_digest: Mapped[str] = mapped_column(ForeignKey("models.digest"), primary_key=True)
    device_class: Mapped[str] = mapped_column(ForeignKey("device_classes.name"), primary_key=True)
    statistics_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    inputs: Mapped[int]


class GenerationRow(Base):
    """One generation; the fields are those of `server.generation.Generation`."""

    __tablename__ = "generations"
    __table_args__ = (
        Index(
            "uq_generations_open",
            "model_digest",
            "device_class",
            unique=True,
            sqlite_where=text("finished_at_seconds IS NULL"),
            postgresql_where=text("finished_at_seconds IS NULL"),
        ),
        CheckConstraint("number >= 0 AND base_number >= 0 AND base_number <= number", name="numbers"),
    )

    model_digest: Mapped[str] = mapped_column(ForeignKey("models.digest"), primary_key=True)
    device_class: Mapped[str] = mapped_column(ForeignKey("device_classes.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    base_number: Mapped[int]
    step: Mapped[str] = mapped_column(String(16))
    settings: Mapped[str] = mapped_column(Text)
    moments_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    inputs_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH), server_default="")
    probes_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH), server_default="")
    weights: Mapped[str] = mapped_column(Text, server_default="")
    precision: Mapped[str] = mapped_column(Text, server_default="")
    ranges_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    policy: Mapped[str] = mapped_column(Text)
    manifest_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    drift: Mapped[str] = mapped_column(Text)
    assessment: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    clients: Mapped[int]
    size_bytes: Mapped[int]
    update_bytes: Mapped[int]
    started_at_seconds: Mapped[float] = mapped_column(Double)
    finished_at_seconds: Mapped[float | None] = mapped_column(Double)


class AuditRow(Base):
    """One change of the registry; rows are only ever added."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at_seconds: Mapped[float] = mapped_column(Double)
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(500))
    detail: Mapped[str] = mapped_column(Text)
