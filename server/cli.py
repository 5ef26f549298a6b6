"""The command `quantfleet-server`: serves devices and operators, and is the operators' tool.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage or bad
input, 130 interrupted. What takes long to import is imported by the command that needs it.
"""

# ruff: noqa: PLC0415  # `--help` must not wait for gRPC

import time
from importlib import metadata
from typing import Annotated

import typer
from typer import core as typer_core

from server import cli_devices, cli_gc, cli_keys, cli_migrate, cli_rollout, cli_serve, cli_tune
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
from server.cli_rollout import offline_keys, print_publication

typer_core.HAS_RICH = False  # help is plain text here, and would show what escapes rich's markup
app = typer.Typer(
    name="quantfleet-server",
    help="Serve a fleet of edge devices, and steer what they run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_rollout.app)
app.command("serve")(cli_serve.serve)
app.command("prepare")(cli_serve.prepare)
app.command("migrate")(cli_migrate.migrate)
app.command("gc")(cli_gc.gc)
app.command("tune")(cli_tune.tune)
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_devices.app, name="devices")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"quantfleet-server {metadata.version('quantfleet')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Serve a fleet of edge devices, and steer what they run."""


@app.command()
def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until interrupted.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="How often, with --watch.")] = 2.0,
    home: Home = DefaultHome,
    server: Server = DEFAULT_ADDRESS,
    operator: Operator = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Show what every class of devices gets, and which rollouts are open."""
    with admin_client(server, home, operator, is_insecure=insecure) as client:
        from server.admin_views import status_json, status_view

        if as_json:
            print_json(status_json(client.status()))
            while watch:
                time.sleep(every)
                print_json(status_json(client.status()))
        elif not watch:
            stdout_console().print(status_view(client.status()))
        else:
            from rich.live import Live

            with Live(status_view(client.status()), console=stdout_console(), auto_refresh=False) as live:
                while True:
                    time.sleep(every)
                    live.update(status_view(client.status()), refresh=True)


@app.command()
def publish(
    manifest_digest: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="Digest of the manifest, 64 hex digits.")
    ],
    *,
    immediate: Annotated[
        bool, typer.Option("--immediate", help="Give it to all devices at once, without canaries.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Even if it was rolled back before.")] = False,
    reason: Reason = "",
    offline: Offline = None,
    passphrase: Passphrase = None,
    home: Home = DefaultHome,
    server: Server = DEFAULT_ADDRESS,
    operator: Operator = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Sign an artifact and open its rollout; the first one of a class goes to all its devices.

    The keys of targets sign on this machine and stay on it.
    """
    with admin_client(server, home, operator, is_insecure=insecure) as client:
        from quantization.blob import check_digest

        response = client.publish(
            check_digest(manifest_digest),
            offline_keys(home, offline, passphrase),
            now_seconds=time.time(),
            reason=reason,
            is_immediate=immediate,
            is_again=again,
        )
        print_publication(response, as_json=as_json)


if __name__ == "__main__":
    app()
