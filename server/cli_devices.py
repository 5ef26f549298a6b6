"""The commands `quantfleet-server devices`: tokens for enrolment, the devices that are enrolled, and revocation.

They work on the registry directly; servers notice within seconds.
"""

# ruff: noqa: PLC0415  # `--help` must not wait for databases and cryptography

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantization.enrolment_token import EnrolmentToken
from quantization.printable import printable
from server.cli_errors import exit_codes
from server.cli_options import AsJson, DefaultHome, Home, RegistryUrl, local_actor

if TYPE_CHECKING:
    from server.identity_records import Device
    from server.identity_registry import IdentityRegistry

app = typer.Typer(
    help="Let devices enrol, list them, and revoke them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's name.")]


@app.command()
def token(
    *,
    home: Home = DefaultHome,
    registry_url: RegistryUrl = None,
    device: Annotated[
        str | None,
        typer.Option(help="Name that the token is for; without it the device chooses one that is free."),
    ] = None,
    valid_hours: Annotated[float, typer.Option(help="How long the token may be used, 720 at most.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Print a token that one device can enrol with, once; it is shown here and kept nowhere."""
    from server.home_folder import HomeFolder

    with exit_codes():
        fingerprint = HomeFolder(home).pki().authority().fingerprint
        with _registry(home, registry_url) as registry:
            made = registry.new_token(valid_seconds=3600 * valid_hours, actor=local_actor(), device=device)
    text = EnrolmentToken(made.secret, fingerprint).text
    if as_json:
        typer.echo(json.dumps({"token": text, **asdict(made.record)}))
    else:
        typer.echo(text)
        end = _date(made.record.expires_at_seconds)
        typer.echo(f"token {made.record.token_id} may be used once, until {end}", err=True)


@app.command()
def tokens(*, home: Home = DefaultHome, registry_url: RegistryUrl = None, as_json: AsJson = False) -> None:
    """List tokens, without their secrets."""
    with exit_codes(), _registry(home, registry_url) as registry:
        known = registry.tokens()
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in known]))
        return
    for one in known:
        used = f"used by {one.used_by}" if one.used_by else f"good until {_date(one.expires_at_seconds)}"
        if one.used_by is None and one.expires_at_seconds < time.time():
            used = "expired"
        typer.echo(f"{one.token_id}  {one.device or 'any name'}  {used}")


@app.command("list")
def list_devices(
    *, home: Home = DefaultHome, registry_url: RegistryUrl = None, as_json: AsJson = False
) -> None:
    """List the devices that were enrolled."""
    with exit_codes(), _registry(home, registry_url) as registry:
        devices = registry.devices()
    now = time.time()
    if as_json:
        typer.echo(json.dumps([{**asdict(device), "status": device.status(now)} for device in devices]))
        return
    for device in devices:
        typer.echo(_line(device, now))
    typer.echo(f"{len(devices)} devices", err=True)


@app.command()
def revoke(
    name: Name,
    *,
    home: Home = DefaultHome,
    registry_url: RegistryUrl = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit.")] = "",
) -> None:
    """Refuse a device from now on; it comes back only with a new token for its name."""
    with exit_codes(), _registry(home, registry_url) as registry:
        device = registry.revoke_device(name, actor=local_actor(), reason=reason)
    typer.echo(_line(device, time.time()))


@app.command("supernode-key")
def supernode_key(name: Name, *, home: Home = DefaultHome, registry_url: RegistryUrl = None) -> None:
    """Print a device's public key for `flwr supernode register`: its SuperNode proves itself with the same key."""
    with exit_codes(), _registry(home, registry_url) as registry:
        device = registry.device(name)
    typer.echo(device.openssh_key())


def _registry(home: Path, registry_url: str | None) -> "IdentityRegistry":
    from server.identity_registry import IdentityRegistry
    from server.serve_settings import ServeSettings

    settings = ServeSettings.read(home, None, registry_url=registry_url)
    return IdentityRegistry.open(settings.registry_place)


def _line(device: "Device", now_seconds: float) -> str:
    end = _date(device.not_after_seconds)
    return printable(f"{device.name}  {device.status(now_seconds)}  certificate {device.serial} until {end}")


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
