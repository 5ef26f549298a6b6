"""What the tuner keeps in the registry's database: its lease, its runs, requests, rounds and drift.

The rules:

1. One tuner at a time looks after a model: it holds a lease that expires unless it is renewed.
2. At most one run of a model is open: the database refuses a second.
3. A run changes by `move` alone, which looks the event up in `server.tuning_runs` and writes only if nobody else has
   moved the run since.
4. A request is taken in the transaction that makes its run.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from uuid import uuid4

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from quantization.errors import IllegalTransitionError, NotFoundError
from server.class_totals import ClassTotals, read_totals
from server.field_drift import FieldDrift, Tally, Track
from server.generation import FINAL_STEPS, Step
from server.registry_part import RegistryPart
from server.tables import GenerationRow, ModelRow
from server.tuning_runs import Cause, RunEvent, RunState, TuningRequest, TuningRun, next_state
from server.tuning_tables import DriftRow, RoundRow, TunerLeaseRow, TuningRequestRow, TuningRunRow


@dataclass(frozen=True, slots=True)
class GenerationOutline:
    """What the tuner looks at of a generation; fields as in `server.generation.Generation`."""

    number: int
    step: Step
    manifest_digest: str
    reason: str
    finished_at_seconds: float | None

    @property
    def is_open(self) -> bool:
        """Whether a run goes on with it."""
        return self.step not in FINAL_STEPS


class TuningRegistry(RegistryPart):
    """Facts about tuning; shares its database with `server.registry.Registry`."""

    def model_names(self) -> tuple[str, ...]:
        """Return the names of all models, sorted."""
        with self._reading() as session:
            return tuple(sorted(set(session.scalars(select(ModelRow.name)))))

    def lease(self, model_name: str, holder: str, seconds: float) -> bool:
        """Take or renew the lease of a model; return whether `holder` has it now."""
        now = self._clock()
        try:
            with self._writing() as session:
                row = session.get(TunerLeaseRow, model_name, with_for_update=True)
                if row is None:
                    row = TunerLeaseRow(model_name=model_name)
                    session.add(row)
                elif row.holder != holder and row.expires_at_seconds > now:
                    return False
                if row.holder != holder:
                    self._audit(session, "tuner_leased", model_name, holder=holder)
                row.holder, row.expires_at_seconds = holder, now + seconds
                session.flush()
        except IntegrityError:  # another tuner has made the row at this moment
            return False
        return True

    def lease_holder(self, model_name: str) -> str:
        """Return who holds the lease of a model now; empty for nobody."""
        with self._reading() as session:
            row = session.get(TunerLeaseRow, model_name)
            return row.holder if row is not None and row.expires_at_seconds > self._clock() else ""

    def release(self, model_name: str, holder: str) -> None:
        """Give the lease back, if `holder` has it."""
        with self._writing() as session:
            row = session.get(TunerLeaseRow, model_name, with_for_update=True)
            if row is not None and row.holder == holder:
                row.expires_at_seconds = 0.0

    def request(self, model_name: str, *, actor: str, reason: str = "") -> TuningRequest:
        """Ask for a generation of a model; the tuner that looks after it starts one."""
        with self._writing() as session:
            row = TuningRequestRow(
                model_name=model_name, actor=actor, reason=reason, at_seconds=self._clock(), run_key=None
            )
            session.add(row)
            self._audit(session, "tuning_requested", model_name, actor=actor, reason=reason)
            session.flush()
            return _request(row)

    def waiting_requests(self, model_name: str) -> tuple[TuningRequest, ...]:
        """Return the requests of a model that got no run yet, oldest first."""
        query = select(TuningRequestRow).where(
            TuningRequestRow.model_name == model_name, TuningRequestRow.run_key.is_(None)
        )
        with self._reading() as session:
            return tuple(_request(row) for row in session.scalars(query.order_by(TuningRequestRow.id)))

    def start_run(self, model_name: str, cause: Cause, *, reason: str = "", attempt: int = 1) -> TuningRun:
        """Return a new run in state `starting`; waiting requests of the model are served by it.

        Raises:
            IllegalTransitionError: A run of this model is open.
        """
        run = TuningRun(
            key=uuid4().hex,
            model_name=model_name,
            cause=cause,
            reason=reason,
            attempt=attempt,
            marker=self.marker(model_name),
            started_at_seconds=self._clock(),
        )
        waiting = (TuningRequestRow.model_name == model_name, TuningRequestRow.run_key.is_(None))
        try:
            with self._writing() as session:
                session.add(TuningRunRow(**asdict(run)))
                session.execute(update(TuningRequestRow).where(*waiting).values(run_key=run.key))
                self._audit(session, "run_started", model_name, key=run.key, cause=cause, reason=reason)
        except IntegrityError as error:
            raise IllegalTransitionError(f"a run of model '{model_name}' is open; one at a time") from error
        return run

    def move(self, run: TuningRun, event: RunEvent, *, run_id: str = "", detail: str = "") -> TuningRun:
        """Move a run on by `event` and return it as stored.

        Args:
            run: As read or returned before.
            event: What happened.
            run_id: Flower's id of the run, where it has become known.
            detail: How it ended, in words.

        Raises:
            IllegalTransitionError: The event cannot happen in this state, or somebody has moved the run meanwhile.
        """
        state = next_state(run.state, event)
        moved = replace(run, state=state, run_id=run_id or run.run_id, detail=detail or run.detail)
        if not moved.is_open:
            moved = replace(moved, finished_at_seconds=self._clock())
        statement = (
            update(TuningRunRow)
            .where(TuningRunRow.key == run.key, TuningRunRow.state == str(run.state))
            .values(**{**asdict(moved), "state": str(state)})
        )
        with self._writing() as session:
            if session.connection().execute(statement).rowcount != 1:
                raise IllegalTransitionError(
                    f"run {run.key} of model '{run.model_name}' is no longer '{run.state}': somebody has moved it"
                )
            self._audit(session, f"run_{event}", run.model_name, key=run.key, detail=moved.detail[:500])
        return moved

    def run(self, key: str) -> TuningRun:
        """Return a run.

        Raises:
            NotFoundError: There is none of that key.
        """
        with self._reading() as session:
            row = session.get(TuningRunRow, key)
            if row is None:
                raise NotFoundError(f"the registry has no run '{key[:40]}' of the tuner")
            return _run(row)

    def runs(self, model_name: str, *, most: int = 100) -> tuple[TuningRun, ...]:
        """Return the newest runs of a model, newest first."""
        newest = (TuningRunRow.started_at_seconds.desc(), TuningRunRow.finished_at_seconds.is_(None).desc())
        query = select(TuningRunRow).where(TuningRunRow.model_name == model_name).order_by(*newest)
        with self._reading() as session:
            return tuple(_run(row) for row in session.scalars(query.limit(most)))

    def marker(self, model_name: str) -> str:
        """Return where the generations of a model stand: equal as long as none gets any further.

        Failed generations are not in it: what starts one over and over gets nowhere.
        """
        query = (
            select(GenerationRow.device_class, GenerationRow.number, GenerationRow.step)
            .join(ModelRow, ModelRow.digest == GenerationRow.model_digest)
            .where(ModelRow.name == model_name, GenerationRow.step != str(Step.FAILED))
            .order_by(GenerationRow.device_class, GenerationRow.number, GenerationRow.model_digest)
        )
        newest: dict[str, list[str | int]] = {}
        with self._reading() as session:
            for device_class, number, step in session.execute(query):
                newest[device_class] = [number, step]
        return json.dumps(newest, sort_keys=True)

    def outlines(self, model_digest: str, device_class: str) -> tuple[GenerationOutline, ...]:
        """Return all generations of a model on a class, by number, without what makes their rows large."""
        row = GenerationRow
        query = (
            select(row.number, row.step, row.manifest_digest, row.reason, row.finished_at_seconds)
            .where(row.model_digest == model_digest, row.device_class == device_class)
            .order_by(row.number)
        )
        with self._reading() as session:
            return tuple(
                GenerationOutline(number, Step(step), manifest, reason, finished)
                for number, step, manifest, reason, finished in session.execute(query)
            )

    def rounds(self, model_name: str, name: str, *, most: int = 1) -> tuple[tuple[int, int], ...]:
        """Return how many devices the newest rounds of that name asked and heard from, newest first."""
        query = (
            select(RoundRow.asked, RoundRow.replied)
            .join(ModelRow, ModelRow.digest == RoundRow.model_digest)
            .where(ModelRow.name == model_name, RoundRow.name == name)
            .order_by(RoundRow.id.desc())
            .limit(most)
        )
        with self._reading() as session:
            return tuple((asked, replied) for asked, replied in session.execute(query))

    def totals(self, model_digest: str, device_class: str, version: int) -> ClassTotals:
        """Return what the devices of a class have counted under a version."""
        key = (model_digest, device_class, version)
        with self._reading() as session:
            by_version, _ = read_totals(session, [key])
        return by_version.get(key, ClassTotals())

    def drift(self, model_digest: str, device_class: str) -> FieldDrift:
        """Return what the last look showed of a class's drift; nothing before the first."""
        with self._reading() as session:
            row = session.get(DriftRow, (model_digest, device_class))
            return FieldDrift() if row is None else _drift(json.loads(row.state))

    def store_drift(self, model_digest: str, device_class: str, drift: FieldDrift) -> None:
        """Keep what a look showed; a class that begins or ends to drift is in the audit."""
        with self._writing() as session:
            row = session.get(DriftRow, (model_digest, device_class), with_for_update=True)
            if row is None:
                row = DriftRow(model_digest=model_digest, device_class=device_class, is_drifting=False)
                session.add(row)
            if row.is_drifting != drift.is_drifting:
                action = "drift_began" if drift.is_drifting else "drift_ended"
                subject = f"{model_digest}/{device_class}"
                self._audit(session, action, subject, measure=drift.measure, drop=f"{drift.drop or 0.0:.4f}")
            row.state = json.dumps(asdict(drift), sort_keys=True)
            row.drop, row.is_drifting, row.at_seconds = drift.drop, drift.is_drifting, self._clock()


def progressed(run: TuningRun, marker: str) -> bool:
    """Return whether generations got any further since a run was started."""
    return run.marker != marker


def _run(row: TuningRunRow) -> TuningRun:
    values = {field.name: getattr(row, field.name) for field in fields(TuningRun)}
    return TuningRun(**{**values, "cause": Cause(row.cause), "state": RunState(row.state)})


def _request(row: TuningRequestRow) -> TuningRequest:
    return TuningRequest(row.id, row.model_name, row.actor, row.reason, row.at_seconds, row.run_key)


def _drift(state: dict[str, object]) -> FieldDrift:
    def tally(of: dict[str, int]) -> Tally:
        return Tally(of["right"], of["total"])

    def track(of: dict[str, object]) -> Track:
        return Track(tally(of["beginning"]), tally(of["counted"]), of["drop"])  # type: ignore[arg-type]

    tracks = {name: track(state[name]) for name in ("accuracy", "agreement", "in_range")}  # type: ignore[arg-type]
    return FieldDrift(**{**state, **tracks})  # type: ignore[arg-type]
