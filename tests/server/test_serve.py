"""Server processes: real ones, that are started, told to stop, killed, and lose their database."""

import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from postgres_server import postgres_server, postgres_stopped
from server_process import PROJECT, anywhere, server_process
from shop import CLASS, Shop, make_shop, operator, served
from tuf.api.metadata import Root
from waiting import eventually

from protos.quantfleet.v1 import admin_pb2, enrolment_pb2, update_pb2
from protos.quantfleet.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from protos.quantfleet.v1.update_pb2_grpc import UpdateServiceStub
from quantization.errors import ConfigurationError, NotFoundError, UnreachableError
from server.admin_client import AdminClient
from server.home_folder import HomeFolder
from server.peers import DEVICE_KEY, PUSHBACK_KEY
from server.rollout import Event
from server.serve_settings import ServeSettings


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path)
    yield made
    made.stores.engine.dispose()


def page(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def check(stub: Any, shop: Shop) -> Any:
    request = update_pb2.CheckRequest(device_class=CLASS, model_digest=bytes.fromhex(shop.model_digest))
    return stub.Check(request, metadata=((DEVICE_KEY, uuid.uuid4().hex),), timeout=30)


@pytest.mark.slow
def test_a_process_serves_until_it_is_told_to_stop(shop: Shop) -> None:
    shop.stores.rollouts.publish(shop.model_digest, CLASS, shop.manifests[0], reason="first", actor="ana")
    with server_process(shop.settings.home, *anywhere()) as running:
        assert running.addresses["enrolment_address"] == ""
        with grpc.insecure_channel(running.address) as channel:
            stub: Any = UpdateServiceStub(channel)
            assert check(stub, shop).version == 1
            health: Any = health_pb2_grpc.HealthStub(channel)
            states = health.Watch(health_pb2.HealthCheckRequest())
            assert next(states).status == health_pb2.HealthCheckResponse.SERVING
            request = update_pb2.WatchRequest(
                device_class=CLASS, model_digest=bytes.fromhex(shop.model_digest)
            )
            watch = stub.Watch(request, metadata=((DEVICE_KEY, "a"),))
            assert next(watch).retry_after_seconds > 0
            assert 'quantfleet_target_version{device_class="x86-vnni"} 1.0' in page(
                running.addresses["metrics_address"]
            )
            running.process.send_signal(signal.SIGTERM)
            assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert list(watch) == []  # the watch ends with OK, and the device goes elsewhere
            states.cancel()
        assert running.process.wait(60) == 0
        assert running.process.stdout is not None
        assert running.process.stdout.read() == ""
        assert "server_stopped" in running.log.read_text()


@pytest.mark.slow
def test_a_process_that_was_killed_is_followed_by_one_that_goes_on(shop: Shop) -> None:
    options = anywhere()
    with server_process(shop.settings.home, *options) as first:
        with AdminClient.open(first.address, None) as admin:
            admin.publish(shop.manifests[0], None, now_seconds=0)
            rollout = admin.publish(shop.manifests[1], None, now_seconds=0).rollout
        first.stop(signal.SIGKILL)
    with server_process(shop.settings.home, *options) as second:
        with AdminClient.open(second.address, None) as admin:
            assert admin.rollouts() == [rollout]
            assert admin.promote(rollout.rollout_id).phase == admin_pb2.ROLLOUT_PHASE_COMPLETE
        assert second.stop(signal.SIGINT) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--insecure", "--address", "0.0.0.0:0"], 2, "serves loopback addresses only"),
        (["--address", "127.0.0.1:0"], 1, "keys init"),
        (["--insecure", "--config", "none.toml"], 2, "cannot be read"),
        (["--nonsense"], 2, "nonsense"),
    ],
)
def test_a_process_that_cannot_serve_says_why(
    tmp_path: Path, options: list[str], status: int, said: str
) -> None:
    command = [sys.executable, "-m", "server.cli", "serve", "--home", str(tmp_path), *options]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (status, "")
    assert said in result.stderr


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    shop = make_shop(tmp_path)
    with served(shop.settings) as addresses:
        for name in ("address", "metrics_address"):
            taken = replace(shop.settings.server, **{name: getattr(addresses, name)})
            with (
                pytest.raises(ConfigurationError, match="cannot be served"),
                served(replace(shop.settings, server=taken)),
            ):
                pass
    everywhere = replace(shop.settings, server=replace(shop.settings.server, address="0.0.0.0:0"))
    with pytest.raises(ConfigurationError, match="loopback"), served(everywhere):
        pass
    bad = replace(shop.settings, server=replace(shop.settings.server, registry_url="nothing://"))
    with pytest.raises(ConfigurationError, match="not a database URL"), served(bad):
        pass
    shop.stores.engine.dispose()


