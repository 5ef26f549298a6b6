"""What the registry shows of the fleet, read in a fixed number of queries, whatever the number of devices.

The rules:

1. No query reads rows of devices: what they count is kept as running totals (`server.class_totals`).
2. Everything is by device class. Where several models have targets on one class, the one published last speaks for
   it; what only grows is summed over models, so that it never falls.
3. A policy is large and never changes: its text is read once.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from server.blob_store import BlobStore
from server.class_totals import ClassTotals, TotalsKey, read_totals
from server.database import reading
from server.fleet_queries import (
    GenerationKey,
    drift_ratios,
    generations_of_classes,
    policies_of_classes,
    rollouts_of_classes,
    speaking_targets,
)
from server.layer_bits import bits_by_layer, mean_bits_by_group, node_order
from server.registry_part import Clock
from server.rollout import Rollout
from server.tables import DeviceClassRow, GenerationRow
from server.target_versions import TargetVersion
from server.tuning_readings import TuningReading, read_tuning

_log = structlog.get_logger()
_KEPT_POLICIES = 256


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
        tuning: Rounds, drift and tuners.
    """

    classes: tuple[ClassReading, ...] = ()
    tuning: TuningReading = field(default_factory=TuningReading)


class FleetReader:
    """Reads the registry's database and, for what a policy stores, manifests; one thread at a time may ask."""

    def __init__(self, engine: Engine, blobs: BlobStore | None = None, clock: Clock = time.time) -> None:
        """Read nothing yet.

        Args:
            engine: Of a database that is migrated.
            blobs: Holds the manifests of published policies; None leaves bits out.
            clock: Seconds since 1970 (UTC).
        """
        self._engine = engine
        self._blobs = blobs
        self._clock = clock
        self._mean_bits: OrderedDict[GenerationKey, Mapping[str, float]] = OrderedDict()

    def read(self) -> FleetReadings:
        """Return what is there now.

        Raises:
            SQLAlchemyError: The database cannot be read.
            QuantFleetError: It holds what this version cannot read.
        """
        with reading(self._engine) as session:
            names = sorted(session.scalars(select(DeviceClassRow.name)))
            targets = speaking_targets(session)
            rollouts = rollouts_of_classes(session, targets)
            policies = policies_of_classes(session, targets)
            drift = drift_ratios(session)
            generations = generations_of_classes(session)
            by_version, by_class = read_totals(session, _shown(targets, rollouts))
            mean_bits = {name: self._bits_of(session, key) for name, key in policies.items()}
            tuning = read_tuning(session, self._clock())
        return FleetReadings(
            tuning=tuning,
            classes=tuple(
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
            ),
        )

    def _bits_of(self, session: Session, key: GenerationKey) -> Mapping[str, float]:
        """Return the mean bits by group of a policy's layers, read once; none while the blob store is away."""
        if self._blobs is None:
            return {}
        if key not in self._mean_bits:
            policy, manifest_digest = session.execute(
                select(GenerationRow.policy, GenerationRow.manifest_digest).where(
                    GenerationRow.model_digest == key[0],
                    GenerationRow.device_class == key[1],
                    GenerationRow.number == key[2],
                )
            ).one()
            try:
                order = node_order(self._blobs, manifest_digest)
            except Exception as error:  # noqa: BLE001 - stores raise what they like; all else is known
                _log.warning("manifest_unreadable", digest=manifest_digest, error=str(error))
                return {}
            self._mean_bits[key] = mean_bits_by_group(bits_by_layer(policy), order)
            while len(self._mean_bits) > _KEPT_POLICIES:
                self._mean_bits.popitem(last=False)
        return self._mean_bits[key]


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
