"""The command `quantfleet-server gc`: removes content that nothing needs."""

# ruff: noqa: PLC0415  # `--help` must not wait for SQLAlchemy

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from server.cli_errors import exit_codes
from server.cli_options import AsJson, DefaultHome, Home, RegistryUrl
from server.cli_serve import BlobFolder, Config


def gc(
    *,
    older_than_days: Annotated[
        float,
        typer.Option("--older-than-days", min=1.0, help="Content that nothing needs stays for so long."),
    ] = 7.0,
    forget_days: Annotated[
        float,
        typer.Option(
            "--forget-days",
            min=0.0,
            help="So long after it was closed, a generation keeps its statistics, and one that was never published its "
            "artifact; 0 for ever.",
        ),
    ] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    home: Home = DefaultHome,
    config: Config = None,
    registry_url: RegistryUrl = None,
    blob_folder: BlobFolder = None,
    as_json: AsJson = False,
) -> None:
    """Remove content that no model, generation, target or rollout needs; not while a generation is open.

    The blob store must be that of this registry alone. What goes is gone: keep a backup of both.
    """
    with exit_codes():
        from server.blob_garbage import GarbageRules, collect_garbage
        from server.database import connect, migrate
        from server.home_folder import HomeFolder
        from server.serve_settings import ServeSettings

        rules = GarbageRules(older_than_days, forget_days)
        settings = ServeSettings.read(home, config, registry_url=registry_url, blob_folder=blob_folder)
        metadata = HomeFolder(settings.home).metadata
        engine = connect(settings.registry_place)
        try:
            migrate(engine)
            collected = collect_garbage(
                engine,
                settings.blob_place,
                now_seconds=time.time(),
                rules=rules,
                signed=set(metadata.targets().values()) if metadata.is_made else (),
                is_dry_run=dry_run,
            )
        finally:
            engine.dispose()
    if as_json:
        typer.echo(json.dumps({**asdict(collected), "is_dry_run": dry_run}))
    else:
        typer.echo(
            f"{'would remove' if dry_run else 'removed'} {collected.removed} blobs ({collected.removed_bytes} bytes); "
            f"{collected.kept} stay ({collected.kept_bytes} bytes)"
        )
