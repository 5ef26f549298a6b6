"""`flwr run .`: the same two apps on Ray, and on a real SuperLink with SuperNodes, each a process of its own."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from flower_processes import PROJECT, FinishedRun, FlowerProcesses
from flwr.cli.build import build_fab_from_disk

from client.runtime import Runtime
from client.sampler import Sampler
from client.state import StateFolder
from quantization.arrays import FloatArray
from quantization.artifact import Artifact
from quantization.device_class import X86_VNNI
from server.blob_store import BlobStore
from server.candidate import load_manifest
from server.generation import Generation, Step
from server.registry import Registry
from server.settings import ServerSettings
from simulation.fleet import Fleet, FleetSettings
from simulation.lab import prepare_task
from simulation.scenario import Scenario
from simulation.tasks import load_task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DIGITS, READERS = "digits-seed0", "readers"
"""Names of models in the registry."""


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[FlowerProcesses]:
    with FlowerProcesses(tmp_path, is_simulation=True) as processes:
        yield processes


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[FlowerProcesses]:
    with FlowerProcesses(tmp_path, is_simulation=False) as processes:
        yield processes


def settings_of(home: Path) -> ServerSettings:
    """Return the settings of a user who changed none."""
    return ServerSettings(home=str(home / ".local/state/quantfleet"))


def generations_of(home: Path, model_name: str = DIGITS) -> tuple[Generation, ...]:
    """Return what the registry holds of a model."""
    with Registry.open(settings_of(home).registry_place) as registry:
        return registry.generations(registry.model(model_name).digest, X86_VNNI.name)


def check_published(run: FinishedRun, home: Path, *, clients: int, model_name: str = DIGITS) -> None:
    """Check that the run's generation is whole, in the registry, in the blob store and in the log."""
    assert run.status == "finished:completed", run.details + run.log
    newest = generations_of(home, model_name)[-1]
    assert newest.step is Step.PUBLISHED, newest.reason
    assert newest.clients == clients
    assert 0 < newest.update_bytes < 0.1 * newest.size_bytes
    blobs = BlobStore(settings_of(home).blob_place)
    manifest = load_manifest(blobs, newest.manifest_digest)
    assert manifest.generation == newest.number
    for digest in manifest.blobs:
        blobs.get(digest)
    (closed,) = run.events("generation_closed")
    assert f"generation={newest.number} " in closed
    assert "step=published" in closed


def test_the_bundle_holds_every_module_of_the_packages_and_nothing_large() -> None:
    bundle = build_fab_from_disk(PROJECT)
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        names = set(archive.namelist())
    packages = ("quantization", "protos", "strategies", "client", "server", "simulation")
    modules = {
        path.relative_to(PROJECT).as_posix() for name in packages for path in (PROJECT / name).rglob("*.py")
    }
    assert names == modules | {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    assert len(bundle) < 4 << 20


def test_ray_tunes_the_default_task_and_a_second_run_goes_on(ray: FlowerProcesses) -> None:
    first = ray.run()
    check_published(first, ray.home, clients=2)
    assert [g.number for g in generations_of(ray.home)] == [0, 1]

    darker = 'task="digits" drift="contrast=0.3"'
    second = ray.run("--federation-config=num-supernodes=10", f"--run-config={darker}")
    check_published(second, ray.home, clients=10)
    assert [g.base_number for g in generations_of(ray.home)] == [0, 0, 1]


def test_a_superlink_with_two_supernodes_tunes_the_default_task(superlink: FlowerProcesses) -> None:
    for position in range(2):
        superlink.start_supernode(f"partition-id={position} num-partitions=2")
    run = superlink.run("--run-config=expected-nodes=2")
    check_published(run, superlink.home, clients=2)


def test_a_superlink_tunes_devices_with_state_folders(superlink: FlowerProcesses) -> None:
    folders = prepare_serving_devices(superlink.home, devices=2)
    for folder in folders:
        superlink.start_supernode(f'device-source="state" state-folder="{folder}" device-class="x86-vnni"')
    run = superlink.run(f'--run-config=model-source="" model-name="{READERS}" expected-nodes=2')
    check_published(run, superlink.home, clients=2, model_name=READERS)


def test_a_run_that_cannot_work_is_marked_as_failed_and_says_why(superlink: FlowerProcesses) -> None:
    superlink.start_supernode('device-source="toaster"')
    wrong_task = superlink.run('--run-config=task="dogits"')
    assert wrong_task.status == "finished:failed"
    assert "unknown task 'dogits'; did you mean 'digits'?" in wrong_task.details
    assert "reason=" in wrong_task.events("run_failed")[0]

    wrong_node = superlink.run()
    assert wrong_node.status == "finished:failed"
    assert "device-source 'toaster' is not installed" in wrong_node.details
    assert [g.number for g in generations_of(superlink.home)] == [0]


def prepare_serving_devices(home: Path, devices: int) -> list[Path]:
    """Return state folders of devices that got generation 0 of a model, and have served drifted inputs with it."""
    settings, task = settings_of(home), load_task("digits", 0, home / "models")
    with Registry.open(settings.registry_place) as registry:
        blobs = BlobStore(settings.blob_place)
        prepared = prepare_task(task, (X86_VNNI,), "mse", registry, blobs, name=READERS)
    scenario = Scenario(devices=devices, drifts=("brightness=0.35",), partition="iid")
    fleet = Fleet(task, FleetSettings.of(scenario))
    folders = [home / f"device-{position}" for position in range(devices)]
    for position, path in enumerate(folders):
        serve(path, prepared.artifacts[X86_VNNI.name], fleet.inputs(position))
    return folders


def serve(path: Path, artifact: Artifact, inputs: FloatArray) -> None:
    """Do what a device does between two rounds: run the artifact, and keep a sample of what came in."""
    with StateFolder(path) as folder:
        for digest, stored in artifact.blobs.items():
            folder.store_blob(digest, stored)
        folder.write_manifest(artifact.manifest)
        sampler = Sampler(inputs.shape[1:])
        runtime = Runtime(artifact.manifest, folder.read_blob, on_input=sampler.offer)
        runtime.infer(inputs)
        runtime.close()
        folder.write_samples(sampler.to_bytes())
