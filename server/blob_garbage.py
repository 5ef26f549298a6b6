"""Removes content that nothing needs from the blob store.

The rules:

1. What was stored lately stays, whatever it is: content is stored before the row that names it.
2. What the registry needs stays (`server.blob_references`). The store is listed first and the registry asked then, so
   that whatever was named meanwhile is known.
3. Nothing is removed while a generation is open: its run may just have found content in the store that no row names
   yet, such as that of a run which was cut off.
4. What is no blob stays: it is somebody else's. Files that a process left half written are nobody's.
5. A registry without a model needs nothing, which is no reason to remove everything: it is the wrong registry.
"""

import contextlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import fsspec
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from quantization.errors import ConfigurationError, IllegalTransitionError, UnreachableError
from server.blob_references import needed_digests
from server.blob_store import BlobStore
from server.database import reading
from server.stored_files import StoredFile, stored_files
from server.tables import GenerationRow, ModelRow

LEAST_DAYS = 1.0
"""Content that is younger always stays."""

_DAY_SECONDS = 86_400.0
_BLOB = re.compile(r"[0-9a-f]{64}")
_HALF_WRITTEN = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{32}\.tmp")
_BATCH = 100


@dataclass(frozen=True, slots=True)
class GarbageRules:
    """What may be removed.

    Attributes:
        older_than_days: Content that nothing needs stays for so long after it was stored; at least 1.
        forget_days: So long after it was closed, a generation keeps its statistics, and one that was never published
            its artifact; 0 for ever.
    """

    older_than_days: float = 7.0
    forget_days: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what would remove content that is about to be named."""
        if not self.older_than_days >= LEAST_DAYS:
            raise ConfigurationError(
                f"content stays for {LEAST_DAYS:g} day at least, not {self.older_than_days}: a run stores it before "
                "the registry names it"
            )
        if not (self.forget_days == 0 or self.forget_days >= LEAST_DAYS):
            raise ConfigurationError(
                f"generations are kept for {LEAST_DAYS:g} day at least, or for ever (0), not {self.forget_days}"
            )


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, or would be.

    Attributes:
        removed: Blobs and half-written files.
        removed_bytes: What they took.
        kept: Blobs that stay.
        kept_bytes: What they take.
    """

    removed: int
    removed_bytes: int
    kept: int
    kept_bytes: int


def collect_garbage(
    engine: Engine,
    blob_place: str,
    *,
    now_seconds: float,
    rules: GarbageRules,
    signed: Collection[str] = (),
    is_dry_run: bool = False,
) -> Collected:
    """Remove content that nothing needs; done twice, it changes nothing.

    Args:
        engine: Of the one registry whose content lies there; migrated.
        blob_place: The blob store, as fsspec reads it.
        now_seconds: Seconds since 1970 (UTC).
        rules: What may be removed.
        signed: Manifests that are signed.
        is_dry_run: Only say what would be removed.

    Raises:
        IllegalTransitionError: A generation is open.
        ConfigurationError: The registry knows no model, or the store cannot be opened.
        NotFoundError: A manifest that devices may be told to run is missing.
        DigestMismatchError: A manifest is damaged.
        UnreachableError: The store cannot be listed or changed now.
    """
    blobs = BlobStore(blob_place)
    files, root = fsspec.core.url_to_fs(blob_place, use_listings_cache=False)
    found = _listed(files, root)
    forgotten_before = now_seconds - rules.forget_days * _DAY_SECONDS if rules.forget_days else 0.0
    with reading(engine) as session:
        _refuse_to_guess(session)
        needed = needed_digests(session, blobs, signed=signed, forgotten_before_seconds=forgotten_before)
    before = now_seconds - rules.older_than_days * _DAY_SECONDS
    garbage = [one for one in found if _is_garbage(one, needed, before)]
    if not is_dry_run:
        for start in range(0, len(garbage), _BATCH):
            with reading(engine) as session:
                _refuse_to_guess(session)  # a run may have begun meanwhile
            for one in garbage[start : start + _BATCH]:
                _remove(files, one)
    kept = [one for one in set(found).difference(garbage) if _BLOB.fullmatch(one.name)]
    return Collected(
        len(garbage),
        sum(one.size_bytes for one in garbage),
        len(kept),
        sum(one.size_bytes for one in kept),
    )


def _is_garbage(file: StoredFile, needed: Collection[str], before_seconds: float) -> bool:
    if file.changed_at_seconds is None or file.changed_at_seconds >= before_seconds:
        return False
    is_unneeded = _BLOB.fullmatch(file.name) is not None and file.name not in needed
    return is_unneeded or _HALF_WRITTEN.fullmatch(file.name) is not None


def _refuse_to_guess(session: Session) -> None:
    """Refuse where nobody can say what is needed.

    Raises:
        IllegalTransitionError: A generation is open.
        ConfigurationError: The registry knows no model.
    """
    is_open = select(GenerationRow).where(GenerationRow.finished_at_seconds.is_(None))
    generation = session.scalars(is_open.limit(1)).first()
    if generation is not None:
        raise IllegalTransitionError(
            f"generation {generation.number} of model {generation.model_digest[:12]} on '{generation.device_class}' is "
            f"open (step '{generation.step}'): nothing is removed until it is closed"
        )
    if session.scalars(select(ModelRow.digest).limit(1)).first() is None:
        raise ConfigurationError(
            "the registry knows no model, so all content would be removed; name the registry of this blob store"
        )


def _listed(files: Any, root: str) -> tuple[StoredFile, ...]:  # noqa: ANN401 - fsspec has no types
    try:
        return stored_files(files, root)
    except Exception as error:  # each file system has errors of its own
        raise UnreachableError(f"blob store {root} cannot be listed now: {error}") from error


def _remove(files: Any, file: StoredFile) -> None:  # noqa: ANN401 - fsspec has no types
    try:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            files.rm_file(file.path)
    except Exception as error:  # each file system has errors of its own
        raise UnreachableError(f"{file.path} cannot be removed now: {error}") from error
