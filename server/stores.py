"""What the processes of one server share: registry, content, and what signs."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine

from quantization.errors import NotFoundError
from server.blob_store import BlobStore
from server.database import connect, migrate
from server.home_folder import HomeFolder
from server.keys import KeyFolder
from server.registry import Registry
from server.rollout import RolloutPlan
from server.rollout_registry import RolloutRegistry
from server.serve_settings import ServeSettings
from server.signed_metadata import SignedMetadata
from server.signed_publishing import Publisher
from server.telemetry_registry import TelemetryRegistry


@dataclass(frozen=True, slots=True)
class Signing:
    """What a server that signs has.

    Attributes:
        metadata: The folder that devices get their files from.
        online: Keys of snapshot and timestamp.
    """

    metadata: SignedMetadata
    online: KeyFolder


@dataclass(frozen=True, slots=True)
class Stores:
    """What a server's processes share.

    Attributes:
        engine: Of the registry's database.
        registry: Models, classes and generations.
        rollouts: Targets and rollouts.
        telemetry: Counts and evidence.
        blobs: Content.
        signing: Signed metadata and the online keys; None where nothing is signed.
        publisher: Plans and opens changes of targets.
    """

    engine: Engine
    registry: Registry
    rollouts: RolloutRegistry
    telemetry: TelemetryRegistry
    blobs: BlobStore
    signing: Signing | None
    publisher: Publisher


def open_stores(settings: ServeSettings, clock: Callable[[], float] = time.time) -> Stores:
    """Return the stores of a server; its database is made or migrated as needed.

    Raises:
        ConfigurationError: Something cannot be opened.
        NotFoundError: Metadata must be signed, and there are no keys.
    """
    engine = connect(settings.registry_place)
    migrate(engine)
    registry, rollouts = Registry(engine, clock), RolloutRegistry(engine, clock)
    blobs, signing = BlobStore(settings.blob_place), open_signing(settings)
    publisher = Publisher(
        registry,
        rollouts,
        blobs,
        None if signing is None else signing.metadata,
        plan=RolloutPlan(settings.plan.shares),
        canaries=settings.plan.canaries,
    )
    telemetry = TelemetryRegistry(
        engine,
        settings.rollout,
        max_inputs_per_second=settings.telemetry.max_inputs_per_second,
        clock=clock,
    )
    return Stores(engine, registry, rollouts, telemetry, blobs, signing, publisher)


def open_signing(settings: ServeSettings) -> Signing | None:
    """Return signed metadata and online keys; None in an insecure server that has none.

    Raises:
        NotFoundError: There are none, and the server is not insecure.
    """
    metadata = HomeFolder(settings.home).metadata
    online = settings.home / "keys" / "online"
    if not metadata.is_made:
        if settings.is_insecure:
            return None
        raise NotFoundError(
            f"{metadata.path} holds no signed metadata; make keys with `quantfleet-server keys init --home "
            f"{settings.home}`, or try things out with --insecure"
        )
    keys = KeyFolder(online) if online.is_dir() else None
    if keys is None or not (keys.key_ids("snapshot") and keys.key_ids("timestamp")):
        raise NotFoundError(
            f"{online} has no keys of snapshot and timestamp; restore them, or rotate both roles"
        )
    return Signing(metadata, keys)
