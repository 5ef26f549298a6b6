"""What the registry shows of the fleet, read in a fixed number of queries, whatever the number of devices.

The rules:

1. No query reads rows of devices: what they count is kept as running totals (`server.class_totals`).
2. Everything is by device class. Where several models have targets on one class, the one published last speaks for
   it; what only grows is summed over models, so that it never falls.
3. A policy is large and never changes: its text is read once.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Engine, and_, func, or_, select
from sqlalchemy.orm import Session

from quantization.errors import MalformedError
from quantization.renormalization import DriftRule
from server.blob_store import BlobStore
from server.class_totals import ClassTotals, TotalsKey, read_totals
from server.generation import FINAL_STEPS, Step
from server.layer_bits import bits_by_layer, mean_bits_by_group, node_order
from server.rollout import Rollout
from server.rollout_rows import rollout_of, target_version_of
from server.tables import DeviceClassRow, GenerationRow, RolloutRow, TargetRow
from server.target_versions import TargetVersion

_KEPT_POLICIES = 256

_GenerationKey = tuple[str, str, int]
"""A model's digest, the name of a device class, and a generation's number."""


@dataclass(frozen=True, slots=True)
class ClassReading:
    """What the registry shows of one device class; None where there is nothing to show.

    Attributes:
        device_class: Name of the class.
        target_version: Newest version of its target; 0 where none was published.
        policy_generation: Number of the policy that this version runs; where nothing was published to devices, of the
            newest policy that was found not worse.
        rollout: The rollout that brought this version, or whose rolling back did.
        current: Counts under the version that devices outside an open rollout's share run.
        candidate: Counts under the version that an open rollout brings.
        totals: Counts under all versions of all models; they never fall.
        drift_ratio: Part of the layers that had drifted when devices were last asked.
        mean_bits: Mean bits per weight of that policy, by group of layers.
        generations: How many generations ended how.
    """

    device_class: str
    target_version: int = 0
    policy_generation: int | None = None
    rollout: Rollout | None = None
    current: ClassTotals = field(default_factory=ClassTotals)
    candidate: ClassTotals | None = None
    totals: ClassTotals = field(default_factory=ClassTotals)
    drift_ratio: float | None = None
    mean_bits: Mapping[str, float] = field(default_factory=dict)
    generations: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FleetReadings:
    """What the registry shows of the fleet.

    Attributes:
        classes: In order of name.
    """

    classes: tuple[ClassReading, ...] = ()


class FleetReader:
    """Reads the registry's database and, for what a policy stores, manifests; one thread at a time may ask."""

    def __init__(self, engine: Engine, blobs: BlobStore | None = None) -> None:
        """Read nothing yet.

        Args:
            engine: Of a database that is migrated.
            blobs: Holds the manifests of published policies; None leaves bits out.
        """
        self._engine = engine
        self._blobs = blobs
        self._mean_bits: OrderedDict[_GenerationKey, Mapping[str, float]] = OrderedDict()

    def read(self) -> FleetReadings:
        """Return what is there now.

        Raises:
            SQLAlchemyError: The database cannot be read.
            QuantFleetError: It, or the blob store, holds what this version cannot read.
        """
        with Session(self._engine.execution_options(begin="DEFERRED")) as session:
            names = sorted(session.scalars(select(DeviceClassRow.name)))
            targets = _speaking_targets(session)
            rollouts = _rollouts(session, targets)
            policies = _policies(session, targets)
            drift = _drift_ratios(session)
            generations = _generations(session)
            by_version, by_class = read_totals(session, _shown(targets, rollouts))
            mean_bits = {name: self._bits_of(session, key) for name, key in policies.items()}
        return FleetReadings(
            tuple(
                ClassReading(
                    device_class=name,
                    target_version=targets[name].version if name in targets else 0,
                    policy_generation=policies[name][2] if name in policies else None,
                    rollout=rollouts.get(name),
                    current=_current(targets.get(name), rollouts.get(name), by_version),
                    candidate=_candidate(rollouts.get(name), by_version),
                    totals=by_class.get(name, ClassTotals()),
                    drift_ratio=drift.get(name),
                    mean_bits=mean_bits.get(name, {}),
                    generations=generations.get(name, {}),
                )
                for name in names
            )
        )

    def _bits_of(self, session: Session, key: _GenerationKey) -> Mapping[str, float]:
        """Return the mean bits by group of a policy's layers, read once."""
        if self._blobs is None:
            return {}
        if key not in self._mean_bits:
            row = session.execute(
                select(GenerationRow.policy, GenerationRow.manifest_digest).where(
                    GenerationRow.model_digest == key[0],
                    GenerationRow.device_class == key[1],
                    GenerationRow.number == key[2],
                )
            ).one()
            order = node_order(self._blobs, row.manifest_digest)
            self._mean_bits[key] = mean_bits_by_group(bits_by_layer(row.policy), order)
            while len(self._mean_bits) > _KEPT_POLICIES:
                self._mean_bits.popitem(last=False)
        return self._mean_bits[key]


