"""Which content the registry still needs.

The rules:

1. A row that names content needs it: a model, what the lab measured, a generation, a version of a target, a rollout.
2. A manifest needs what it names; an index of inputs likewise. A manifest that devices may be told to run and that
   cannot be read might need anything: then nobody can say what is needed.
3. What has been forgotten is an exception to the first rule: statistics of a generation that was closed long ago, which
   nothing reads again, and the artifact of one that was never published.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from quantization.errors import NotFoundError
from server.candidate import load_manifest
from server.folded import Blobs, read
from server.generation import Step
from server.tables import GenerationRow, LabRow, ModelRow, RolloutRow, TargetRow

_STATISTICS = ("moments_digest", "inputs_digest", "probes_digest", "ranges_digest")

_Named = Callable[[Blobs, str], Iterable[str]]


def needed_digests(
    session: Session, blobs: Blobs, *, signed: Collection[str] = (), forgotten_before_seconds: float = 0.0
) -> frozenset[str]:
    """Return the digests of all content that rows of the registry need.

    Args:
        session: Reads the registry, at one moment.
        blobs: Have manifests and indexes.
        signed: Manifests that are signed, which devices may be told to run.
        forgotten_before_seconds: Generations that were closed before are forgotten as far as they may be; seconds since
            1970 (UTC).

    Raises:
        NotFoundError: A manifest that devices may be told to run is missing.
        DigestMismatchError: A manifest or an index is damaged.
        MalformedError: One is something else.
    """
    served = {*signed, *session.scalars(select(TargetRow.manifest_digest))}
    served |= {*session.scalars(select(RolloutRow.manifest_digest))}
    served |= {*session.scalars(select(RolloutRow.base_manifest_digest))}
    published = GenerationRow.step == Step.PUBLISHED
    served |= {*session.scalars(select(GenerationRow.manifest_digest).where(published))}
    needed = {*session.scalars(select(ModelRow.digest)), *session.scalars(select(LabRow.statistics_digest))}
    for row in session.scalars(select(GenerationRow)):
        is_old = row.finished_at_seconds is not None and row.finished_at_seconds < forgotten_before_seconds
        if not is_old:
            needed |= {getattr(row, column) for column in _STATISTICS}
            needed |= set(_contents(blobs, _named_by_index, row.inputs_digest))
        if not is_old or row.manifest_digest in served:  # the next generation may start from its weights
            needed |= {row.manifest_digest, *_weights(row)}
            needed |= set(_contents(blobs, _named_by_manifest, row.manifest_digest))
    for digest in served:
        needed |= {digest, *_named_by_manifest(blobs, digest)}
    return frozenset(needed - {""})


def _weights(row: GenerationRow) -> Iterator[str]:
    """Yield the rounded weights that a generation has chosen, and that its policy has."""
    for text in (row.weights, row.policy):
        yield json.loads(text).get("weights_digest", "") if text else ""


def _contents(blobs: Blobs, named: _Named, digest: str) -> Iterable[str]:
    """Return what a content names; nothing where there is none: what it named cannot be used without it."""
    try:
        return named(blobs, digest) if digest else ()
    except NotFoundError:
        return ()


def _named_by_manifest(blobs: Blobs, digest: str) -> Iterable[str]:
    return load_manifest(blobs, digest).blobs


def _named_by_index(blobs: Blobs, digest: str) -> Iterable[str]:
    named: dict[str, str] = json.loads(read(blobs, digest))
    return named.values()
