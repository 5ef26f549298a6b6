"""How many bytes does an upgrade take on the wire?

Real upgrades of ResNet-20 on CIFAR-10 (a tuned generation; rounded, trained and re-allocated weights), and imitated
ones of a random network with the shape of ResNet-50 and 25 million weights. A device with the old artifact fetches the
new one over gRPC through a proxy that counts every byte of both directions: connection, questions, manifest, chunks.
What signed metadata adds is counted apart. The peers send the same contents and are charged for nothing else.

    python benchmarks/bench_wire_bytes.py             # both models (about 15 minutes on 2 cores)
    python benchmarks/bench_wire_bytes.py --models resnet20
    python benchmarks/bench_wire_bytes.py --smoke     # small networks, for the pipeline
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry
from wire_cases import CLASS, RANGES, Upgrade, random_network, trained_network
from wire_peers import peer_sizes

from client.disk import Disk
from client.fetching import fetch_artifact, fetch_blobs
from client.grpc_transport import GrpcTransport
from client.partial import PartialBlobs
from client.slots import Event, Target
from client.state import StateFolder
from client.trusted_metadata import MetadataFolder, TrustedMetadata
from quantization.artifact import Artifact
from quantization.blob import content_digest, encode_blob
from quantization.manifest import MAX_MANIFEST_BYTES
from quantization.target_name import TargetName
from server.blob_store import BlobStore
from server.delta_store import DeltaStore
from server.grpc_server import Service, serving
from server.identity import Identity
from server.keys import KeyFolder
from server.signed_metadata import SignedMetadata
from server.targets import Assignment, PublishedTargets
from server.update_metrics import UpdateMetrics
from server.update_service import UpdateService
from server.update_settings import UpdateSettings

MOST_ABOVE_PEERS = 2048
MOST_OF_FULL = {"ResNet-20": 0.05, "random": 0.01}
"""Part of a full artifact that ranges and corrections alone may take."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one upgrade took.

    Attributes:
        model: Name of the model.
        kind: What changed.
        wire_bytes: Both directions, all of it but signed metadata.
        metadata_bytes: What refreshing signed metadata added.
        peers: Bytes of the peers, by name.
        seconds: To compute the differences, once for a fleet.
    """

    model: str
    kind: str
    wire_bytes: int
    metadata_bytes: int
    peers: dict[str, int]
    seconds: float

    @property
    def best_peer(self) -> int:
        """The least that a peer takes."""
        return min(self.peers.values())

    @property
    def is_met(self) -> bool:
        """Whether it is within the bars."""
        share = next((v for k, v in MOST_OF_FULL.items() if self.model.startswith(k)), 1.0)
        is_small = self.kind != RANGES or self.wire_bytes <= share * self.peers["full"]
        return is_small and self.wire_bytes <= self.best_peer + MOST_ABOVE_PEERS


class CountingProxy:
    """Passes on what two sides say, and counts it."""

    def __init__(self, port: int) -> None:
        self.count = 0
        self.port = 0
        self._target = port

    async def serve(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while data := await reader.read(1 << 16):
                self.count += len(data)
                writer.write(data)
                await writer.drain()


@contextmanager
def serving_in_thread(service: UpdateService) -> Iterator[CountingProxy]:
    """Serve behind a proxy, in a thread of its own."""
    ready, proxies = threading.Event(), list[CountingProxy]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        update = Service(service.NAME, service.register)
        async with service, serving([update], "127.0.0.1:0", None, grace_seconds=0) as port:
            proxy = CountingProxy(port)
            async with await proxy.serve():
                proxies.append(proxy)
                ready.set()
                await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    ready.wait(30)
    try:
        yield proxies[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def put_all(blobs: BlobStore, artifact: Artifact) -> None:
    """Store an artifact."""
    for digest, stored in artifact.blobs.items():
        blobs.put(digest, stored)
    manifest = artifact.manifest.to_bytes()
    blobs.put(content_digest(manifest), encode_blob(manifest))


def count(upgrade: Upgrade) -> Row:
    """Return what an upgrade takes."""
    with tempfile.TemporaryDirectory(prefix="quantfleet-") as name:
        folder = Path(name)
        blobs = BlobStore(folder / "blobs")
        for artifact in (upgrade.old, upgrade.new):
            put_all(blobs, artifact)
        deltas = DeltaStore(blobs, folder / "deltas")
        targets = PublishedTargets(
            tuple(
                Assignment(version, artifact.manifest.digest())
                for version, artifact in ((2, upgrade.new), (1, upgrade.old))
            )
        )
        metadata = signed(folder, upgrade)
        service = UpdateService(
            lambda _model, _class: targets,
            blobs,
            deltas,
            UpdateMetrics(CollectorRegistry()),
            identify=Identity.insecure().device,
            metadata=metadata.read,
            settings=UpdateSettings(delta_wait_seconds=3600, stall_seconds=3600, calls_burst=1000),
        )
        with serving_in_thread(service) as proxy:
            began = time.perf_counter()
            fetch_as_device(folder / "first", upgrade, proxy, None)  # computes the differences
            seconds = time.perf_counter() - began
            plain = fetch_as_device(folder / "second", upgrade, proxy, None)
            trust = TrustedMetadata(
                MetadataFolder(folder / "trusted", Disk()), first_root=metadata.read("root", 1)
            )
            with GrpcTransport.open(f"127.0.0.1:{proxy.port}", None, "device", None) as transport:
                trust.refresh(transport.fetch_metadata, now_seconds=time.time())
            sign(folder, metadata, upgrade, 2)
            trusted = fetch_as_device(folder / "third", upgrade, proxy, trust)
    peers = peer_sizes(upgrade.old, upgrade.new)
    return Row(upgrade.model, upgrade.kind, plain, trusted - plain, peers, seconds)


def signed(folder: Path, upgrade: Upgrade) -> SignedMetadata:
    """Return a repository that has signed the old artifact."""
    metadata = SignedMetadata(folder / "metadata")
    keys = KeyFolder(folder / "offline"), KeyFolder(folder / "online")
    metadata.create(*keys, now_seconds=time.time())
    sign(folder, metadata, upgrade, 1)
    return metadata


def sign(folder: Path, metadata: SignedMetadata, upgrade: Upgrade, version: int) -> None:
    """Sign one of the two artifacts."""
    manifest = (upgrade.old if version == 1 else upgrade.new).manifest
    metadata.publish(
        {TargetName(manifest.model_digest, CLASS, version): manifest.to_bytes()},
        offline=KeyFolder(folder / "offline"),
        online=KeyFolder(folder / "online"),
        now_seconds=time.time(),
    )


def fetch_as_device(
    folder: Path, upgrade: Upgrade, proxy: CountingProxy, trust: TrustedMetadata | None
) -> int:
    """Fetch the new artifact as a device that has the old one; return the bytes that went over the connection."""
    old, new = upgrade.old.manifest, upgrade.new.manifest
    with StateFolder(folder) as state:
        for digest, stored in upgrade.old.blobs.items():
            state.store_blob(digest, stored)
        state.write_manifest(old, version=1)
        partial = PartialBlobs(folder / "partial", state.disk)
        began = proxy.count
        with GrpcTransport.open(f"127.0.0.1:{proxy.port}", None, "device", trust) as transport:
            offer = transport.check(CLASS, old.model_digest, Target(1, old.digest()))
            if offer is None or offer.target.manifest_digest != new.digest():
                sys.exit("the server offers something else")
            fetch_blobs(transport, state, partial, {new.digest(): MAX_MANIFEST_BYTES}, are_exact=False)
            fetch_artifact(transport, state, partial, new)
        state.store_manifest(new)
        state.advance(Event.TARGET_STAGED, offer.target)
        time.sleep(0.1)  # for what is still under way
        return proxy.count - began


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    names = list(rows[0].peers)
    lines = [
        f"| model | upgrade | bytes | of full | + signed metadata | {' | '.join(names)} | within |",
        "| " + " | ".join(["---"] * (len(names) + 6)) + " |",
    ]
    for row in rows:
        peers = " | ".join(f"{row.peers[name]:,}" for name in names)
        share = 100 * row.wire_bytes / row.peers["full"]
        lines.append(
            f"| {row.model} | {row.kind} | {row.wire_bytes:,} | {share:.2f} % | {row.metadata_bytes:,} "
            f"| {peers} | {'yes' if row.is_met else '**no**'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the table; exit 1 where an upgrade takes more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=("resnet20", "random"), default=["resnet20", "random"])
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    parser.add_argument("--smoke", action="store_true", help="small networks, for the pipeline")
    options = parser.parse_args()
    rows = []
    upgrades: list[Iterator[Upgrade]] = []
    if "resnet20" in options.models:
        task, devices = ("digits", 8) if options.smoke else ("cifar10", options.devices)
        upgrades.append(trained_network(task, devices, options.seed))
    if "random" in options.models:
        upgrades.append(random_network(options.seed, is_small=options.smoke))
    for upgrade in (found for each in upgrades for found in each):
        rows.append(count(upgrade))
        print(f"{rows[-1].model}, {rows[-1].kind}: {rows[-1].wire_bytes:,} bytes", file=sys.stderr)
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else table(rows))
    return int(not options.smoke and not all(row.is_met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
