"""A server's folder with artifacts that can be published, and a server on it in this process."""

import asyncio
import atexit
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from artifacts import example

from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.artifact import Artifact
from quantization.device_class import X86_VNNI
from server.admin_client import AdminClient
from server.candidate import store_artifact
from server.entries import Lab, Model
from server.home_folder import HomeFolder
from server.serve import Addresses, serve
from server.serve_settings import ServerTable, ServeSettings
from server.stores import Stores, open_stores

CLASS = "x86-vnni"
MOST = 3
"""Artifacts of a shop."""
ANYWHERE = ServerTable(
    address="127.0.0.1:0",
    enrolment_address="127.0.0.1:0",
    metrics_address="127.0.0.1:0",
    review_seconds=0.1,
    grace_seconds=1.0,
)


@dataclass
class Shop:
    """A folder with one model, prepared for one class, and some artifacts of it."""

    settings: ServeSettings
    stores: Stores
    model_digest: str = ""
    manifests: list[str] = field(default_factory=list)


def make_shop(home: Path, *, is_insecure: bool = True, artifacts: int = 3, **places: str) -> Shop:
    """Make a folder with a model and some artifacts; with keys and certificates unless it is insecure."""
    settings = ServeSettings(home=home, is_insecure=is_insecure, server=replace(ANYWHERE, **places))
    if artifacts != MOST or {"registry_url", "blob_folder"} & places.keys():
        return _filled(settings, artifacts)
    shutil.copytree(_template(is_insecure), home, dirs_exist_ok=True)
    manifests = [artifact.manifest.digest() for artifact in _artifacts()]
    return Shop(settings, open_stores(settings), _artifacts()[0].manifest.model_digest, manifests)


def _filled(settings: ServeSettings, number: int = MOST) -> Shop:
    """Make a shop from nothing."""
    if not settings.is_insecure:
        make_keys(settings.home)
    artifacts = _artifacts()[:number]
    shop = Shop(settings, open_stores(settings), artifacts[0].manifest.model_digest)
    shop.stores.registry.add_model(Model(shop.model_digest, "camera", len(example().model)))
    shop.stores.registry.add_device_class(X86_VNNI)
    shop.stores.registry.add_lab(Lab(shop.model_digest, CLASS, "0" * 64, 10))
    shop.manifests += [store_artifact(shop.stores.blobs, artifact) for artifact in artifacts]
    return shop


@cache
def _artifacts() -> tuple[Artifact, ...]:
    return tuple(example().artifact(k, width=4.0 + k, is_observed=False) for k in range(MOST))


@cache
def _template(is_insecure: bool) -> Path:
    """Return a shop's folder that is only copied; it goes when the process ends."""
    home = Path(tempfile.mkdtemp(prefix="shop"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    home.chmod(0o755)
    _filled(ServeSettings(home=home, is_insecure=is_insecure)).stores.engine.dispose()
    return home


def make_keys(home: Path) -> None:
    """Make signed metadata, its keys, an authority, a server's certificate and an operator's."""
    folder, now = HomeFolder(home), time.time()
    folder.metadata.create(folder.offline_keys(), folder.online_keys(), now_seconds=now)
    folder.pki().create(now_seconds=now)
    folder.pki().issue_server(["localhost", "127.0.0.1"], now_seconds=now)
    folder.pki().issue_operator("admin", now_seconds=now)


@contextmanager
def served(settings: ServeSettings) -> Iterator[Addresses]:
    """Serve in a thread while the block runs."""
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    found: list[Any] = []

    def tell(result: Any) -> None:
        found.append(result)
        ready.set()

    async def run() -> None:
        try:
            await serve(settings, stop=stop, on_ready=tell)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            tell(error)

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(run())
        finally:
            loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(60)
    if not isinstance(found[0], Addresses):
        raise found[0]
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def operator(shop: Shop, address: str) -> Iterator[AdminClient]:
    """Yield an operator's connection."""
    folder = None if shop.settings.is_insecure else shop.settings.home / "pki/operators/admin"
    with AdminClient.open(address, folder) as client:
        yield client


def told(shop: Shop, sequence: int, version: int, manifest: str, **counts: int) -> pb.TelemetryReport:
    """Return a report of a device."""
    return pb.TelemetryReport(
        sequence=sequence,
        model_digest=bytes.fromhex(shop.model_digest),
        device_class=CLASS,
        version=version,
        manifest_digest=bytes.fromhex(manifest),
        counts=pb.TelemetryCounts(**counts),
        memory=pb.MemoryUse(peak_rss_bytes=90 << 20),
    )
