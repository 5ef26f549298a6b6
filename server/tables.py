"""The registry's tables. A change here needs a revision in `server/migrations/versions`."""

from typing import ClassVar

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, MetaData, String, Text, text
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
    subject: Mapped[str] = mapped_column(String(500), index=True)
    detail: Mapped[str] = mapped_column(Text)


class TargetRow(Base):
    """One version of a target; the fields are those of `server.target_versions.TargetVersion`."""

    __tablename__ = "targets"

    model_digest: Mapped[str] = mapped_column(ForeignKey("models.digest"), primary_key=True)
    device_class: Mapped[str] = mapped_column(ForeignKey("device_classes.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    manifest_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    reason: Mapped[str] = mapped_column(Text)
    at_seconds: Mapped[float] = mapped_column(Double)


class RolloutRow(Base):
    """One rollout; the fields are those of `server.rollout.Rollout`, and what its class counted before."""

    __tablename__ = "rollouts"
    __table_args__ = (
        Index(
            "uq_rollouts_open",
            "model_digest",
            "device_class",
            unique=True,
            sqlite_where=text("finished_at_seconds IS NULL"),
            postgresql_where=text("finished_at_seconds IS NULL"),
        ),
        Index("ix_rollouts_target", "model_digest", "device_class", "version"),
    )

    rollout_id: Mapped[str] = mapped_column(String(DIGEST_LENGTH), primary_key=True)
    model_digest: Mapped[str] = mapped_column(ForeignKey("models.digest"))
    device_class: Mapped[str] = mapped_column(ForeignKey("device_classes.name"))
    version: Mapped[int]
    base_version: Mapped[int]
    manifest_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    base_manifest_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    shares: Mapped[str] = mapped_column(Text)
    phase: Mapped[str] = mapped_column(String(16))
    step: Mapped[int]
    revision: Mapped[int]
    reason: Mapped[str] = mapped_column(Text)
    started_at_seconds: Mapped[float] = mapped_column(Double)
    step_at_seconds: Mapped[float] = mapped_column(Double)
    finished_at_seconds: Mapped[float | None] = mapped_column(Double)
    rolled_back_version: Mapped[int | None]
    fleet_counts: Mapped[str] = mapped_column(Text)


class DeviceTelemetryRow(Base):
    """What one device has counted under the version that it last reported."""

    __tablename__ = "device_telemetry"

    model_digest: Mapped[str] = mapped_column(ForeignKey("models.digest"), primary_key=True)
    device_class: Mapped[str] = mapped_column(ForeignKey("device_classes.name"), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    last_sequence: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int]
    counts: Mapped[str] = mapped_column(Text)
    counted_until_seconds: Mapped[float] = mapped_column(Double, default=0.0, server_default="0")


class RolloutDeviceRow(Base):
    """What one device has counted in a rollout, and whether it is marked."""

    __tablename__ = "rollout_devices"

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollouts.rollout_id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    is_canary: Mapped[bool]
    before: Mapped[str] = mapped_column(Text)
    counts: Mapped[str] = mapped_column(Text)
    has_unit: Mapped[bool]
    devices: Mapped[int]
    marked: Mapped[int]
    loading: Mapped[int]
    destroyed: Mapped[int]
    slow: Mapped[int]
    large: Mapped[int]


class RolloutUnitRow(Base):
    """One unit of evidence, in the order in which they were complete; never changed."""

    __tablename__ = "rollout_units"

    id: Mapped[int] = mapped_column(primary_key=True)
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollouts.rollout_id"), index=True)
    device_id: Mapped[str] = mapped_column(String(NAME_LENGTH))
    is_canary: Mapped[bool]
    step: Mapped[int]
    accuracy: Mapped[float | None] = mapped_column(Double)
    agreement: Mapped[float | None] = mapped_column(Double)
    failures: Mapped[float | None] = mapped_column(Double)
    latency: Mapped[float | None] = mapped_column(Double)
    memory: Mapped[float | None] = mapped_column(Double)


class ClassTotalsRow(Base):
    """A part of what the devices of a class have counted under one version, or all; see `server.class_totals`."""

    __tablename__ = "class_totals"

    model_digest: Mapped[str] = mapped_column(ForeignKey("models.digest"), primary_key=True)
    device_class: Mapped[str] = mapped_column(ForeignKey("device_classes.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    devices: Mapped[int] = mapped_column(BigInteger)
    samples: Mapped[int] = mapped_column(BigInteger)
    failures: Mapped[int] = mapped_column(BigInteger)
    load_failures: Mapped[int] = mapped_column(BigInteger)
    labelled: Mapped[int] = mapped_column(BigInteger)
    hits: Mapped[int] = mapped_column(BigInteger)
    judged: Mapped[int] = mapped_column(BigInteger)
    agreements: Mapped[int] = mapped_column(BigInteger)
    observed_values: Mapped[int] = mapped_column(BigInteger)
    clipped_values: Mapped[int] = mapped_column(BigInteger)
