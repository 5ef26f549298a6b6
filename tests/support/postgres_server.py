"""A real PostgreSQL server in a temporary folder, on a socket of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _found(program: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(places[-1]) if places else shutil.which(program)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield the URL of an empty server's database; skips where PostgreSQL or its driver is not installed."""
    pytest.importorskip("psycopg")
    initdb = _found("initdb")
    if initdb is None or _found("pg_ctl") is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:  # a socket's path must be short
        folder = Path(name)
        folder.chmod(0o755)
        prefix = _as_unprivileged(folder)
        data = str(folder / "data")
        subprocess.run(
            [*prefix, initdb, "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
        )
        _control(folder, "start")
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            _control(folder, "stop")


@contextmanager
def postgres_stopped(url: str) -> Iterator[None]:
    """Stop a server at once, as if it were killed, while the block runs; then start it again."""
    folder = Path(url.rpartition("host=")[2])
    _control(folder, "stop")
    try:
        yield
    finally:
        _control(folder, "start")


def _control(folder: Path, action: str) -> None:
    control = _found("pg_ctl")
    assert control is not None
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=40"
    more = {"start": ["-l", str(folder / "log"), "-o", options], "stop": ["-m", "immediate"]}[action]
    command = [*_as_unprivileged(folder), control, "-D", str(folder / "data"), "-w", *more, action]
    subprocess.run(command, check=True, capture_output=True)


def _as_unprivileged(folder: Path) -> list[str]:
    """Return what to put in front of a command: the server refuses to run as root."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
