import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from agents import INPUTS, NEW, OLD
from live_updates import LiveUpdates
from waiting import eventually

from client.api import Device, RemoteModel
from client.connection import ServiceChoice
from client.settings import DeviceSettings
from quantization.errors import ConfigurationError, InvalidDataError, UnreachableError

TABLES = {
    "limits": {"free_bytes": 0},
    "trial": {"least_seconds": 0.0, "least_runs": 2, "latency_ratio": 1e9},
    "report": {"interval_seconds": 0.05},
    "judge": {"every": 0},
}
SETTINGS = DeviceSettings.from_tables(TABLES, device_class="x86-vnni", model_digest=OLD.manifest.model_digest)


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def updates(folder: Path) -> Iterator[LiveUpdates]:
    with LiveUpdates(folder / "server") as made:
        made.publish(OLD)
        yield made


def opened(folder: Path, updates: LiveUpdates, **options: object) -> Device:
    service = ServiceChoice(updates.address, "device-1", is_insecure=True)
    return Device.open(folder / "state", settings=SETTINGS, service=service, **options)  # type: ignore[arg-type]


def is_serving(device: Device, version: int) -> bool:
    serving = device.status().serving
    return serving is not None and serving.version == version and device.infer(INPUTS).version == version


def test_an_application_serves_and_upgrades_by_itself(folder: Path, updates: LiveUpdates) -> None:
    with opened(folder, updates) as device:
        eventually(lambda: is_serving(device, 1))
        answer = device.infer(INPUTS)
        assert device.label(answer.sample_id, int(answer.output[0].argmax()))
        assert device.socket is None
        updates.publish(NEW)
        eventually(lambda: is_serving(device, 2) and device.status().phase == "confirmed")
        assert device.roll_back().version == 1
        assert device.infer(INPUTS).version == 1
        eventually(lambda: updates.samples(2) >= 4)
    assert not device.agent.is_connected


@pytest.mark.slow
def test_an_application_may_serve_others(folder: Path, updates: LiveUpdates) -> None:
    with opened(folder, updates, socket=folder / "s") as device, RemoteModel(folder / "s") as model:
        eventually(lambda: is_serving(device, 1))
        assert np.array_equal(model.infer(INPUTS).output, device.infer(INPUTS).output)
        assert model.status().device == "device-1"


def test_a_device_on_its_own_serves_what_it_has(folder: Path, updates: LiveUpdates) -> None:
    with opened(folder, updates) as device:
        eventually(lambda: is_serving(device, 1))
    with Device.open(folder / "state", is_offline=True, device_class="x86-vnni") as device:
        assert device.infer(INPUTS).version == 1
        with pytest.raises(ConfigurationError, match="in use"):
            opened(folder, updates)


def test_a_device_without_an_identity_is_told_to_enrol(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="quantfleet-client enroll"):
        Device.open(folder / "state", settings=SETTINGS)
    with Device.open(folder / "state", settings=SETTINGS, is_offline=True):
        pass  # the folder was given up


def test_what_goes_over_a_network_is_never_unprotected(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a loopback address"):
        Device.open(
            folder / "state",
            settings=SETTINGS,
            service=ServiceChoice("192.0.2.1:9443", "d", is_insecure=True),
        )


@pytest.mark.parametrize(
    "choice", [{"is_insecure": True}, {"device": "d"}, {"is_insecure": True, "device": "d"}]
)
def test_choices_that_contradict_themselves_are_refused(choice: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        ServiceChoice(**choice)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_socket_that_cannot_be_made_gives_the_folder_up(folder: Path, updates: LiveUpdates) -> None:
    with pytest.raises(ConfigurationError, match="socket"):
        opened(folder, updates, socket=folder / "nowhere" / "s")
    with opened(folder, updates) as device:
        eventually(lambda: is_serving(device, 1))


@pytest.mark.slow
def test_the_server_may_come_back_elsewhere_in_time(folder: Path) -> None:
    with LiveUpdates(folder / "server") as updates:
        updates.publish(OLD)
        port = updates.port
        device = opened(folder, updates)
        eventually(lambda: is_serving(device, 1))
    with device:
        assert device.infer(INPUTS).version == 1
        eventually(lambda: not device.agent.is_connected)
        with LiveUpdates(folder / "server", port=port) as updates:
            updates.publish(OLD)
            updates.publish(NEW)
            eventually(lambda: is_serving(device, 2))


def test_nobody_answers_where_no_agent_runs(folder: Path) -> None:
    with RemoteModel(folder / "s", timeout_seconds=5) as model:
        for call in (lambda: model.infer(INPUTS), model.status, model.roll_back, lambda: model.label(1, 0)):
            with pytest.raises(UnreachableError, match="quantfleet-client run"):
                call()
    with pytest.raises(UnreachableError, match="was closed"):
        model.infer(INPUTS)


@pytest.mark.slow
def test_many_threads_share_one_remote_model(folder: Path, updates: LiveUpdates) -> None:
    with opened(folder, updates, socket=folder / "s") as device, RemoteModel(folder / "s") as model:
        eventually(lambda: is_serving(device, 1))
        wanted, wrong = device.infer(INPUTS).output, []

        def work() -> None:
            for _ in range(20):
                answer = model.infer(INPUTS)
                if not np.array_equal(answer.output, wanted):
                    wrong.append(answer)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@pytest.mark.parametrize("x", [[1.0], np.array([1j]), np.array([True]), np.array(["a"]), None])
def test_what_is_no_array_of_numbers_is_refused_here(folder: Path, x: object) -> None:
    with RemoteModel(folder / "none.sock") as model, pytest.raises(InvalidDataError, match="float32 array"):
        model.infer(x)  # type: ignore[arg-type]
