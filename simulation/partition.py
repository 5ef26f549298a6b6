"""Who holds which field rows: by owner, by class, or at random; no row is on two devices.

Schemes, as typed:

* "owner": a device belongs to one owner. With more devices than owners, the rows of an owner are cut into
  contiguous parts, one a device, owners with more rows having more devices. With fewer devices than owners, a
  seeded choice of owners takes part, and the rows of the others stay unused.
* "classes:K": a device sees K classes; classes are spread evenly over devices, and the rows of a class over the
  devices that see it. Classes that no device sees stay unused.
* "dirichlet:ALPHA": the rows of each class are split in proportions drawn from a symmetric Dirichlet
  distribution (arXiv:1909.06335); small ALPHA makes devices one-sided.
* "iid": at random, equally many each.
* "auto": "owner" where the data has owners, else "classes:2" where it has labels, else "iid".

A device without rows gets one from the device with most, as long as that one has two.
"""

import math
from collections.abc import Sequence

import numpy as np

from quantization.arrays import IntArray
from quantization.errors import ConfigurationError
from simulation.tasks.task import TaskData

DEFAULT_CLASSES_PER_DEVICE = 2


def partition(task: TaskData, devices: int, scheme: str = "auto", seed: int = 0) -> tuple[IntArray, ...]:
    """Return the field rows of each device, as sorted indices into `task.field_x`.

    Args:
        task: Its field rows are dealt out.
        devices: How many devices; those beyond the number of rows stay empty.
        scheme: As above.
        seed: Of every choice.

    Raises:
        ConfigurationError: If the scheme is unknown or needs owners or labels that the data does not have.
    """
    if devices < 1:
        raise ConfigurationError(f"{devices} devices; give at least 1")
    rng = np.random.default_rng([seed, devices])
    kind, parameter = _parse(scheme, task)
    if kind == "owner":
        parts = _by_owner(_required(task.field_owner, "owner", "owners"), devices, rng)
    elif kind == "classes":
        parts = _by_classes(_required(task.field_y, scheme, "labels"), devices, int(parameter), rng)
    elif kind == "dirichlet":
        parts = _by_dirichlet(_required(task.field_y, scheme, "labels"), devices, parameter, rng)
    else:
        parts = list(np.array_split(rng.permutation(len(task.field_x)), devices))
    return tuple(np.sort(part).astype(np.int64) for part in _without_empty(parts))


def _parse(scheme: str, task: TaskData) -> tuple[str, float]:
    """Return the kind of scheme and its parameter, 0 where it has none."""
    if scheme == "auto":
        if task.field_owner is not None:
            return "owner", 0
        return ("classes", DEFAULT_CLASSES_PER_DEVICE) if task.field_y is not None else ("iid", 0)
    kind, has_parameter, text = scheme.partition(":")
    if kind in ("owner", "iid") and not has_parameter:
        return kind, 0
    try:
        if kind == "classes" and int(text) >= 1:
            return kind, int(text)
        if kind == "dirichlet" and 0.0 < float(text) < math.inf:
            return kind, float(text)
    except ValueError:
        pass
    raise ConfigurationError(
        f"partition {scheme!r} is unknown; give auto, owner, iid, classes:K (K devices' classes, such as"
        " classes:2) or dirichlet:ALPHA (such as dirichlet:0.5)"
    )


def _required(column: IntArray | None, scheme: str, what: str) -> IntArray:
    if column is None:
        raise ConfigurationError(
            f"partition {scheme!r} needs {what}, and this data has none; give the npz file "
            f"{'an array device' if what == 'owners' else 'an array y'}, or --partition iid"
        )
    return column


def _by_owner(owners: IntArray, devices: int, rng: np.random.Generator) -> list[IntArray]:
    names, counts = np.unique(owners, return_counts=True)
    if devices < len(names):
        chosen = np.sort(rng.permutation(len(names))[:devices])
        return [np.flatnonzero(owners == names[k]) for k in chosen]
    shares = _apportion(counts, devices)
    return [
        part
        for name, share in zip(names, shares, strict=True)
        for part in np.array_split(np.flatnonzero(owners == name), share)
    ]


def _apportion(counts: IntArray, devices: int) -> list[int]:
    """Return how many devices each owner has: one at least, then wherever a device has most rows."""
    shares = np.ones(len(counts), np.int64)
    for _ in range(devices - len(counts)):
        shares[np.argmax(counts / shares)] += 1
    return [int(share) for share in shares]


def _by_classes(
    labels: IntArray, devices: int, classes_per_device: int, rng: np.random.Generator
) -> list[IntArray]:
    classes = np.unique(labels)
    width = min(classes_per_device, len(classes))
    uses = np.zeros(len(classes), np.int64)
    holders: list[list[int]] = [[] for _ in classes]
    for device in range(devices):
        order = rng.permutation(len(classes))
        for k in order[np.argsort(uses[order], kind="stable")][:width]:
            uses[k] += 1
            holders[k].append(device)
    parts: list[list[IntArray]] = [[] for _ in range(devices)]
    for name, holding in zip(classes, holders, strict=True):
        if holding:
            rows = rng.permutation(np.flatnonzero(labels == name))
            for device, part in zip(holding, np.array_split(rows, len(holding)), strict=True):
                parts[device].append(part)
    return [_joined(part) for part in parts]


def _by_dirichlet(labels: IntArray, devices: int, alpha: float, rng: np.random.Generator) -> list[IntArray]:
    parts: list[list[IntArray]] = [[] for _ in range(devices)]
    for name in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == name))
        shares = rng.dirichlet(np.full(devices, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for device, part in enumerate(np.split(rows, cuts)):
            parts[device].append(part)
    return [_joined(part) for part in parts]


def _joined(parts: Sequence[IntArray]) -> IntArray:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _without_empty(parts: list[IntArray]) -> list[IntArray]:
    """Return the parts with a row in each, as far as the rows go."""
    parts = list(parts)
    for device, part in enumerate(parts):
        if len(part) == 0:
            giver = int(np.argmax([len(other) for other in parts]))
            if len(parts[giver]) < 2:
                break
            parts[device], parts[giver] = parts[giver][-1:], parts[giver][:-1]
    return parts
