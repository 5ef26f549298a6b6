"""One identity for both: a device's certificate for the update service, its key for Flower's SuperLink.

Flower's own processes, over TLS with the fleet's certificates, apart from the user's and gone after the test.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from flower_processes import free_port
from identified_server import check, grpc, identified_server
from typer.testing import CliRunner

from client.credentials import AUTHORITY, identity_folder
from client.supernode_key import PRIVATE_KEY, supernode_keys
from server.cli_devices import app
from server.pem import key_to_pem, new_key
from server.pki import PkiFolder

pytestmark = pytest.mark.slow
_SECONDS = 120.0


@dataclass
class SuperLink:
    """A SuperLink that takes registered SuperNodes alone."""

    folder: Path
    port: int
    authority: Path
    environment: dict[str, str]

    def flwr(self, *arguments: str) -> dict[str, object]:
        """Return what a command of `flwr` prints as JSON."""
        command = [_program("flwr"), *arguments, "fleet", "--format=json"]
        done = subprocess.run(
            command,
            check=False,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        return dict(json.loads(done.stdout))

    def is_answering(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False

    def online(self) -> list[str]:
        """Return the ids of the SuperNodes that are connected."""
        nodes = self.flwr("supernode", "list")["nodes"]
        assert isinstance(nodes, list)
        return [node["node-id"] for node in nodes if node["status"] == "online"]

    @contextmanager
    def supernode(self, key: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run a SuperNode that proves itself with a key."""
        arguments = [f"--superlink=127.0.0.1:{self.port}", f"--root-certificates={self.authority}"]
        arguments += [f"--port={free_port()}", f"--auth-supernode-private-key={key}"]
        with running("flower-supernode", arguments, self.folder, self.environment) as process:
            yield process


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@contextmanager
def running(
    name: str, arguments: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the block runs; its output goes to a file."""
    with (folder / f"{name}-{time.monotonic_ns()}.log").open("wb") as log:
        process = subprocess.Popen(
            [_program(name), *arguments],
            env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def superlink(folder: Path, pki: PkiFolder) -> Iterator[SuperLink]:
    """Run a SuperLink with the fleet's certificates."""
    port, authority = free_port(), pki.path / "ca.crt"
    folder.mkdir()
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    connection = f'address = "127.0.0.1:{port}"\nroot-certificates = "{authority}"\n'
    (folder / "config.toml").write_text(f'[superlink]\ndefault = "fleet"\n[superlink.fleet]\n{connection}')
    arguments = ["--host=127.0.0.1", f"--port={port}", "--enable-supernode-auth"]
    arguments += [f"--ssl-certfile={pki.path / 'server.crt'}", f"--ssl-keyfile={pki.path / 'server.key'}"]
    arguments += [f"--ssl-ca-certfile={authority}", "--disable-runtime-dependency-installation"]
    link = SuperLink(folder, port, authority, environment)
    with running("flower-superlink", arguments, folder, environment) as process:
        wait_until(lambda: process.poll() is not None or link.is_answering())
        assert process.poll() is None
        yield link


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(1.0)


def test_one_identity_serves_the_update_service_and_flower(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(identified_server(tmp_path / "home"))
        device = server.enrolled(tmp_path / "state", "press-7")
        assert check(server.address, device.channel_credentials()) is grpc.StatusCode.NOT_FOUND
        link = stack.enter_context(superlink(tmp_path / "flower", server.home.pki()))

        printed = CliRunner().invoke(app, ["supernode-key", "press-7", "--home", str(server.home.path)])
        (tmp_path / "press-7.pub").write_text(printed.stdout)
        registered = link.flwr("supernode", "register", str(tmp_path / "press-7.pub"))
        assert registered["success"], registered

        stranger, _ = supernode_keys(key_to_pem(new_key()))
        (tmp_path / "stranger.key").write_bytes(stranger)
        refused = stack.enter_context(link.supernode(tmp_path / "stranger.key"))
        identity = identity_folder(tmp_path / "state")
        assert (identity / AUTHORITY).read_bytes() == link.authority.read_bytes()
        stack.enter_context(link.supernode(identity / PRIVATE_KEY))
        wait_until(lambda: link.online() == [str(registered["node-id"])])
        assert refused.wait(_SECONDS) != 0
