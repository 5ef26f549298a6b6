"""The commands `quantfleet-server keys`: keys of signed metadata, and the certificates of server and operators."""

# ruff: noqa: PLC0415  # `--help` must not wait for databases and cryptography

import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantization.errors import ConfigurationError
from quantization.principal import Principal, Role
from quantization.printable import printable
from server.cli_errors import exit_codes
from server.cli_options import AsJson, DefaultHome, Home, Offline, Passphrase, RegistryUrl, local_actor

if TYPE_CHECKING:
    from server.home_folder import HomeFolder
    from server.pki import PkiFolder

FIRST_OPERATOR = "admin"

app = typer.Typer(
    help="Make, renew and show keys and certificates.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="NAME_OR_IP",
        help="A name or address that devices reach the server by; repeat. (default: localhost and this machine's name)",
    ),
]
OperatorName = Annotated[str, typer.Argument(metavar="NAME", help="The operator's name.")]


@app.command()
def init(
    *,
    home: Home = DefaultHome,
    offline: Offline = None,
    host: Hosts = None,
    passphrase: Passphrase = None,
    root_keys: Annotated[int, typer.Option(help="Keys of root, all of which are needed.", min=1)] = 1,
    targets_keys: Annotated[int, typer.Option(help="Keys of targets, likewise.", min=1)] = 1,
) -> None:
    """Make what a server needs: signed metadata and its keys, an authority, a certificate, the operator "admin"."""
    with exit_codes():
        made = _initialise(
            _folder(home, offline),
            host or _own_hosts(),
            passphrase,
            root_keys=root_keys,
            targets_keys=targets_keys,
        )
    for line in made:
        typer.echo(line)


@app.command()
def rotate(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="root, targets, snapshot or timestamp.")],
    *,
    home: Home = DefaultHome,
    offline: Offline = None,
    passphrase: Passphrase = None,
    keys: Annotated[int, typer.Option(help="New keys, all of which are needed.", min=1)] = 1,
) -> None:
    """Replace the keys of a role by new ones; what the old ones sign is worth nothing from then on."""
    from server.key_report import key_report

    folder = _folder(home, offline)
    with exit_codes():
        folder.metadata.rotate(
            role,
            offline=folder.offline_keys(passphrase),
            online=folder.online_keys(),
            now_seconds=time.time(),
            keys=keys,
        )
        lines = [line for line in key_report(folder) if line.name in ("root", role)]
    for line in lines:
        typer.echo(f"{line.name}: {line.detail}")


@app.command()
def refresh(*, home: Home = DefaultHome) -> None:
    """Renew what is due: snapshot and timestamp, certificates of the server and of operators; needs no offline key."""
    folder, now = _folder(home), time.time()
    with exit_codes():
        renewed = list(_pki(home).refresh(now_seconds=now))
        if folder.metadata.refresh(folder.online_keys(), now_seconds=now):
            renewed.append("snapshot and timestamp")
    for what in renewed or ["nothing is due"]:
        typer.echo(what)


@app.command()
def show(*, home: Home = DefaultHome, as_json: AsJson = False) -> None:
    """Show keys and certificates, and when they end."""
    from server.key_report import key_report

    with exit_codes():
        lines = key_report(_folder(home))
    if as_json:
        typer.echo(json.dumps([line.to_json() for line in lines]))
        return
    rows = [line.cells(time.time()) for line in lines]
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo(printable("  ".join([*cells, row[3]])))


@app.command()
def server(*, home: Home = DefaultHome, host: Hosts = None) -> None:
    """Make a new certificate of the server, for other hosts; a server that runs shows it from then on."""
    with exit_codes():
        issued = _pki(home).issue_server(host or _own_hosts(), now_seconds=time.time())
    typer.echo(f"certificate {issued.serial} for {', '.join(host or _own_hosts())}")


@app.command()
def operator(name: OperatorName, *, home: Home = DefaultHome) -> None:
    """Make a key and a certificate for an operator; take the folder to where the operator works."""
    with exit_codes():
        folder = _pki(home).issue_operator(name, now_seconds=time.time())
    typer.echo(str(folder))


@app.command()
def revoke(
    name: OperatorName,
    *,
    home: Home = DefaultHome,
    registry_url: RegistryUrl = None,
    serial: Annotated[
        str | None,
        typer.Option(help="Serial number of the certificate, where the operator's folder is not here."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit.")] = "",
) -> None:
    """Refuse an operator from now on, and remove its files here; servers notice within seconds."""
    with exit_codes():
        numbers = _revoke_operator(_folder(home), name, registry_url, serial, reason)
    typer.echo(f"operator {printable(name)} is refused: certificate {', '.join(numbers)}")


def _folder(home: Path, offline: Path | None = None) -> "HomeFolder":
    from server.home_folder import HomeFolder

    return HomeFolder(home, offline)


def _pki(home: Path) -> "PkiFolder":
    """Return the authority's folder, which issues for as long as the home folder's settings say."""
    from server.serve_settings import ServeSettings

    return _folder(home).pki(ServeSettings.read(home, None).certificates)


def _initialise(
    home: "HomeFolder", hosts: list[str], passphrase: str | None, *, root_keys: int, targets_keys: int
) -> list[str]:
    """Make what is missing; return what was made."""
    now, pki, made = time.time(), _pki(home.path), []
    if not home.metadata.is_made:
        offline, online = home.offline_keys(passphrase), home.online_keys()
        home.metadata.create(offline, online, now_seconds=now, root_keys=root_keys, targets_keys=targets_keys)
        made += [
            f"metadata: {home.metadata.path}",
            f"online keys: {online.path}",
            f"offline keys: {offline.path}",
        ]
    if not pki.is_made:
        authority = pki.create(now_seconds=now)
        made.append(f"authority: {pki.path} (fingerprint {authority.fingerprint})")
    if not (pki.path / "server.crt").exists():
        pki.issue_server(hosts, now_seconds=now)
        made.append(f"server: {', '.join(hosts)}")
    if not pki.operators():
        made.append(f"operator: {pki.issue_operator(FIRST_OPERATOR, now_seconds=now)}")
    if not made:
        raise ConfigurationError(
            f"{home.path} has keys and certificates already; see `keys show`, `keys rotate` and `keys server`"
        )
    return made


def _revoke_operator(
    home: "HomeFolder", name: str, registry_url: str | None, serial: str | None, reason: str
) -> tuple[str, ...]:
    """Refuse one certificate, or all that an operator has; return their serial numbers."""
    from server.identity_registry import IdentityRegistry
    from server.pem import serial_of
    from server.serve_settings import ServeSettings

    principal, pki = Principal(Role.OPERATOR, name), home.pki()
    if serial is None:
        known = pki.operator_certificates(name)
        ends = {serial_of(one): one.not_valid_after_utc.timestamp() for one in known}
    else:
        ends = {_serial(serial): pki.authority_expires_at_seconds()}
    settings = ServeSettings.read(home.path, None, registry_url=registry_url)
    with IdentityRegistry.open(settings.registry_place) as registry:
        for number, end in ends.items():
            registry.revoke_certificate(principal, number, end, actor=local_actor(), reason=reason)
    if serial is None:
        pki.remove_operator(name)
    return tuple(ends)


def _serial(text: str) -> str:
    try:
        return f"{int(text.replace(':', ''), 16):x}"
    except ValueError as error:
        raise ConfigurationError(
            f"{text[:80]!r} is not a serial number in hex; `keys show` prints them"
        ) from error


def _own_hosts() -> list[str]:
    return list(dict.fromkeys(["localhost", "127.0.0.1", "::1", socket.gethostname()]))
