"""Running totals of what the devices of a class count, so that nobody has to read all devices to know them.

The rules:

1. Totals change in the transaction that stores reports, so they count each report once. They are its last writes, in
   one order of rows: transactions that store reports do not lock each other out.
2. Each total is kept in `SHARDS` rows, of which a server process always changes the same one: processes seldom wait for
   each other.
3. Beside each version's totals there are those of all versions (`ALL_VERSIONS`), which never fall.
4. A total stays where it cannot grow any more (2^58 in each row), and nothing else ends by that.
"""

import zlib
from collections.abc import Collection
from dataclasses import dataclass, fields

from sqlalchemy import Case, and_, case, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from server.tables import ClassTotalsRow
from server.telemetry_counts import TelemetryCounts

SHARDS = 16
ALL_VERSIONS = -1
MAX_TOTAL = 1 << 58
"""Most in one row, so that the sum over `SHARDS` is a number of 63 bits on every database."""

TotalsKey = tuple[str, str, int]
"""A model's digest, the name of a device class, and a version."""


@dataclass(frozen=True, slots=True)
class ClassTotals:
    """Sums over the devices of a class; `+` merges, and `ClassTotals()` is its identity.

    Attributes:
        devices: Devices that last reported the version.
        samples: As in `TelemetryCounts`, like all that follow.
        failures: Inputs that should have been answered and were not.
        load_failures: Times that the version could not be built.
        labelled: Samples whose class became known.
        hits: Labelled samples that were right.
        judged: Samples that another model answered too.
        agreements: Those where both said the same.
        observed_values: Values observed at activation sites.
        clipped_values: Those beyond their site's range.
    """

    devices: int = 0
    samples: int = 0
    failures: int = 0
    load_failures: int = 0
    labelled: int = 0
    hits: int = 0
    judged: int = 0
    agreements: int = 0
    observed_values: int = 0
    clipped_values: int = 0

    def __add__(self, other: "ClassTotals") -> "ClassTotals":
        """Return the sums of both."""
        return ClassTotals(*(getattr(self, name) + getattr(other, name) for name in _NAMES))


_NAMES = tuple(field.name for field in fields(ClassTotals))


class TotalsChanges:
    """What one transaction changes in the totals; collected first, stored at its end."""

    def __init__(self) -> None:
        self._changes: dict[TotalsKey, ClassTotals] = {}

    def add_report(
        self,
        model_digest: str,
        device_class: str,
        *,
        version: int,
        version_before: int | None,
        counts: TelemetryCounts,
        observed_values: int = 0,
        clipped_values: int = 0,
    ) -> None:
        """Add what a report changes.

        Args:
            model_digest: Of the model.
            device_class: Name of the class.
            version: That the report is of.
            version_before: That the device's report before was of; None for its first one.
            counts: What the report counts.
            observed_values: Values observed at activation sites.
            clipped_values: Those beyond their site's range.
        """
        counted = ClassTotals(
            samples=counts.samples,
            failures=counts.failures,
            load_failures=counts.load_failures,
            labelled=counts.labelled,
            hits=counts.hits,
            judged=counts.judged,
            agreements=counts.agreements,
            observed_values=observed_values,
            clipped_values=clipped_values,
        )
        key = (model_digest, device_class)
        self._add((*key, version), counted + ClassTotals(devices=int(version != version_before)))
        self._add((*key, ALL_VERSIONS), counted + ClassTotals(devices=int(version_before is None)))
        if version_before is not None and version_before != version:
            self._add((*key, version_before), ClassTotals(devices=-1))

    def merge(self, other: "TotalsChanges") -> None:
        """Add what another one has collected."""
        for key, change in other._changes.items():  # noqa: SLF001 - of its own kind
            self._add(key, change)

    def store(self, session: Session, shard: int) -> None:
        """Write the changes into one of the `SHARDS` parts; the transaction's last writes."""
        for key in sorted(self._changes):
            _store(session, key, shard, self._changes[key])

    def _add(self, key: TotalsKey, change: ClassTotals) -> None:
        self._changes[key] = self._changes.get(key, ClassTotals()) + change


def shard_of(process: str) -> int:
    """Return the part that a server process changes, by a name that other processes do not have."""
    return zlib.crc32(process.encode()) % SHARDS


def read_totals(
    session: Session, versions: Collection[TotalsKey]
) -> tuple[dict[TotalsKey, ClassTotals], dict[str, ClassTotals]]:
    """Return the totals of these versions, and those of each class over all models and versions; in one query."""
    row = ClassTotalsRow
    wanted = [
        and_(row.model_digest == model, row.device_class == name, row.version == version)
        for model, name, version in versions
    ]
    rows = session.execute(
        select(row.model_digest, row.device_class, row.version, *(func.sum(getattr(row, n)) for n in _NAMES))
        .where(or_(row.version == ALL_VERSIONS, *wanted))
        .group_by(row.model_digest, row.device_class, row.version)
    )
    by_version: dict[TotalsKey, ClassTotals] = {}
    by_class: dict[str, ClassTotals] = {}
    for model, name, version, *sums in rows:
        totals = ClassTotals(*map(int, sums))
        if version == ALL_VERSIONS:
            by_class[name] = by_class.get(name, ClassTotals()) + totals
        else:
            by_version[model, name, version] = totals
    return by_version, by_class


def _store(session: Session, key: TotalsKey, shard: int, change: ClassTotals) -> None:
    if _update(session, key, shard, change):
        return
    columns = {name: min(getattr(change, name), MAX_TOTAL) for name in _NAMES}
    row = ClassTotalsRow(model_digest=key[0], device_class=key[1], version=key[2], shard=shard, **columns)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # another process with the same part has made the row meanwhile
        if not _update(session, key, shard, change):
            raise


def _bounded_sum(column: InstrumentedAttribute[int], change: int) -> Case[int]:
    change = min(change, MAX_TOTAL)
    return case((column > MAX_TOTAL - change, MAX_TOTAL), else_=column + change)


def _update(session: Session, key: TotalsKey, shard: int, change: ClassTotals) -> bool:
    """Add to the row; return whether it is there."""
    row = ClassTotalsRow
    mine = (
        row.model_digest == key[0],
        row.device_class == key[1],
        row.version == key[2],
        row.shard == shard,
    )
    sums = {name: _bounded_sum(getattr(row, name), getattr(change, name)) for name in _NAMES}
    return session.connection().execute(update(row).where(*mine).values(sums)).rowcount == 1
