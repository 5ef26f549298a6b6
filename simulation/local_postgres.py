"""A PostgreSQL server of one's own, on a socket in a folder."""

import getpass
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

from quantization.errors import ConfigurationError, UnreachableError
from simulation.child_processes import ChildProcesses

_START_SECONDS = 30.0


def start_postgres(children: ChildProcesses, folder: Path) -> str:
    """Return the URL of a new database server's database.

    Args:
        children: Get the server.
        folder: For its data and its socket; its path must be short.

    Raises:
        ConfigurationError: PostgreSQL is not installed.
        UnreachableError: It does not start.
    """
    initdb, server = _program("initdb"), _program("postgres")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # whoever reaches the socket is believed to be the database's owner
    prefix = _as_unprivileged(folder)
    data = folder / "data"
    made = subprocess.run(  # noqa: S603 - our own words
        [*prefix, initdb, "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise UnreachableError(f"PostgreSQL could not be set up: {made.stderr.strip()[-500:]}")
    command = [
        *prefix,
        server,
        "-D",
        str(data),
        "-c",
        "listen_addresses=",
        "-c",
        f"unix_socket_directories={folder}",
    ]
    child = children.start("postgres", [*command, "-c", "max_connections=60"], is_heard=False)
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(folder):
        if not child.is_running() or time.monotonic() > deadline:
            raise UnreachableError(f"PostgreSQL did not start: {child.log_tail()}")
        time.sleep(0.1)
    return f"postgresql+psycopg://postgres@/postgres?host={folder}"


def _answers(folder: Path) -> bool:
    import psycopg  # noqa: PLC0415 - only where it is used

    try:
        with psycopg.connect(host=str(folder), user="postgres", dbname="postgres", connect_timeout=2):
            return True
    except psycopg.Error:
        return False


def _program(name: str) -> str:
    """Return a program of PostgreSQL: on the path, else the newest that Debian has installed."""
    found = shutil.which(name)
    if found is None:
        installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        found = str(installed[-1]) if installed else None
    if found is None:
        raise ConfigurationError(
            f"PostgreSQL's '{name}' is not installed; on Debian: apt-get install postgresql"
        )
    return found


def _as_unprivileged(folder: Path) -> list[str]:
    """Return what to put in front of a command: the server refuses to run as root, and must die with its parent."""
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise ConfigurationError(
            f"PostgreSQL does not run as {getpass.getuser()}, and there is no user 'postgres'"
        ) from None
    os.chown(folder, user.pw_uid, user.pw_gid)
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, "--pdeathsig", "INT"]
