"""The commands `quantfleet-server rollout ...`: what operators do with rollouts, over the admin service."""

# ruff: noqa: PLC0415  # `--help` must not wait for gRPC

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli_common import (
    DEFAULT_ADDRESS,
    Insecure,
    Operator,
    Reason,
    Server,
    admin_client,
    print_json,
    stdout_console,
)
from server.cli_options import AsJson, DefaultHome, Home, Offline, Passphrase

if TYPE_CHECKING:
    from protos.quantfleet.v1 import admin_pb2 as pb
    from server.keys import KeyFolder

Rollout = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="Name of the rollout, as `rollout list` shows it.")
]
app = typer.Typer(
    name="rollout",
    help="List, watch and move rollouts.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def list_rollouts(
    *,
    device_class: Annotated[str, typer.Option(metavar="C", help="Only those of this class.")] = "",
    only_open: Annotated[bool, typer.Option("--open", help="Only those that have not ended.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most to list.")] = 100,
    home: Home = DefaultHome,
    server: Server = DEFAULT_ADDRESS,
    operator: Operator = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """List rollouts, newest first."""
    with admin_client(server, home, operator, is_insecure=insecure) as client:
        from server.admin_views import rollout_json, rollouts_view

        rollouts = client.rollouts(device_class=device_class, is_open_only=only_open, limit=limit)
        if as_json:
            print_json([rollout_json(one) for one in rollouts])
        else:
            stdout_console().print(rollouts_view(rollouts))


@app.command()
def show(
    rollout: Rollout,
    *,
    home: Home = DefaultHome,
    server: Server = DEFAULT_ADDRESS,
    operator: Operator = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Show one rollout: its evidence, and what happened to it."""
    with admin_client(server, home, operator, is_insecure=insecure) as client:
        from server.admin_views import shown_json, shown_view

        shown = client.rollout(rollout)
        if as_json:
            print_json(shown_json(shown))
        else:
            stdout_console().print(shown_view(shown))


@app.command()
def pause(
    rollout: Rollout,
    *,
    reason: Reason = "",
    home: Home = DefaultHome,
    server: Server = DEFAULT_ADDRESS,
    operator: Operator = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Stop a rollout where it is; no further device gets the version."""
    with admin_client(server, home, operator, is_insecure=insecure) as client:
        print_rollout(client.pause(rollout, reason), as_json=as_json)


@app.command()
def resume(
    rollout: Rollout,
    *,
    reason: Reason = "",
    home: Home = DefaultHome,
    server: Server = DEFAULT_ADDRESS,
    operator: Operator = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a rollout that was paused."""
    with admin_client(server, home, operator, is_insecure=insecure) as client:
        print_rollout(client.resume(rollout, reason), as_json=as_json)


@app.command()
def promote(
    rollout: Rollout,
    *,
    reason: Reason = "",
    home: Home = DefaultHome,
    server: Server = DEFAULT_ADDRESS,
    operator: Operator = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Give the version to all devices now, without waiting for telemetry."""
    with admin_client(server, home, operator, is_insecure=insecure) as client:
        print_rollout(client.promote(rollout, reason), as_json=as_json)


@app.command()
def rollback(
    rollout: Rollout,
    *,
    reason: Reason = "",
    offline: Offline = None,
    passphrase: Passphrase = None,
    home: Home = DefaultHome,
    server: Server = DEFAULT_ADDRESS,
    operator: Operator = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Publish the content from before the rollout as a newer version, for all devices; also of one that is complete."""
    with admin_client(server, home, operator, is_insecure=insecure) as client:
        keys = offline_keys(home, offline, passphrase)
        response = client.rollback(rollout, keys, now_seconds=time.time(), reason=reason)
        print_rollout(response.rollout, as_json=as_json, rolled_back_version=response.version)


def offline_keys(home: Path, offline: Path | None, passphrase: str | None) -> "KeyFolder | None":
    """Return the folder with the keys of targets; None where none was named and none is in the home folder.

    Raises:
        ConfigurationError: The folder cannot be used.
    """
    from quantization.errors import ConfigurationError
    from server.keys import KeyFolder

    folder = offline or home / "keys" / "offline"
    if not folder.is_dir():
        if offline is not None:
            raise ConfigurationError(f"{offline} is no folder; name the one with the keys of targets")
        return None
    return KeyFolder(folder, passphrase)


def print_publication(response: "pb.PublishResponse", *, as_json: bool) -> None:
    """Print what was published, now or before."""
    from server.admin_views import rollout_json, rollouts_view

    if as_json:
        print_json({**rollout_json(response.rollout), "was_published": response.was_published})
        return
    stdout_console().print(rollouts_view([response.rollout]))
    if response.was_published:
        typer.echo("it was published already; nothing was changed", err=True)


def print_rollout(rollout: "pb.Rollout", *, as_json: bool, rolled_back_version: int | None = None) -> None:
    """Print a rollout after it was moved."""
    from server.admin_views import rollout_json, rollouts_view

    if as_json:
        more = {} if rolled_back_version is None else {"rolled_back_version": rolled_back_version}
        print_json({**rollout_json(rollout), **more})
        return
    stdout_console().print(rollouts_view([rollout]))
    if rolled_back_version is not None:
        typer.echo(
            f"all devices return to the content from before, as version {rolled_back_version}", err=True
        )
