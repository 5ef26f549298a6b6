"""A whole server with certificates, in this process, and what callers of all kinds need to reach it."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from client.credentials import ClientCredentials
from client.enrolment import enroll
from protos.quantfleet.v1 import admin_pb2, update_pb2
from protos.quantfleet.v1.admin_pb2_grpc import AdminServiceStub
from protos.quantfleet.v1.update_pb2_grpc import UpdateServiceStub
from quantization.enrolment_token import EnrolmentToken
from server.certificates import Authority
from server.enrolment_service import EnrolmentSettings
from server.home_folder import HomeFolder
from server.identity_registry import IdentityRegistry
from server.operator_credentials import OperatorCredentials
from server.registry import Registry
from server.serve import running
from server.serve_settings import ServerTable, ServeSettings
from server.update_settings import UpdateSettings

HOSTS = ("127.0.0.1", "localhost")
PATIENCE_SECONDS = float(os.environ.get("QUANTFLEET_PATIENCE_SECONDS", "60"))
"""How long tests wait for what must come; less where it must not (`test_removed_checks`)."""
QUICK = EnrolmentSettings(revocation_poll_seconds=0.05, calls_burst=1000)


@dataclass
class IdentifiedServer:
    """A server that serves; tests change what it believes the time to be."""

    home: HomeFolder
    address: str = ""
    enrolment_address: str = ""
    ahead_seconds: float = 0.0
    registry: IdentityRegistry = field(init=False)

    def clock(self) -> float:
        """Return the server's time."""
        return time.time() + self.ahead_seconds

    @property
    def authority(self) -> Authority:
        return self.home.pki().authority()

    def token(self, device: str | None = None, valid_seconds: float = 3600.0) -> str:
        """Return a new token, as an operator hands it out."""
        made = self.registry.new_token(valid_seconds=valid_seconds, actor="ana", device=device)
        return EnrolmentToken(made.secret, self.authority.fingerprint).text

    def enrolled(self, state: Path, name: str = "press-7") -> ClientCredentials:
        """Return the credentials of a device that was enrolled."""
        return enroll(state, self.enrolment_address, self.token(name), name)

    def operator(self, name: str = "admin") -> grpc.ChannelCredentials:
        """Return what an operator shows."""
        return OperatorCredentials.read(self.home.pki().operator_folder(name)).channel_credentials()

    def shown(self, key_pem: bytes, certificate_pem: bytes) -> grpc.ChannelCredentials:
        """Return what a caller with these shows, who trusts this server."""
        return grpc.ssl_channel_credentials(self.authority.certificate_pem, key_pem, certificate_pem)


def check(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """Return how a device's call ends; NOT_FOUND is that of a known device, because nothing is published."""
    request = update_pb2.CheckRequest(device_class="arm", model_digest=bytes(32))
    return status_of(
        address, credentials, lambda channel: UpdateServiceStub(channel).Check(request, timeout=20)
    )


def ask_status(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """Return how an operator's call ends."""
    request = admin_pb2.StatusRequest()
    return status_of(
        address, credentials, lambda channel: AdminServiceStub(channel).Status(request, timeout=20)
    )


def status_of(
    address: str, credentials: grpc.ChannelCredentials | None, call: Callable[[grpc.Channel], Any]
) -> grpc.StatusCode:
    """Return how a call ends, on a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    with (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    ) as channel:
        try:
            call(channel)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Return whether a condition comes true; the deadline is generous."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def made_home(folder: Path) -> HomeFolder:
    """Return a new home folder, as `keys init` makes it."""
    home, now = HomeFolder(folder), time.time()
    home.metadata.create(home.offline_keys(), home.online_keys(), now_seconds=now)
    pki = home.pki()
    pki.create(now_seconds=now)
    pki.issue_server(HOSTS, now_seconds=now)
    pki.issue_operator("admin", now_seconds=now)
    return home


@contextmanager
def identified_server(folder: Path, settings: EnrolmentSettings = QUICK) -> Iterator[IdentifiedServer]:
    """Serve while the block runs, in a thread with an event loop of its own."""
    server = IdentifiedServer(made_home(folder))
    table = ServerTable(
        address="127.0.0.1:0", enrolment_address="127.0.0.1:0", metrics_address="", grace_seconds=0.2
    )
    update = UpdateSettings(calls_burst=10_000, heartbeat_seconds=0.2)
    serve_settings = ServeSettings(home=server.home.path, server=table, enrolment=settings, update=update)
    Registry.open(serve_settings.registry_place).close()
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop, failures = asyncio.Event(), list[BaseException]()

    async def serve() -> None:
        async with running(serve_settings, server.clock) as addresses:
            server.address, server.enrolment_address = addresses.address, addresses.enrolment_address
            ready.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test
            failures.append(error)
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=work, name="identified-server", daemon=True)
    thread.start()
    ready.wait()
    try:
        if not failures:
            server.registry = IdentityRegistry.open(serve_settings.registry_place, server.clock)
            yield server
            server.registry.close()
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
    if failures:
        raise failures[0]
