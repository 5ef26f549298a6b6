"""Tables of tuning: rounds, runs of the tuner, its lease, requests, and drift as telemetry shows it.

A change here needs a revision in `server/migrations/versions`.
"""

from sqlalchemy import BigInteger, Double, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from server.tables import DIGEST_LENGTH, NAME_LENGTH, Base


class RoundRow(Base):
    """How one round ended; rows are only ever added."""

    __tablename__ = "rounds"

    id: Mapped[int] = mapped_column(primary_key=True)
    model_digest: Mapped[str] = mapped_column(ForeignKey("models.digest"))
    device_class: Mapped[str] = mapped_column(String(NAME_LENGTH))
    number: Mapped[int]
    name: Mapped[str] = mapped_column(String(16), index=True)
    asked: Mapped[int]
    replied: Mapped[int]
    failed: Mapped[str] = mapped_column(Text)
    reply_bytes: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Double)
    at_seconds: Mapped[float] = mapped_column(Double)


class TunerLeaseRow(Base):
    """Which tuner looks after a model, and until when."""

    __tablename__ = "tuner_leases"

    model_name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    holder: Mapped[str] = mapped_column(String(NAME_LENGTH))
    expires_at_seconds: Mapped[float] = mapped_column(Double)


class TuningRunRow(Base):
    """One Flower run of the tuner; the fields are those of `server.tuning_runs.TuningRun`."""

    __tablename__ = "tuning_runs"
    __table_args__ = (
        Index(
            "uq_tuning_runs_open",
            "model_name",
            unique=True,
            sqlite_where=text("finished_at_seconds IS NULL"),
            postgresql_where=text("finished_at_seconds IS NULL"),
        ),
        Index("ix_tuning_runs_model_name", "model_name", "started_at_seconds"),
    )

    key: Mapped[str] = mapped_column(String(32), primary_key=True)
    model_name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    cause: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    attempt: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    run_id: Mapped[str] = mapped_column(String(32))
    marker: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)
    started_at_seconds: Mapped[float] = mapped_column(Double)
    finished_at_seconds: Mapped[float | None] = mapped_column(Double)


class TuningRequestRow(Base):
    """One request of an operator for a generation, and the run that it got."""

    __tablename__ = "tuning_requests"

    id: Mapped[int] = mapped_column(primary_key=True)
    model_name: Mapped[str] = mapped_column(String(NAME_LENGTH), index=True)
    actor: Mapped[str] = mapped_column(String(NAME_LENGTH))
    reason: Mapped[str] = mapped_column(Text)
    at_seconds: Mapped[float] = mapped_column(Double)
    run_key: Mapped[str | None] = mapped_column(String(32))


class DriftRow(Base):
    """What telemetry shows of one class's drift; the fields are those of `server.field_drift.FieldDrift`."""

    __tablename__ = "field_drifts"

    model_digest: Mapped[str] = mapped_column(
        String(DIGEST_LENGTH), ForeignKey("models.digest"), primary_key=True
    )
    device_class: Mapped[str] = mapped_column(ForeignKey("device_classes.name"), primary_key=True)
    state: Mapped[str] = mapped_column(Text)
    drop: Mapped[float | None] = mapped_column(Double)
    is_drifting: Mapped[bool]
    at_seconds: Mapped[float] = mapped_column(Double)
