"""A device as its owner installs it: enrolled, over TLS, with signed updates."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import INPUTS, NEW, NEWER, OLD, SETTINGS
from identified_server import identified_server
from signed_fleet import SignedFleet, signed_fleet
from waiting import eventually

from client.api import Device
from client.connection import METADATA_FOLDER, Connection, ServiceChoice, connect
from client.credentials import CERTIFICATE, ClientCredentials, identity_folder
from client.renewal import renewal_chore
from client.state import StateFolder
from quantization.errors import ConfigurationError, UnreachableError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignedFleet]:
    with signed_fleet(tmp_path_factory.mktemp("server")) as made:
        made.publish(OLD)
        yield made


def is_serving(device: Device, version: int) -> bool:
    status = device.status()
    return (
        status.serving is not None
        and device.infer(INPUTS).version == version
        and status.serving.version == version
        and status.phase == "confirmed"
    )


def test_a_device_is_enrolled_upgrades_reports_and_is_revoked(fleet: SignedFleet, tmp_path: Path) -> None:
    state = tmp_path / "state"
    fleet.enrol(state, "press-1")
    with Device.open(state, settings=SETTINGS) as device:
        eventually(lambda: is_serving(device, 1))
        assert device.status().device == "press-1"
        version = fleet.publish(NEW).version
        eventually(lambda: is_serving(device, version))
        assert (state / METADATA_FOLDER / "timestamp.json").is_file()
        eventually(
            lambda: fleet.shop.stores.telemetry.counts(OLD.manifest.model_digest, "x86-vnni", version).samples
        )
        fleet.revoke("press-1")
        eventually(lambda: not device.agent.is_connected)
        newer = fleet.publish(NEWER).version
        time.sleep(0.5)
        assert device.infer(INPUTS).version == version < newer


def test_what_is_not_signed_is_not_installed(fleet: SignedFleet, tmp_path: Path) -> None:
    state = tmp_path / "state"
    fleet.enrol(state, "press-2")
    with StateFolder(state) as folder:
        connection = connect(folder, ServiceChoice(), "x86-vnni", OLD.manifest.model_digest)
        offer = connection.check("x86-vnni", OLD.manifest.model_digest, None)
        assert offer is not None
        connection.close()
    (identity_folder(state) / "root.json").write_bytes(other_root(tmp_path))
    with Device.open(state, settings=SETTINGS) as device:
        eventually(lambda: "UpdateRejectedError" in device.status().last_error)
        assert device.status().serving is None


def other_root(folder: Path) -> bytes:
    from trust import Repository  # noqa: PLC0415

    return Repository.create(folder / "other").metadata.read("root", 1)


def test_a_certificate_that_is_due_is_renewed_while_the_device_runs(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with identified_server(tmp_path / "server") as server:
        server.enrolled(state, "press-3")
        before = (identity_folder(state) / CERTIFICATE).read_bytes()
        with StateFolder(state) as folder:
            connection = connect(folder, ServiceChoice(), "x86-vnni", OLD.manifest.model_digest)
            renewal_chore(folder, connection).act()
            assert (identity_folder(state) / CERTIFICATE).read_bytes() == before
            identity = ClientCredentials.read(identity_folder(state))
            due = identity.expires_at_seconds - 10.0
            server.ahead_seconds = due - time.time()
            renewal_chore(folder, connection, clock=lambda: due).act()
            assert (identity_folder(state) / CERTIFICATE).read_bytes() != before
            connection.close()


def test_a_certificate_that_cannot_be_renewed_now_stays(fleet: SignedFleet, tmp_path: Path) -> None:
    state = tmp_path / "state"
    fleet.enrol(state, "press-6")
    before = (identity_folder(state) / CERTIFICATE).read_bytes()
    with StateFolder(state) as folder:
        connection = connect(folder, ServiceChoice(), "x86-vnni", OLD.manifest.model_digest)
        due = ClientCredentials.read(identity_folder(state)).expires_at_seconds - 10.0
        with pytest.raises(UnreachableError, match="has just got a certificate"):
            renewal_chore(folder, connection, clock=lambda: due).act()
        assert (identity_folder(state) / CERTIFICATE).read_bytes() == before
        assert connection.check("x86-vnni", OLD.manifest.model_digest, None) is not None
        connection.close()


def test_a_device_whose_folder_was_wiped_starts_over_under_its_name(
    fleet: SignedFleet, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    fleet.enrol(state, "press-4")
    telemetry, model = fleet.shop.stores.telemetry, OLD.manifest.model_digest

    def reported(device: Device) -> int:
        serving = device.status().serving
        return telemetry.counts(model, "x86-vnni", serving.version).samples if serving else 0

    with Device.open(state, settings=SETTINGS) as device:
        eventually(lambda: device.status().serving)
        device.infer(INPUTS)
        eventually(lambda: device.status().spooled_reports == 0 and reported(device))
    for name in ("blobs", "spool", "slots", "partial"):
        path = state / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    with Device.open(state, settings=SETTINGS) as device:
        eventually(lambda: device.status().serving)
        before = reported(device)
        device.infer(INPUTS)
        eventually(lambda: device.status().spooled_reports == 0 and reported(device) >= before + len(INPUTS))


def test_a_connection_that_is_closed_is_not_opened_again() -> None:
    closed: list[int] = []

    class Link:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self) -> None:
            closed.append(self.number)

    links = iter(Link(number) for number in range(3))
    connection = Connection(lambda: next(links), "d")  # type: ignore[arg-type,return-value]
    connection.reopen()
    assert closed == [0]
    connection.close()
    connection.reopen()
    assert closed == [0, 1, 2]


def test_an_identity_that_is_damaged_says_so(fleet: SignedFleet, tmp_path: Path) -> None:
    state = tmp_path / "state"
    fleet.enrol(state, "press-5")
    (identity_folder(state) / CERTIFICATE).write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="damaged"):
        Device.open(state, settings=SETTINGS)
