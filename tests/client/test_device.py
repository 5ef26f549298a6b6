from pathlib import Path

import numpy as np
import pytest
from artifacts import example
from flwr.app import Context, RecordDict

from client.device import device_name, open_device, open_state_device
from client.sampler import Sampler
from client.state import StateFolder
from quantization.errors import ConfigurationError, NotFoundError


def _context(**node_config: str) -> Context:
    config = {key.replace("_", "-"): value for key, value in node_config.items()}
    return Context(1, 2, config, RecordDict(), {})


def test_without_configuration_the_message_says_how_to_configure(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="start its SuperNode with --node-config 'state-folder="):
        open_state_device(_context(state_folder=str(tmp_path)))


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="device-source 'os:system' is not installed"):
        open_device(_context(device_source="os:system"))


def test_the_state_folder_keeps_the_artifact_and_gives_the_samples(tmp_path: Path) -> None:
    artifact, rows = example("digits_cnn").artifact(), example("digits_cnn").inputs(9)
    sampler = Sampler(rows.shape[1:])
    sampler.offer(rows)
    with StateFolder(tmp_path) as folder:
        folder.write_samples(sampler.to_bytes())
    device = open_state_device(_context(state_folder=str(tmp_path), device_class="arm"))
    assert (device.device_class.name, device.manifest(), device.labels()) == ("arm", None, None)
    assert len(device.inputs()) == 0
    for digest, stored in artifact.blobs.items():
        assert not device.has_blob(digest)
        device.store_blob(digest, stored)
        assert device.read_blob(digest) == stored
    device.install(artifact.manifest)
    device.close()
    device = open_state_device(_context(state_folder=str(tmp_path), device_class="arm"))
    assert device.manifest() == artifact.manifest
    assert np.array_equal(device.inputs(), rows)
    with pytest.raises(NotFoundError):
        device.read_blob("a" * 64)
    device.close()


def test_a_device_is_opened_while_another_process_serves_from_its_folder(tmp_path: Path) -> None:
    with StateFolder(tmp_path):
        context = _context(state_folder=str(tmp_path), device_class="arm")
        devices = [open_state_device(context) for _ in range(2)]
        assert devices[0].manifest() is None
        for device in devices:
            device.close()


def test_what_an_agent_serves_is_not_replaced_by_a_round(tmp_path: Path) -> None:
    served, other = example().artifact(), example().artifact(1, width=2.0)
    with StateFolder(tmp_path) as folder:
        for digest, stored in {**served.blobs, **other.blobs}.items():
            folder.store_blob(digest, stored)
        folder.write_manifest(served.manifest)
        device = open_state_device(_context(state_folder=str(tmp_path), device_class="x86-vnni"))
        device.install(other.manifest)
        assert folder.read_manifest() == device.manifest() == served.manifest
    device.install(other.manifest)
    assert device.manifest() == other.manifest
    device.close()


def test_a_device_is_called_what_its_node_says_or_where_it_stands_in_a_simulated_fleet() -> None:
    assert device_name(_context(device_name="gate-7")) == "gate-7"
    assert device_name(_context()) == ""
    assert device_name(_context(partition_id="12")) == "00000012"
    assert device_name(_context(partition_id="12", device_name="gate-7")) == "gate-7"
