"""A device that dies at any write of a signed upgrade over gRPC finds a working model, and needs no hand."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agents import INPUTS, NEW, OLD, SETTINGS
from dying_disk import DyingDisk, Kind, deaths
from live_updates import LiveUpdates
from trust import NOW, Repository

from client.disk import Disk
from client.grpc_transport import GrpcTransport
from client.runtime import Runtime
from client.self_testing import load
from client.slots import Phase
from client.state import StateFolder
from client.trial import TrialRules
from client.trusted_metadata import MetadataFolder, TrustedMetadata
from client.updater import Updater, UpdateSettings
from quantization.errors import NotFoundError, QuantFleetError
from quantization.target_name import TargetName

WANTED = [Runtime(one.manifest, one.blobs.__getitem__).infer(INPUTS) for one in (OLD, NEW)]
RULES = TrialRules(least_seconds=0.0, least_runs=0)
UPDATE = UpdateSettings("x86-vnni", OLD.manifest.model_digest, limits=SETTINGS.limits, trial=RULES)


class Signed:
    """A server whose targets are signed, and devices that believe nothing else."""

    def __init__(self, updates: LiveUpdates, repository: Repository) -> None:
        self.updates, self.repository = updates, repository

    def upgrade(self, folder: Path, disk: Disk) -> None:
        """Bring a device to its target, and confirm it."""
        with StateFolder(folder, disk=disk) as state:
            root = self.repository.metadata.read("root", 1)
            trust = TrustedMetadata(MetadataFolder(folder / "metadata", disk), first_root=root)
            with GrpcTransport.open(
                self.updates.address,
                None,
                "device-1",
                trust,
                device_class="x86-vnni",
                model_digest=OLD.manifest.model_digest,
                wall_clock=lambda: NOW,
            ) as transport:
                updater = Updater(state, transport, UPDATE, test=load)
                updater.update()
                updater.watch()
                updater.close()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    repository = Repository.create(tmp_path_factory.mktemp("trust"))

    def metadata(role: str, version: int) -> bytes:
        data: bytes = repository.metadata.read(role, version)
        return data

    with LiveUpdates(tmp_path_factory.mktemp("server"), metadata=metadata) as updates:
        model = OLD.manifest.model_digest
        names = {
            TargetName(model, "x86-vnni", version): artifact.manifest.to_bytes()
            for version, artifact in ((1, OLD), (2, NEW))
        }
        repository.metadata.publish(
            names, offline=repository.offline, online=repository.online, now_seconds=NOW
        )
        yield Signed(updates, repository)


@pytest.fixture(scope="module")
def installed(signed: Signed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the state folder of a device that runs the old artifact, while the new one is published."""
    folder = tmp_path_factory.mktemp("device") / "state"
    signed.updates.publish(OLD)
    signed.upgrade(folder, Disk())
    signed.updates.publish(NEW)
    return folder


def serves(folder: Path) -> int:
    """Return which artifact a device serves that starts without a network."""
    with StateFolder(folder) as state:

        class Nobody:
            def check(self, *_: object) -> None:
                raise NotFoundError

            def fetch(self, *_: object) -> None:
                raise NotFoundError

        updater = Updater(state, Nobody(), UPDATE, test=load)  # type: ignore[arg-type]
        assert updater.runtime is not None
        logits = updater.runtime.infer(INPUTS)
        updater.close()
    return next(number for number, wanted in enumerate(WANTED) if np.array_equal(logits, wanted))


@pytest.mark.slow
def test_no_death_at_a_write_of_a_signed_upgrade_costs_the_model(
    signed: Signed, installed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "state"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(installed, folder)

    died: dict[Kind, int] = dict.fromkeys(Kind, 0)
    last = dict.fromkeys(Kind, 0)
    for kind, lives in deaths(prepare, lambda disk: signed.upgrade(folder, disk)):
        died[kind] = lives + 1
        last[kind] = serves(folder)
        signed.upgrade(folder, Disk())
        assert serves(folder) == 1
        with StateFolder(folder) as state:
            assert state.slots().phase is Phase.CONFIRMED
    assert min(died.values()) > 20
    assert last == dict.fromkeys(Kind, 1)
    assert serves(folder) == 1


@pytest.mark.slow
def test_no_death_at_a_write_of_a_first_installation_needs_a_hand(
    signed: Signed, installed: Path, tmp_path: Path
) -> None:
    assert installed.is_dir()
    folder = tmp_path / "state"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    seen = 0
    for kind, _ in deaths(prepare, lambda disk: signed.upgrade(folder, disk)):
        if kind is Kind.POWER_CUT:  # the upgrade's test has them
            break
        seen += 1
        signed.upgrade(folder, Disk())
        assert serves(folder) == 1
    assert seen > 40


class FillingDisk(DyingDisk):
    """Is full from some operation on, with what errors that brings."""

    def _live(self) -> None:
        self.operations += 1
        if self.operations > self.lives:
            raise OSError(28, "No space left on device")

    def remove(self, path: Path) -> None:
        Disk.remove(self, path)  # removing always works


@pytest.mark.slow
def test_a_disk_that_fills_at_any_write_costs_nothing(
    signed: Signed, installed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    for lives in range(1_000):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(installed, folder)
        disk = FillingDisk(lives)
        try:
            signed.upgrade(folder, disk)
        except (QuantFleetError, OSError):
            assert serves(folder) in (0, 1)
        else:
            break
    else:
        raise AssertionError("the upgrade never ends")
    assert lives > 15
    assert serves(folder) == 1
