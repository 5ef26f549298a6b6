from dataclasses import replace

import pytest
from sqlalchemy.orm import Session

from quantization.device_class import ARM
from quantization.errors import NotFoundError
from server.entries import Model
from server.generation import Event
from server.registry import Registry
from server.tables import GenerationRow
from server.targets import MAX_MANIFESTS, Assignment, published_targets

MODEL = "ab" * 32


def publish(registry: Registry, number: int) -> str:
    digest = f"{number:064x}"
    generation = registry.start_generation(MODEL, ARM.name)
    registry.advance(replace(generation, manifest_digest=digest), Event.LAB_CALIBRATED)
    return digest


@pytest.fixture
def prepared(registry: Registry) -> Registry:
    registry.add_model(Model(MODEL, "digits", 1000))
    registry.add_device_class(ARM)
    return registry


def test_a_class_runs_its_newest_published_generation(prepared: Registry) -> None:
    find = published_targets(prepared)
    with pytest.raises(NotFoundError, match="no published target"):
        find(MODEL, ARM.name)
    first = publish(prepared, 1)
    targets = find(MODEL, ARM.name)
    assert targets.target_for("any") == Assignment(1, first)
    assert find(MODEL, ARM.name) == targets
    prepared.start_generation(MODEL, ARM.name)
    assert find(MODEL, ARM.name) == targets


def test_only_the_newest_manifests_are_kept(prepared: Registry) -> None:
    digests = [publish(prepared, 1)]
    with Session(prepared._engine) as session, session.begin():
        row = session.get(GenerationRow, (MODEL, ARM.name, 0))
        assert row is not None
        columns = {column.name: getattr(row, column.name) for column in GenerationRow.__table__.columns}
        for number in range(1, MAX_MANIFESTS + 3):
            digests.append(f"{number + 1:064x}")
            session.add(GenerationRow(**{**columns, "number": number, "manifest_digest": digests[-1]}))
    targets = published_targets(prepared)(MODEL, ARM.name)
    assert list(targets.manifest_digests) == digests[: -MAX_MANIFESTS - 1 : -1]
    assert targets.target_for("any") == Assignment(MAX_MANIFESTS + 3, digests[-1])
