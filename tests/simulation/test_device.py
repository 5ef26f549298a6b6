"""Simulated devices as a Flower run describes them."""

from pathlib import Path

import numpy as np
import pytest
from artifacts import example
from flwr.app import Context, RecordDict

from quantization.errors import ConfigurationError
from server.blob_store import BlobStore
from server.candidate import load_manifest
from server.registry import Registry
from server.settings import ConfigValue
from simulation.device import (
    FLEET,
    DeviceStates,
    forget_fleet,
    open_simulated_device,
    register_fleet,
    scenario_of,
)
from simulation.fleet import Fleet, FleetSettings
from simulation.lab import bootstrap
from simulation.tasks import TaskData

Config = dict[str, ConfigValue]


@pytest.fixture
def config(tmp_path: Path, model_cache: Path) -> Config:
    return {
        "home": str(tmp_path),
        "cache-dir": str(model_cache),
        "task": "digits",
        "drift": "brightness=0.35",
    }


def context_of(config: Config, node_config: Config | None = None) -> Context:
    node = {"partition-id": 0, "num-partitions": 2} if node_config is None else node_config
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=config)


def test_lists_in_a_run_configuration_are_words() -> None:
    scenario = scenario_of({"drift": "contrast=0.3 noise=0.05", "device-classes": "x86-vnni arm"})
    assert scenario.drifts == ("contrast=0.3", "noise=0.05")
    assert scenario.device_classes == ("x86-vnni", "arm")


@pytest.mark.parametrize("key", ["labelled", "seed"])
def test_a_number_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="labelled and seed must be numbers"):
        scenario_of({key: "few"})


@pytest.mark.parametrize(
    "node_config",
    [
        {},
        {"partition-id": 0},
        {"partition-id": 2, "num-partitions": 2},
        {"partition-id": "x", "num-partitions": 2},
    ],
)
def test_a_node_that_does_not_say_which_device_it_is_is_told_how(config: Config, node_config: Config) -> None:
    with pytest.raises(ConfigurationError, match="--node-config 'partition-id=0 num-partitions=2'"):
        open_simulated_device(context_of(config, node_config))


def test_a_device_keeps_what_it_runs_from_one_run_to_the_next_while_the_world_drifts(
    config: Config, tmp_path: Path
) -> None:
    with Registry.open(f"sqlite:///{tmp_path}/registry.db") as registry:
        blobs = BlobStore(tmp_path / "blobs")
        name = bootstrap(context_of(config), registry, blobs)
        model = registry.model(name)
        published = registry.published(model.digest, "x86-vnni")
        manifest = load_manifest(blobs, published.manifest_digest)
    open_simulated_device(context_of(config)).install(manifest)
    darker = {**config, "drift": "contrast=0.3"}
    assert open_simulated_device(context_of(darker)).manifest() == manifest
    other = {"partition-id": 1, "num-partitions": 2}
    assert open_simulated_device(context_of(darker, other)).manifest() is None
    assert open_simulated_device(context_of({**config, "seed": 1})).manifest() is None


def test_a_class_that_comes_later_is_prepared_without_a_new_model(config: Config, tmp_path: Path) -> None:
    with Registry.open(f"sqlite:///{tmp_path}/registry.db") as registry:
        blobs = BlobStore(tmp_path / "blobs")
        names = {bootstrap(context_of(config), registry, blobs)}
        names.add(bootstrap(context_of({**config, "device-classes": "x86-vnni arm"}), registry, blobs))
        names.add(bootstrap(context_of({**config, "device-classes": "x86-vnni arm"}), registry, blobs))
        (name,) = names
        prepared = registry.device_classes(registry.model(name).digest)
        assert [device_class.name for device_class in prepared] == ["arm", "x86-vnni"]
        assert sum(entry.action == "lab_measured" for entry in registry.audit()) == 2


def test_a_registered_fleet_is_found_until_it_is_forgotten(digits: TaskData, tmp_path: Path) -> None:
    fleet = Fleet(digits, FleetSettings(2, labelled=1.0))
    name = register_fleet(fleet, DeviceStates(tmp_path))
    found = open_simulated_device(context_of({FLEET: name}, {"partition-id": 1, "num-partitions": 2}))
    np.testing.assert_array_equal(found.inputs(), fleet.inputs(1))
    np.testing.assert_array_equal(found.labels(), fleet.labels(1))
    assert found.device_class.name == "x86-vnni"
    forget_fleet(name)
    with pytest.raises(ConfigurationError, match=r"no fleet .* in this process"):
        open_simulated_device(context_of({FLEET: name}))
    forget_fleet(name)


def test_devices_keep_their_own_manifest_and_share_content(tmp_path: Path) -> None:
    states, artifact = DeviceStates(tmp_path), example("digits_cnn").artifact(generation=2)
    states.install(1, artifact.manifest)
    assert states.manifest(0) is None
    again = DeviceStates(tmp_path)
    assert again.manifest(1) == artifact.manifest
    digest, stored = next(iter(artifact.blobs.items()))
    states.blobs.put(digest, stored)
    assert again.blobs.get(digest) == stored
    assert [path.name for path in (tmp_path / "manifests").iterdir()] == ["1"]
