"""The registry: which models, device classes and generations there are, and where each generation stands.

The rules:

1. The database holds facts about content; content itself is in the blob store, under its digest. A blob is
   stored before the row that names it.
2. A generation changes by `advance` alone, which looks the step up in `server.generation` and writes only if
   nobody else has moved the generation since it was read.
3. At most one generation per model and device class is open: the database refuses a second.
4. Transactions, audit and migrations are those of `server.registry_part`.
"""

import json
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from quantization.device_class import DeviceClass
from quantization.errors import ConfigurationError, NotFoundError
from server.database import shown_url
from server.entries import AuditEntry, Lab, Model
from server.generation import Event, Generation, IllegalTransitionError, Step, next_step
from server.registry_part import RegistryPart
from server.served_manifest import served_manifest
from server.tables import AuditRow, DeviceClassRow, GenerationRow, LabRow, ModelRow
from server.tuning_tables import RoundRow

if TYPE_CHECKING:  # rounds bring Flower with them, which a registry needs nothing of
    from strategies.rounds import RoundEnd

_Value = TypeVar("_Value")

NO_CLASS, NO_GENERATION = "", -1
"""What a round is stored under that comes before classes and generations are known."""


class Registry(RegistryPart):
    """Facts about models and generations in a database; open it with `Registry.open`."""

    @property
    def place(self) -> str:
        """The database's URL, without a password."""
        return shown_url(self._engine.url)

    def add_model(self, model: Model) -> Model:
        """Register a model and return it as stored; one that is known stays as it is."""
        with self._writing() as session:
            row = session.get(ModelRow, model.digest)
            if row is None:
                row = ModelRow(**asdict(replace(model, created_at_seconds=self._clock())))
                session.add(row)
                self._audit(
                    session, "model_added", model.digest, name=model.name, size_bytes=model.size_bytes
                )
            return _value(Model, row)

    def model(self, name: str) -> Model:
        """Return the newest model of that name.

        Raises:
            NotFoundError: There is none.
        """
        newest = (ModelRow.created_at_seconds.desc(), ModelRow.digest)
        with self._reading() as session:
            row = session.scalars(select(ModelRow).where(ModelRow.name == name).order_by(*newest)).first()
            if row is None:
                known = ", ".join(sorted(set(session.scalars(select(ModelRow.name))))) or "none"
                raise NotFoundError(f"the registry has no model named '{name}'; it has: {known}")
            return _value(Model, row)

    def models(self) -> tuple[Model, ...]:
        """Return all models, by name and age."""
        query = select(ModelRow).order_by(ModelRow.name, ModelRow.created_at_seconds, ModelRow.digest)
        with self._reading() as session:
            return tuple(_value(Model, row) for row in session.scalars(query))

    def add_device_class(self, device_class: DeviceClass) -> None:
        """Register a device class.

        Raises:
            ConfigurationError: The name is taken by a class with other capabilities.
        """
        definition = json.dumps(asdict(device_class), sort_keys=True)
        with self._writing() as session:
            row = session.get(DeviceClassRow, device_class.name)
            if row is None:
                session.add(DeviceClassRow(name=device_class.name, definition=definition))
                self._audit(session, "device_class_added", device_class.name)
            elif row.definition != definition:
                raise ConfigurationError(
                    f"device class '{device_class.name}' is registered as {row.definition}, "
                    f"not {definition}; choose another name"
                )

    def device_class(self, name: str) -> DeviceClass:
        """Return the device class of that name.

        Raises:
            NotFoundError: There is none.
        """
        with self._reading() as session:
            row = session.get(DeviceClassRow, name)
            if row is None:
                raise NotFoundError(f"the registry has no device class '{name}'")
            return DeviceClass(**json.loads(row.definition))

    def add_lab(self, lab: Lab) -> None:
        """Register what the lab measured; measured again, the newer replaces the older."""
        with self._writing() as session:
            session.merge(LabRow(**asdict(lab)))
            self._audit(session, "lab_measured", f"{lab.model_digest}/{lab.device_class}", inputs=lab.inputs)

    def lab(self, model_digest: str, device_class: str) -> Lab:
        """Return what the lab measured on that model as that class runs it.

        Raises:
            NotFoundError: The model was never prepared for the class.
        """
        with self._reading() as session:
            row = session.get(LabRow, (model_digest, device_class))
            if row is None:
                raise NotFoundError(
                    f"model {model_digest[:12]} was not prepared for device class '{device_class}'; "
                    "prepare it with the lab's inputs first"
                )
            return _value(Lab, row)

    def start_generation(
        self, model_digest: str, device_class: str, *, base_number: int | None = None, settings: str = "{}"
    ) -> Generation:
        """Return a new open generation, with the number after the last one.

        Args:
            model_digest: A registered model.
            device_class: Name of a registered class.
            base_number: The published generation that it starts from; None for generation 0.
            settings: The run's settings as JSON, for the record.

        Raises:
            IllegalTransitionError: Another generation of this model and class is open.
        """
        mine = (GenerationRow.model_digest == model_digest, GenerationRow.device_class == device_class)
        try:
            with self._writing() as session:
                numbers = session.scalars(select(GenerationRow.number).where(*mine)).all()
                number = max(numbers, default=-1) + 1
                generation = Generation(
                    model_digest=model_digest,
                    device_class=device_class,
                    number=number,
                    base_number=number if base_number is None else base_number,
                    settings=settings,
                    started_at_seconds=self._clock(),
                )
                session.add(GenerationRow(**asdict(generation)))
                self._audit(session, "generation_started", _subject(generation))
        except IntegrityError as error:
            raise IllegalTransitionError(
                f"model {model_digest[:12]} on '{device_class}' cannot start a generation: one is open, "
                "or the model or class is not registered"
            ) from error
        return generation

    def advance(self, generation: Generation, event: Event) -> Generation:
        """Store the generation's fields and move it on by `event`; return it as stored.

        Args:
            generation: As read or returned before, with new results put in by `replace`.
            event: What happened.

        Raises:
            IllegalTransitionError: The event cannot happen in this step, or another run has moved the
                generation meanwhile.
        """
        step = next_step(generation.step, event)
        moved = replace(generation, step=step)
        if not moved.is_open and generation.is_open:
            moved = replace(moved, finished_at_seconds=self._clock())
        statement = (
            update(GenerationRow)
            .where(*_is(generation), GenerationRow.step == generation.step)
            .values(**{**asdict(moved), "step": str(step)})
        )
        with self._writing() as session:
            if session.connection().execute(statement).rowcount != 1:
                raise IllegalTransitionError(
                    f"generation {_subject(generation)} is no longer in step '{generation.step}': "
                    "another run has moved it"
                )
            self._audit(session, event, _subject(generation), reason=moved.reason)
        return moved

    def generations(self, model_digest: str, device_class: str) -> tuple[Generation, ...]:
        """Return all generations of a model on a class, by number."""
        mine = (GenerationRow.model_digest == model_digest, GenerationRow.device_class == device_class)
        with self._reading() as session:
            rows = session.scalars(select(GenerationRow).where(*mine).order_by(GenerationRow.number))
            return tuple(_generation(row) for row in rows)

    def open_generation(self, model_digest: str, device_class: str) -> Generation | None:
        """Return the generation that a run has begun and not finished, if there is one."""
        return next((g for g in self.generations(model_digest, device_class) if g.is_open), None)

    def published(self, model_digest: str, device_class: str) -> Generation:
        """Return the generation that devices should run, which the next one starts from.

        It is the one that the update service serves, where it serves one of ours; so what was rolled back, or waits for
        its rollout, is passed over. Otherwise it is the newest published one.

        Raises:
            NotFoundError: The model was never prepared for the class.
        """
        with self._reading() as session:
            served = served_manifest(session, model_digest, device_class)
        generations = self.generations(model_digest, device_class)
        ours = [g for g in generations if served is not None and g.manifest_digest == served]
        live = ours or [g for g in generations if g.step is Step.PUBLISHED]
        if not live:
            raise NotFoundError(
                f"model {model_digest[:12]} has no published generation for device class '{device_class}'; "
                "prepare it with the lab's inputs first"
            )
        return live[-1]

    def device_classes(self, model_digest: str) -> tuple[DeviceClass, ...]:
        """Return the classes that a model was prepared for, by name."""
        query = select(LabRow.device_class).where(LabRow.model_digest == model_digest)
        with self._reading() as session:
            names = sorted(session.scalars(query))
        return tuple(self.device_class(name) for name in names)

    def audit(self) -> tuple[AuditEntry, ...]:
        """Return every change, oldest first."""
        with self._reading() as session:
            return tuple(
                _value(AuditEntry, row) for row in session.scalars(select(AuditRow).order_by(AuditRow.id))
            )

    def add_round(self, model_digest: str, device_class: str, number: int, end: "RoundEnd") -> None:
        """Keep how a round ended; `NO_CLASS` and `NO_GENERATION` stand for what was not known yet."""
        counted = {**asdict(end), "failed": json.dumps(dict(end.failed), sort_keys=True)}
        with self._writing() as session:
            session.add(
                RoundRow(
                    model_digest=model_digest,
                    device_class=device_class,
                    number=number,
                    at_seconds=self._clock(),
                    **counted,
                )
            )


def _value(kind: type[_Value], row: object) -> _Value:
    """Return the row's columns as the dataclass that has the same fields."""
    return kind(**{field.name: getattr(row, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def _generation(row: GenerationRow) -> Generation:
    generation = _value(Generation, row)
    return replace(generation, step=Step(generation.step))


def _is(generation: Generation) -> tuple[Any, ...]:
    return (
        GenerationRow.model_digest == generation.model_digest,
        GenerationRow.device_class == generation.device_class,
        GenerationRow.number == generation.number,
    )


def _subject(generation: Generation) -> str:
    return f"{generation.model_digest}/{generation.device_class}/{generation.number}"
