"""The options that commands of `quantfleet-server` on its own folder share."""

import getpass
from pathlib import Path
from typing import Annotated

import typer

from server.default_home import DEFAULT_HOME


def expanded(path: Path | None) -> Path | None:
    """Return a path without `~`, which a shell leaves in `--home=~/fleet`; None as it is."""
    return None if path is None else path.expanduser()


Home = Annotated[
    Path,
    typer.Option(
        "--home",
        metavar="DIR",
        callback=expanded,
        show_default=False,
        help=f"The server's folder. (default: {DEFAULT_HOME})",
    ),
]
DefaultHome = Path(DEFAULT_HOME).expanduser()

Offline = Annotated[
    Path | None,
    typer.Option(
        "--offline",
        metavar="DIR",
        callback=expanded,
        help="Folder with the keys of root and targets. (default: HOME/keys/offline)",
    ),
]
Passphrase = Annotated[
    str | None,
    typer.Option(
        "--passphrase",
        envvar="QUANTFLEET_PASSPHRASE",
        show_envvar=True,
        help="What the offline keys are encrypted with; better given in the environment than typed.",
    ),
]
RegistryUrl = Annotated[
    str | None,
    typer.Option(
        "--registry-url", metavar="URL", help="The registry's database. (default: the home folder's)"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def local_actor() -> str:
    """Return who types, for the audit."""
    try:
        return f"{getpass.getuser()} (local)"
    except (KeyError, OSError):  # a container's user may have no name
        return "local"
