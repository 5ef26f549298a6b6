"""What the registry shows of tuning: rounds by kind, drift as telemetry shows it, runs and tuners."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.tuning_runs import ENDED_STATES
from server.tuning_tables import DriftRow, RoundRow, TunerLeaseRow, TuningRunRow


@dataclass(frozen=True, slots=True)
class RoundReading:
    """All rounds of one kind; what is a sum never falls.

    Attributes:
        name: Of the kind, such as "moments".
        rounds: How many there were.
        asked: Devices that were asked, each in every round.
        replied: Those whose reply was folded.
        reply_bytes: Content of all folded replies.
        last_asked: Devices that the last round asked.
    """

    name: str
    rounds: int
    asked: int
    replied: int
    reply_bytes: int
    last_asked: int


@dataclass(frozen=True, slots=True)
class DriftReading:
    """What telemetry shows of one class's drift.

    Attributes:
        drop_ratio: How much of its accuracy, or agreement, the class has surely lost; None where nothing is known.
        is_drifting: Whether that is enough for a tuner to act.
    """

    drop_ratio: float | None
    is_drifting: bool


@dataclass(frozen=True, slots=True)
class TuningReading:
    """What the registry shows of tuning.

    Attributes:
        rounds: By kind, in order of name.
        drifts: By device class; of the model that was looked at last.
        runs: Runs that ended, by how.
        tuners: Models that a tuner looks after now; None where nobody has looked.
    """

    rounds: tuple[RoundReading, ...] = ()
    drifts: tuple[tuple[str, DriftReading], ...] = ()
    runs: tuple[tuple[str, int], ...] = ()
    tuners: int | None = None


def read_tuning(session: Session, now_seconds: float) -> TuningReading:
    """Return what is there now, seconds since 1970 (UTC) being `now_seconds`; in four queries."""
    return TuningReading(_rounds(session), _drifts(session), _runs(session), _tuners(session, now_seconds))


def _rounds(session: Session) -> tuple[RoundReading, ...]:
    sums = (
        select(
            RoundRow.name,
            func.count().label("rounds"),
            func.sum(RoundRow.asked).label("asked"),
            func.sum(RoundRow.replied).label("replied"),
            func.sum(RoundRow.reply_bytes).label("reply_bytes"),
            func.max(RoundRow.id).label("last"),
        )
        .group_by(RoundRow.name)
        .subquery()
    )
    rows = session.execute(
        select(sums, RoundRow.asked.label("last_asked")).join(RoundRow, RoundRow.id == sums.c.last)
    )
    readings = (
        RoundReading(
            row.name, row.rounds, int(row.asked), int(row.replied), int(row.reply_bytes), row.last_asked
        )
        for row in rows
    )
    return tuple(sorted(readings, key=lambda reading: reading.name))


def _drifts(session: Session) -> tuple[tuple[str, DriftReading], ...]:
    rows = session.execute(
        select(DriftRow.device_class, DriftRow.drop, DriftRow.is_drifting).order_by(DriftRow.at_seconds)
    )
    newest = {row.device_class: DriftReading(row.drop, row.is_drifting) for row in rows}
    return tuple(sorted(newest.items(), key=lambda item: item[0]))


def _runs(session: Session) -> tuple[tuple[str, int], ...]:
    rows = session.execute(select(TuningRunRow.state, func.count()).group_by(TuningRunRow.state))
    counts = {str(state): int(runs) for state, runs in rows}
    return tuple((str(state), counts.get(state, 0)) for state in sorted(ENDED_STATES))


def _tuners(session: Session, now_seconds: float) -> int:
    held = select(func.count()).where(TunerLeaseRow.expires_at_seconds > now_seconds)
    return int(session.scalar(held) or 0)
