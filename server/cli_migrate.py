"""The command `quantfleet-server migrate`: brings the registry to this version's tables, before servers start."""

# ruff: noqa: PLC0415  # `--help` must not wait for SQLAlchemy

import json

import typer

from server.cli_errors import exit_codes
from server.cli_options import AsJson, DefaultHome, Home, RegistryUrl
from server.cli_serve import Config


def migrate(
    *,
    home: Home = DefaultHome,
    config: Config = None,
    registry_url: RegistryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Bring the registry to this version's tables; every other command does so too, where it has to."""
    with exit_codes():
        from server.database import connect, migrate, revision, shown_url
        from server.serve_settings import ServeSettings

        settings = ServeSettings.read(home, config, registry_url=registry_url)
        engine = connect(settings.registry_place)
        try:
            migrate(engine)
            found = revision(engine)
        finally:
            engine.dispose()
    place = shown_url(engine.url)
    if as_json:
        typer.echo(json.dumps({"registry": place, "revision": found}))
    else:
        typer.echo(f"{place} is at revision {found}")