def _speaking_targets(session: Session) -> dict[str, TargetVersion]:
    """Return the newest version of each class's target, of the model that was published last."""
    newest = (
        select(TargetRow.model_digest, TargetRow.device_class, func.max(TargetRow.version).label("version"))
        .group_by(TargetRow.model_digest, TargetRow.device_class)
        .subquery()
    )
    rows = session.scalars(
        select(TargetRow)
        .join(
            newest,
            and_(
                TargetRow.model_digest == newest.c.model_digest,
                TargetRow.device_class == newest.c.device_class,
                TargetRow.version == newest.c.version,
            ),
        )
        .order_by(TargetRow.at_seconds, TargetRow.model_digest)
    )
    return {row.device_class: target_version_of(row) for row in rows}


def _rollouts(session: Session, targets: Mapping[str, TargetVersion]) -> dict[str, Rollout]:
    """Return the rollout that brought each of these versions, or whose rolling back did."""
    newest = [
        and_(
            RolloutRow.model_digest == target.model_digest,
            RolloutRow.device_class == name,
            or_(RolloutRow.version == target.version, RolloutRow.rolled_back_version == target.version),
        )
        for name, target in targets.items()
    ]
    if not newest:
        return {}
    return {
        row.device_class: rollout_of(row) for row in session.scalars(select(RolloutRow).where(or_(*newest)))
    }


def _policies(session: Session, targets: Mapping[str, TargetVersion]) -> dict[str, _GenerationKey]:
    """Return which generation's policy each class runs."""
    rows = session.execute(
        select(
            GenerationRow.model_digest,
            GenerationRow.device_class,
            GenerationRow.number,
            GenerationRow.manifest_digest,
        )
        .where(GenerationRow.step == Step.PUBLISHED)
        .order_by(GenerationRow.finished_at_seconds, GenerationRow.number)
    )
    policies: dict[str, _GenerationKey] = {}
    for row in rows:
        target = targets.get(row.device_class)
        if target is None or (target.model_digest, target.manifest_digest) == (
            row.model_digest, row.manifest_digest
        ):  # fmt: skip
            policies[row.device_class] = (row.model_digest, row.device_class, row.number)
    return policies


def _drift_ratios(session: Session) -> dict[str, float]:
    """Return which part of its layers had drifted when devices of a class were last asked."""
    asked = (
        select(
            GenerationRow.device_class, func.max(GenerationRow.started_at_seconds).label("started_at_seconds")
        )
        .where(GenerationRow.moments_digest != "")
        .group_by(GenerationRow.device_class)
        .subquery()
    )
    rows = session.execute(
        select(GenerationRow.device_class, GenerationRow.drift)
        .join(
            asked,
            and_(
                GenerationRow.device_class == asked.c.device_class,
                GenerationRow.started_at_seconds == asked.c.started_at_seconds,
            ),
        )
        .where(GenerationRow.moments_digest != "")
    )
    return {row.device_class: _drifted_part(row.drift) for row in rows}


def _drifted_part(drift: str) -> float:
    """Return the part of the layers that differ from the lab by more than chance and more than a trifle."""
    rule = DriftRule()
    try:
        layers = json.loads(drift).get("layers", {}).values()
        drifted = [
            layer["significance"] >= rule.min_significance
            and max(layer["shift"], layer["log_spread"]) >= rule.min_size
            for layer in layers
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedError(f"drift of a generation cannot be read: {error}") from error
    return sum(drifted) / len(drifted) if drifted else 0.0


def _generations(session: Session) -> dict[str, dict[str, int]]:
    """Return how many generations of each class ended how."""
    rows = session.execute(
        select(GenerationRow.device_class, GenerationRow.step, func.count().label("generations"))
        .where(GenerationRow.step.in_([str(step) for step in FINAL_STEPS]))
        .group_by(GenerationRow.device_class, GenerationRow.step)
    )
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        counts.setdefault(row.device_class, {})[row.step] = row.generations
    return counts


def _shown(targets: Mapping[str, TargetVersion], rollouts: Mapping[str, Rollout]) -> list[TotalsKey]:
    """Return the versions whose counts are shown: of each class the newest, and its base while a rollout is open."""
    keys = [(target.model_digest, name, target.version) for name, target in targets.items()]
    keys += [
        (rollout.model_digest, name, rollout.base_version)
        for name, rollout in rollouts.items()
        if rollout.is_open
    ]
    return keys


def _current(
    target: TargetVersion | None, rollout: Rollout | None, by_version: Mapping[TotalsKey, ClassTotals]
) -> ClassTotals:
    if target is None:
        return ClassTotals()
    version = rollout.base_version if rollout is not None and rollout.is_open else target.version
    return by_version.get((target.model_digest, target.device_class, version), ClassTotals())


def _candidate(rollout: Rollout | None, by_version: Mapping[TotalsKey, ClassTotals]) -> ClassTotals | None:
    if rollout is None or not rollout.is_open:
        return None
    return by_version.get((rollout.model_digest, rollout.device_class, rollout.version), ClassTotals())
