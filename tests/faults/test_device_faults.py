"""What the world does to a running device: none of it costs the model, installs a wrong one, or needs a hand."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from agents import BROKEN, INPUTS, NEW, NEWER, OLD, running_agent, version_of
from flaky_proxy import FlakyProxy, Network
from live_updates import LiveUpdates
from memory_link import MemoryLink
from trust import DAY, NOW, Repository
from waiting import eventually

from client.agent import Agent
from client.disk import Disk
from client.grpc_channel import GrpcSettings
from client.grpc_transport import GrpcTransport
from client.runtime import Runtime
from client.slots import MAX_ATTEMPTS, Phase
from client.state import StateFolder
from client.trusted_metadata import MetadataFolder, TrustedMetadata
from quantization.target_name import TargetName

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODEL, CLASS = OLD.manifest.model_digest, "x86-vnni"
WANTED = [Runtime(one.manifest, one.blobs.__getitem__).infer(INPUTS) for one in (OLD, NEW, NEWER)]
IMPATIENT = GrpcSettings(
    call_seconds=1.0, stall_seconds=1.0, first_backoff_seconds=0.05, most_backoff_seconds=0.2
)


@pytest.fixture
def updates(tmp_path: Path) -> Iterator[LiveUpdates]:
    with LiveUpdates(tmp_path / "server") as made:
        made.publish(OLD)
        yield made


@contextmanager
def device(folder: Path, address: str, **options: object) -> Iterator[Agent]:
    """Yield an agent that talks to an address and gives up soon on what does not answer."""
    link = GrpcTransport.open(
        address, None, "device-1", None, settings=IMPATIENT, device_class=CLASS, model_digest=MODEL
    )
    with running_agent(folder / "state", link, **options) as agent:  # type: ignore[arg-type]
        yield agent


def serves(agent: Agent, version: int) -> bool:
    answer = agent.infer(INPUTS)
    assert np.array_equal(answer.output, WANTED[answer.version - 1])
    return answer.version == version


def is_confirmed(agent: Agent, version: int) -> bool:
    return serves(agent, version) and agent.status().phase == Phase.CONFIRMED


def serve_for(agent: Agent, seconds: float) -> None:
    """Infer for a while; each answer is right."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        serves(agent, 0)


@pytest.mark.parametrize("network", [Network.CUT, Network.GONE, Network.LORIS, Network.CORRUPT])
def test_a_broken_network_delays_an_upgrade_and_spoils_nothing(
    network: Network, updates: LiveUpdates, tmp_path: Path
) -> None:
    with FlakyProxy(updates.port) as proxy, device(tmp_path, proxy.address) as agent:
        eventually(lambda: version_of(agent) == 1)
        proxy.cut_bytes = 200
        proxy.network = network
        updates.publish(NEW)
        serve_for(agent, 2.5)
        proxy.network = Network.GOOD
        eventually(lambda: is_confirmed(agent, 2))
        assert agent.status().failures == 0
        updates.publish(NEWER)
        eventually(lambda: is_confirmed(agent, 3))
        eventually(lambda: agent.status().is_connected)


def test_damaged_bytes_are_never_installed(updates: LiveUpdates, tmp_path: Path) -> None:
    with FlakyProxy(updates.port, seed=3) as proxy, device(tmp_path, proxy.address) as agent:
        eventually(lambda: version_of(agent) == 1)
        proxy.network = Network.CORRUPT
        for version, artifact in ((2, NEW), (3, NEWER)):
            updates.publish(artifact)
            eventually(lambda wanted=version: is_confirmed(agent, wanted))
    with StateFolder(tmp_path / "state") as state:
        held = {digest: state.read_blob(digest) for digest in state.digests()}
    assert NEWER.manifest.digest() in held


def test_a_connection_that_is_reset_again_and_again_comes_back(updates: LiveUpdates, tmp_path: Path) -> None:
    with FlakyProxy(updates.port) as proxy, device(tmp_path, proxy.address) as agent:
        eventually(lambda: version_of(agent) == 1)
        updates.publish(NEW)
        for _ in range(10):
            proxy.reset()
            serves(agent, 0)
            time.sleep(0.05)
        eventually(lambda: is_confirmed(agent, 2) and agent.status().is_connected)


def test_a_server_that_is_killed_and_comes_back_with_news_is_followed(tmp_path: Path) -> None:
    with LiveUpdates(tmp_path / "server") as updates:
        updates.publish(OLD)
        port = updates.port
        running = device(tmp_path, updates.address)
        agent = running.__enter__()
        try:
            eventually(lambda: version_of(agent) == 1)
        except BaseException:
            running.__exit__(None, None, None)
            raise
    try:
        eventually(lambda: not agent.status().is_connected)
        serve_for(agent, 0.5)
        with LiveUpdates(tmp_path / "server", port=port) as updates:
            for artifact in (OLD, NEW):
                updates.publish(artifact)
            eventually(lambda: is_confirmed(agent, 2))
    finally:
        running.__exit__(None, None, None)


