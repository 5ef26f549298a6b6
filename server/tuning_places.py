"""Opens what the tuner works with: the registry, its SuperLink, and the keys to publish with, where they are here."""

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from quantization.errors import ConfigurationError
from server.blob_store import BlobStore
from server.database import shown_url
from server.flower_runs import FlowerRuns, SuperLink
from server.home_folder import HomeFolder
from server.keys import KeyFolder
from server.registry import Registry
from server.rollout import RolloutPlan
from server.rollout_registry import RolloutRegistry
from server.serve_settings import ServeSettings
from server.settings import ConfigValue
from server.signed_metadata import SignedMetadata
from server.signed_publishing import Publisher, publish
from server.tuner_settings import TunerSettings
from server.tuning_daemon import PublishFunction, Runs, Tuner
from server.tuning_registry import GenerationOutline, TuningRegistry
from server.tuning_situation import Facts

ACTOR = "tuner"
"""Who publishes, in the audit."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Places:
    """Where a server's state lies.

    Attributes:
        server: Settings of the server: its home, database, blobs, and how rollouts go.
        offline: Folder with the offline keys; None for that of the home folder, if it is there.
        passphrase: What they are encrypted with; None where they are not.
    """

    server: ServeSettings
    offline: Path | None = None
    passphrase: str | None = None

    @property
    def home(self) -> Path:
        """The server's home folder."""
        return self.server.home.expanduser().resolve()

    def run_config(self) -> dict[str, ConfigValue]:
        """Return what a run is told of places.

        A run's configuration goes to every device that is asked, so a password of the database is left out of it: the
        ServerApp finds that where libpq looks (`PGPASSFILE` in the SuperLink's environment).
        """
        url = self.server.server.registry_url
        return {
            "home": str(self.home),
            "registry-url": _without_password(url) if url else "",
            "blob-folder": self.server.server.blob_folder,
        }


@contextmanager
def opened_facts(places: Places) -> Iterator[Facts]:
    """Yield the registry.

    Raises:
        ConfigurationError: It cannot be opened.
    """
    url = places.server.registry_place
    with ExitStack() as stack:
        registry = stack.enter_context(Registry.open(url))
        rollouts = stack.enter_context(RolloutRegistry.open(url))
        tuning = stack.enter_context(TuningRegistry.open(url))
        yield Facts(registry, rollouts, tuning)


@contextmanager
def opened_tuner(
    facts: Facts, places: Places, superlink: SuperLink, settings: TunerSettings, runs: Runs | None = None
) -> Iterator[Tuner]:
    """Yield a tuner, whose lease is given back afterwards.

    Args:
        facts: The registry.
        places: Where the rest lies.
        superlink: Where runs are started.
        settings: What to do when.
        runs: Takes the place of the SuperLink's runs.

    Raises:
        ConfigurationError: A setting cannot be used, or Flower is not installed.
    """
    settings = replace(settings, model=settings.model or only_model(facts))
    tuner = Tuner(
        facts,
        runs or FlowerRuns(superlink, places.home / "tuner"),
        settings,
        places=places.run_config(),
        holder=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
        publish=_publish_function(facts, places),
    )
    try:
        yield tuner
    finally:
        tuner.close()


def _publish_function(facts: Facts, places: Places) -> PublishFunction | None:
    """Return what signs and publishes a generation; None where the keys for it are not here."""
    server = places.server
    keys = None if server.is_insecure else _keys(places)
    if keys is None and not server.is_insecure:
        return None
    metadata, offline, online = keys or (None, None, None)
    publisher = Publisher(
        facts.registry,
        facts.rollouts,
        BlobStore(server.blob_place),
        metadata,
        plan=RolloutPlan(server.plan.shares),
        canaries=server.plan.canaries,
    )

    def run(generation: GenerationOutline, reason: str) -> None:
        digest = generation.manifest_digest
        publish(publisher, digest, metadata, offline, online, actor=ACTOR, reason=reason, clock=time.time)

    return run


def _keys(places: Places) -> tuple[SignedMetadata, KeyFolder, KeyFolder] | None:
    """Return what signing takes; None where nobody has said that it is here, and it is not.

    Raises:
        ConfigurationError: A folder was named that holds no keys, or others may read it.
    """
    folder = HomeFolder(places.home, places.offline)
    keys = places.offline or places.home / "keys" / "offline"
    if not any(keys.glob("targets.*.pem")):
        if places.offline is not None:
            raise ConfigurationError(
                f"no key of targets is in {keys}; name the folder that `keys init` filled"
            )
        return None
    return folder.metadata, folder.offline_keys(places.passphrase), folder.online_keys()


def only_model(facts: Facts) -> str:
    """Return the name of the only model that the registry has.

    Raises:
        ConfigurationError: It has none, or several.
    """
    names = facts.tuning.model_names()
    if len(names) != 1:
        known = ", ".join(names) or "none"
        raise ConfigurationError(f"say which model to look after: --model NAME; the registry has: {known}")
    return names[0]


def _without_password(url: str) -> str:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(f"registry '{shown_url(url)}' is not a database URL") from error
    query = {key: value for key, value in parsed.query.items() if key != "password"}
    if parsed.password is None and len(query) == len(parsed.query):
        return url
    log.warning("password_left_out", registry=shown_url(parsed))
    bare = URL.create(
        parsed.drivername, parsed.username, None, parsed.host, parsed.port, parsed.database, query
    )
    return bare.render_as_string(hide_password=False)
