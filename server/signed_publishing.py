"""Publishing an artifact: checked, signed, and only then opened.

The rules:

1. What is published is whole: its manifest and every blob that it names lie undamaged in the blob store, its model was
   prepared for its class, and the class can afford it.
2. Signatures come first. A rollout of version n + 1 needs two: the new content, and the present one as version n + 2,
   the way back, so that telemetry can take the rollout back at any hour. The first version of a target needs one.
3. Names that were used keep their content. Names beyond the newest version were signed for something that was never
   opened, or for a way back that nobody needed: signing for the next change replaces them.
4. Every step may be repeated. Whoever dies between signing and opening does the same again, finds the names signed, and
   opens; whoever dies later finds the rollout opened.
5. Nothing is signed while a rollout of the target is open: its way back stays.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from quantization.blob import decode_blob_content
from quantization.errors import ConfigurationError, IllegalTransitionError
from quantization.target_name import TargetName
from server.blob_store import BlobStore
from server.keys import KeyFolder
from server.publishable import check_publishable
from server.registry import Registry
from server.rollout import DEFAULT_PLAN, Event, Phase, Rollout, RolloutPlan
from server.rollout_registry import RolloutRegistry
from server.signed_metadata import SignedMetadata
from server.target_signing import SignedContent, SignedNames, sign_targets
from server.target_versions import TargetVersion

KEPT_VERSIONS = 3
"""Used versions of a target whose names stay signed: the newest, its base, and one more."""


@dataclass(frozen=True, slots=True)
class Published:
    """What came of publishing.

    Attributes:
        version: Of the target.
        manifest_digest: What it is.
        rollout: Brings it to the class; None for a first version, which all devices get at once.
        at_seconds: When it was published, seconds since 1970 (UTC).
        reason: Why, in words.
        is_new: Whether this call changed anything; False where all had been done before.
    """

    version: int
    manifest_digest: str
    rollout: Rollout | None
    at_seconds: float
    reason: str
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """A version that is to come, and what must be signed before.

    Attributes:
        model_digest: Of the model.
        device_class: Name of the class.
        version: That is to come, or is there.
        manifest_digest: What it will be.
        is_first: Whether the target has no version yet.
        names: What must be signed of the model and class, and nothing else.
        published: What is there already; None if the version is to come.
    """

    model_digest: str
    device_class: str
    version: int
    manifest_digest: str
    is_first: bool
    names: SignedNames
    published: Published | None = None


class Publisher:
    """Plans and opens changes of targets; any thread may call it."""

    def __init__(
        self,
        registry: Registry,
        rollouts: RolloutRegistry,
        blobs: BlobStore,
        metadata: SignedMetadata | None,
        *,
        plan: RolloutPlan = DEFAULT_PLAN,
        canaries: int = 4,
    ) -> None:
        """Publish into a registry.

        Args:
            registry: Knows models, classes and generations.
            rollouts: Shares its database.
            blobs: Hold what is published.
            metadata: Must have the signatures; None where nothing is signed.
            plan: By which steps a rollout goes.
            canaries: Least devices of its first step.
        """
        self._registry = registry
        self._rollouts = rollouts
        self._blobs = blobs
        self._metadata = metadata
        self._plan = plan
        self._canaries = canaries

    def plan(self, manifest_digest: str, *, is_again: bool = False) -> PlannedChange:
        """Return what publishing a manifest takes.

        Args:
            manifest_digest: Names the manifest and the blob that holds it.
            is_again: Whether it may be what was rolled back last.

        Raises:
            NotFoundError: The manifest, a blob or the model is not there.
            DigestMismatchError: A blob is damaged.
            ConfigurationError: The class cannot afford it.
            IllegalTransitionError: Another rollout of the target is open, or this content was rolled back.
        """
        manifest = check_publishable(manifest_digest, self._registry, self._blobs)
        model, device_class = manifest.model_digest, manifest.device_class
        versions = self._rollouts.targets(model, device_class)
        if not versions:
            return self._planned(versions, (model, device_class), (manifest_digest,))
        served = self._rollouts.served(model, device_class)
        if versions[-1].manifest_digest == manifest_digest:
            published = _published(versions[-1], served.rollout, is_new=False)
            names = {**self._used(versions), **self._way_back(published)}
            return PlannedChange(
                model, device_class, published.version, manifest_digest, False, names, published
            )
        if served.rollout is not None and served.rollout.is_open:
            raise IllegalTransitionError(
                f"rollout {served.rollout.rollout_id} of version {served.rollout.version} on '{device_class}' is "
                f"open ({served.rollout.phase}); promote it or roll it back first"
            )
        if not is_again and _was_rolled_back(self._rollouts, model, device_class, manifest_digest):
            raise IllegalTransitionError(
                f"manifest {manifest_digest[:12]} was rolled back on '{device_class}' before; say --again to publish "
                "it all the same"
            )
        return self._planned(versions, (model, device_class), (manifest_digest, versions[-1].manifest_digest))

    def plan_way_back(self, rollout_id: str) -> PlannedChange:
        """Return what taking back a rollout takes.

        Raises:
            NotFoundError: There is no such rollout.
            IllegalTransitionError: A newer version has followed it, or it is taken back already.
        """
        rollout = self._rollouts.rollout(rollout_id)
        key = (rollout.model_digest, rollout.device_class)
        versions = self._rollouts.targets(*key)
        if rollout.phase is Phase.ROLLED_BACK or versions[-1].version != rollout.version:
            raise IllegalTransitionError(
                f"rollout {rollout_id} of version {rollout.version} cannot be taken back: version "
                f"{versions[-1].version} has followed it"
            )
        return self._planned(versions, key, (rollout.base_manifest_digest,))

    def is_signed(self, change: PlannedChange) -> bool:
        """Return whether all names that a change needs are signed, or nothing is signed here."""
        return self._metadata is None or is_signed(self._metadata, change)

    def open(
        self, change: PlannedChange, *, actor: str, reason: str, is_immediate: bool = False
    ) -> Published:
        """Return the change once it is made; made before, it stays as it is.

        Args:
            change: As planned.
            actor: Who publishes.
            reason: Why, in words.
            is_immediate: Give it to all devices at once.

        Raises:
            IllegalTransitionError: Names are not signed, or another version has been published since.
        """
        if not self.is_signed(change):
            raise IllegalTransitionError(
                f"version {change.version} of '{change.device_class}' is not signed: publish it with the offline keys"
            )
        published = change.published or self._open(change, actor, reason)
        if is_immediate and published.rollout is not None and published.rollout.is_open:
            rollout = self._rollouts.advance(published.rollout, Event.PROMOTED, actor=actor, reason=reason)
            published = replace(published, rollout=rollout, is_new=True)
        return published

    def _open(self, change: PlannedChange, actor: str, reason: str) -> Published:
        key = (change.model_digest, change.device_class, change.manifest_digest)
        if change.is_first:
            first = self._rollouts.publish(*key, reason=reason, actor=actor, version=change.version)
            return _published(first, None)
        rollout = self._rollouts.start(
            *key,
            actor=actor,
            reason=reason,
            plan=self._plan,
            canaries=self._canaries,
            version=change.version,
        )
        return Published(
            rollout.version, rollout.manifest_digest, rollout, rollout.started_at_seconds, rollout.reason
        )

    def _planned(
        self, versions: tuple[TargetVersion, ...], key: tuple[str, str], coming: tuple[str, ...]
    ) -> PlannedChange:
        """Return the change that brings `coming` after the versions that were used."""
        newest = versions[-1].version if versions else 0
        new = {
            TargetName(*key, newest + step): self._content(digest) for step, digest in enumerate(coming, 1)
        }
        names = {**self._used(versions), **new}
        return PlannedChange(*key, newest + 1, coming[0], not versions, names)

    def _used(self, versions: tuple[TargetVersion, ...]) -> SignedNames:
        return {
            TargetName(used.model_digest, used.device_class, used.version): self._content(
                used.manifest_digest
            )
            for used in versions[-KEPT_VERSIONS:]
        }

    def _way_back(self, published: Published) -> SignedNames:
        """Return the name under which a rollout can still be taken back."""
        rollout = published.rollout
        if rollout is None or rollout.version != published.version or rollout.phase is Phase.ROLLED_BACK:
            return {}
        name = TargetName(rollout.model_digest, rollout.device_class, rollout.version + 1)
        return {name: self._content(rollout.base_manifest_digest)}

    def _content(self, manifest_digest: str) -> SignedContent:
        stored = self._blobs.get(manifest_digest)
        return SignedContent(len(decode_blob_content(stored, manifest_digest)), manifest_digest)


def publish(
    publisher: Publisher,
    manifest_digest: str,
    metadata: SignedMetadata | None,
    offline: KeyFolder | None,
    online: KeyFolder | None,
    *,
    actor: str,
    reason: str = "",
    is_immediate: bool = False,
    is_again: bool = False,
    clock: Callable[[], float] = time.time,
) -> Published:
    """Sign an artifact and open its rollout, or publish it as the first version; done twice, it changes nothing.

    Args:
        publisher: Has the same metadata.
        manifest_digest: Names the manifest and the blob that holds it.
        metadata: Gets the signatures; None where nothing is signed.
        offline: Has the keys of targets; None only without metadata.
        online: Has the keys of snapshot and timestamp; likewise.
        actor: Who publishes.
        reason: Why, in words.
        is_immediate: Give it to all devices at once.
        is_again: Whether it may be what was rolled back last.
        clock: Seconds since 1970 (UTC).

    Raises:
        NotFoundError: The manifest, a blob, the model or a key is not there.
        DigestMismatchError: A blob is damaged.
        ConfigurationError: The class cannot afford it, or the metadata cannot be written.
        IllegalTransitionError: Another rollout of the target is open, or this content was rolled back.
    """
    change = publisher.plan(manifest_digest, is_again=is_again)
    if metadata is not None:
        if offline is None or online is None:
            raise ConfigurationError("publishing needs the offline and online keys where metadata is signed")
        sign_change(change, metadata, offline, online, now_seconds=clock())
    return publisher.open(change, actor=actor, reason=reason, is_immediate=is_immediate)


def sign_change(
    change: PlannedChange,
    metadata: SignedMetadata,
    offline: KeyFolder,
    online: KeyFolder,
    *,
    now_seconds: float,
) -> None:
    """Sign what a change needs, as far as that has not been done."""
    if is_signed(metadata, change):
        metadata.refresh(online, now_seconds=now_seconds)  # ends what a process that died left half done
        return
    current, root = metadata.read("targets"), metadata.read("root")
    signed = sign_targets(current, root, change.names, offline=offline, now_seconds=now_seconds)
    metadata.accept_targets(signed, online=online, now_seconds=now_seconds)


def is_signed(metadata: SignedMetadata, change: PlannedChange) -> bool:
    """Return whether the newest file of targets has what a change needs."""
    known = metadata.targets()
    return all(known.get(name) == content.digest for name, content in change.names.items())


def _published(target: TargetVersion, rollout: Rollout | None, *, is_new: bool = True) -> Published:
    return Published(
        target.version, target.manifest_digest, rollout, target.at_seconds, target.reason, is_new
    )


def _was_rolled_back(
    rollouts: RolloutRegistry, model_digest: str, device_class: str, manifest_digest: str
) -> bool:
    """Return whether the last rollout of this content ended by being taken back."""
    key = (model_digest, device_class, manifest_digest)
    mine = [r for r in rollouts.rollouts() if (r.model_digest, r.device_class, r.manifest_digest) == key]
    return bool(mine) and mine[-1].phase is Phase.ROLLED_BACK