class BrokenDisk(Disk):
    """Fails with an error number while it is set."""

    error = 0

    def _check(self) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def make_folder(self, path: Path) -> None:
        self._check()
        super().make_folder(path)

    def write(self, path: Path, data: bytes) -> None:
        self._check()
        super().write(path, data)

    def append(self, path: Path, data: bytes) -> None:
        self._check()
        super().append(path, data)

    def rename(self, path: Path, target: Path) -> None:
        self._check()
        super().rename(path, target)

    def remove(self, path: Path) -> None:
        if self.error != 28:
            self._check()
        super().remove(path)


@pytest.mark.parametrize("error", [28, 30], ids=["full", "read-only"])
def test_a_disk_that_takes_nothing_stops_upgrades_and_not_inference(error: int, tmp_path: Path) -> None:
    link, disk = MemoryLink(), BrokenDisk()
    link.publish(OLD, 1)
    with running_agent(tmp_path, link, disk=disk) as agent:
        eventually(lambda: version_of(agent) == 1)
        disk.error = error
        link.publish(NEW, 2)
        eventually(lambda: "cannot be written" in agent.status().last_error)
        serve_for(agent, 0.5)
        assert serves(agent, 1)
        disk.error = 0
        eventually(lambda: is_confirmed(agent, 2))
        eventually(lambda: agent.status().spooled_reports == 0)


@pytest.mark.parametrize("error", [28, 30], ids=["full", "read-only"])
def test_a_device_starts_and_serves_from_a_disk_that_takes_nothing(error: int, tmp_path: Path) -> None:
    link, disk = MemoryLink(), BrokenDisk()
    link.publish(OLD, 1)
    with running_agent(tmp_path, link) as agent:
        eventually(lambda: version_of(agent) == 1)
    disk.error = error
    later = MemoryLink()
    later.publish(OLD, 1)
    later.publish(NEW, 2)
    with running_agent(tmp_path, later, disk=disk) as agent:
        assert serves(agent, 1)
        eventually(lambda: agent.status().last_error)
        serve_for(agent, 0.3)
        disk.error = 0
        eventually(lambda: is_confirmed(agent, 2))


@pytest.mark.parametrize("off_by_days", [-365.0, 365.0])
def test_a_clock_that_is_a_year_off_costs_upgrades_at_most_until_it_is_right(
    off_by_days: float, tmp_path: Path
) -> None:
    repository = Repository.create(tmp_path / "trust")
    names = {
        TargetName(MODEL, CLASS, version): artifact.manifest.to_bytes()
        for version, artifact in ((1, OLD), (2, NEW))
    }
    repository.metadata.publish(names, offline=repository.offline, online=repository.online, now_seconds=NOW)
    off = [0.0]
    with LiveUpdates(tmp_path / "server", metadata=repository.metadata.read) as updates:
        updates.publish(OLD)
        root = repository.metadata.read("root", 1)
        link = GrpcTransport.open(
            updates.address,
            None,
            "device-1",
            TrustedMetadata(MetadataFolder(tmp_path / "metadata", Disk()), first_root=root),
            settings=IMPATIENT,
            device_class=CLASS,
            model_digest=MODEL,
            wall_clock=lambda: NOW + DAY * off[0],
        )
        with running_agent(tmp_path / "state", link) as agent:  # type: ignore[arg-type]
            eventually(lambda: version_of(agent) == 1)
            off[0] = off_by_days
            updates.publish(NEW)
            if off_by_days > 0:
                eventually(lambda: "UpdateRejectedError" in agent.status().last_error)
                assert serves(agent, 1)
                off[0] = 0.0
            eventually(lambda: is_confirmed(agent, 2))


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2, 0.5])
def test_an_agent_that_is_killed_in_an_upgrade_again_and_again_comes_back(
    updates: LiveUpdates, tmp_path: Path, delay: float
) -> None:
    """As often as it may die over a version without refusing it."""
    updates.publish(NEW)
    state = tmp_path / "state"
    command = [sys.executable, str(ROOT / "tests/support/agent_process.py"), str(state), updates.address]
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    for _ in range(MAX_ATTEMPTS - 1):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        with StateFolder(state) as folder:
            folder.slots()
    with device(tmp_path, updates.address) as agent:
        eventually(lambda: version_of(agent) == 2)


def test_a_broken_update_is_refused_and_the_next_one_taken(updates: LiveUpdates, tmp_path: Path) -> None:
    with device(tmp_path, updates.address) as agent:
        eventually(lambda: version_of(agent) == 1)
        updates.publish(BROKEN)
        eventually(lambda: agent.status().refused_version == 2)
        assert serves(agent, 1)
        eventually(lambda: updates.outcomes(2) == ["INSTALL_OUTCOME_LOAD_FAILED"])