def test_a_server_with_certificates_needs_its_keys(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="keys init"), served(ServeSettings(home=tmp_path)):
        pass
    shop = make_shop(tmp_path / "a", is_insecure=False)
    for key in (tmp_path / "a/keys/online").iterdir():
        key.unlink()
    with pytest.raises(NotFoundError, match="no keys of snapshot and timestamp"), served(shop.settings):
        pass
    shop.stores.engine.dispose()


def test_refused_enrolments_are_counted(tmp_path: Path) -> None:
    shop = make_shop(tmp_path, is_insecure=False)
    credentials = grpc.ssl_channel_credentials(HomeFolder(tmp_path).pki().authority_pem())
    with served(shop.settings) as addresses:
        with grpc.secure_channel(addresses.enrolment_address, credentials) as channel:
            stub: Any = EnrolmentServiceStub(channel)
            with pytest.raises(grpc.RpcError, match="certificate request"):
                stub.Enrol(enrolment_pb2.EnrolRequest(device="x"), timeout=60)
        assert 'quantfleet_calls_refused_total{reason="malformed"} 1.0' in page(addresses.metrics_address)
    shop.stores.engine.dispose()


def test_metadata_that_is_about_to_expire_is_renewed(tmp_path: Path) -> None:
    shop = make_shop(tmp_path, is_insecure=False)
    folder = HomeFolder(tmp_path)
    folder.metadata._sign_online(  # as a server that was off for a week left it
        folder.metadata._read("root", Root),
        folder.online_keys(),
        1_000_000_000.0,
    )
    before = folder.metadata.read("timestamp")
    with served(shop.settings):
        assert folder.metadata.read("timestamp") != before
    shop.stores.engine.dispose()


def test_two_servers_on_one_registry_show_the_same(shop: Shop) -> None:
    with (
        served(shop.settings) as one,
        served(shop.settings) as two,
        operator(shop, one.address) as first,
        operator(shop, two.address) as second,
    ):
        first.publish(shop.manifests[0], None, now_seconds=0)
        rollout = second.publish(shop.manifests[1], None, now_seconds=0).rollout
        assert first.rollouts() == second.rollouts() == [rollout]
        first.pause(rollout.rollout_id)
        second.resume(rollout.rollout_id)
        with grpc.insecure_channel(two.address) as channel:
            request = update_pb2.WatchRequest(
                device_class=CLASS, model_digest=bytes.fromhex(shop.model_digest)
            )
            stub: Any = UpdateServiceStub(channel)
            watch = stub.Watch(request, metadata=((DEVICE_KEY, "a"),))
            assert next(watch).version in (1, 2)
            first.rollback(rollout.rollout_id, None, now_seconds=0)
            while next(watch).version != 3:
                pass
            watch.cancel()


@pytest.mark.slow
def test_while_the_database_is_away_watchers_stay_and_calls_wait(tmp_path: Path) -> None:
    with postgres_server() as url:
        shop = make_shop(tmp_path, registry_url=url)
        shop.stores.rollouts.publish(shop.model_digest, CLASS, shop.manifests[0], reason="first", actor="ana")
        with served(shop.settings) as addresses, grpc.insecure_channel(addresses.address) as channel:
            stub: Any = UpdateServiceStub(channel)
            request = update_pb2.WatchRequest(
                device_class=CLASS, model_digest=bytes.fromhex(shop.model_digest)
            )
            watch = stub.Watch(request, metadata=((DEVICE_KEY, "a"),))
            assert next(watch).version == 1
            with postgres_stopped(url):
                error = eventually(lambda: refused(stub, shop))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert int(dict(error.trailing_metadata())[PUSHBACK_KEY]) > 0
                with (
                    operator(shop, addresses.address) as admin,
                    pytest.raises(UnreachableError, match="database cannot be reached"),
                ):
                    admin.status()
                assert watch.is_active()
            assert eventually(lambda: not refused(stub, shop))
            rollouts = shop.stores.rollouts
            rollout = rollouts.start(shop.model_digest, CLASS, shop.manifests[1], actor="ana")
            rollouts.advance(rollout, Event.PROMOTED, actor="ana")
            while next(watch).version != 2:
                pass
            watch.cancel()
        shop.stores.engine.dispose()


def refused(stub: Any, shop: Shop) -> Any:
    try:
        check(stub, shop)
    except grpc.RpcError as error:
        return error
    return None
