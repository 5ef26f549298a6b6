"""What operators do, over gRPC, on a real server in this process."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop import CLASS, Shop, make_keys, make_shop, operator, served, told
from waiting import eventually

from protos.quantfleet.v1 import admin_pb2 as pb
from protos.quantfleet.v1 import telemetry_pb2 as telemetry_pb
from protos.quantfleet.v1.admin_pb2_grpc import AdminServiceStub
from protos.quantfleet.v1.telemetry_pb2_grpc import TelemetryServiceStub
from protos.quantfleet.v1.update_pb2 import WatchRequest
from protos.quantfleet.v1.update_pb2_grpc import UpdateServiceStub
from quantization.errors import (
    ConfigurationError,
    IllegalTransitionError,
    MalformedError,
    NotFoundError,
    UnreachableError,
)
from quantization.principal import Principal, Role
from server.admin_client import AdminClient
from server.home_folder import HomeFolder
from server.identity import LOCAL_OPERATOR
from server.keys import KeyFolder
from server.peers import DEVICE_KEY
from server.pem import key_to_pem, new_key
from server.rollout import has_new_version

NOW = 0.0  # nothing is signed by it


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path)
    yield made
    made.stores.engine.dispose()


@pytest.fixture
def address(shop: Shop) -> Iterator[str]:
    with served(shop.settings) as addresses:
        yield addresses.address


@pytest.fixture
def admin(shop: Shop, address: str) -> Iterator[AdminClient]:
    with operator(shop, address) as client:
        yield client


def opened(shop: Shop, admin: AdminClient) -> pb.Rollout:
    """Publish a first version, and open a rollout of a second one."""
    admin.publish(shop.manifests[0], None, now_seconds=NOW, reason="first")
    return admin.publish(shop.manifests[1], None, now_seconds=NOW, reason="better").rollout


def test_status_shows_what_is_served(shop: Shop, admin: AdminClient) -> None:
    empty = admin.status()
    assert (list(empty.targets), empty.watchers) == ([], 0)
    rollout = opened(shop, admin)
    status = admin.status()
    (target,) = status.targets
    assert (target.model_name, target.device_class, target.version) == ("camera", CLASS, 1)
    assert target.manifest_digest.hex() == shop.manifests[0]
    assert target.rollout == rollout
    assert status.uptime_seconds > 0
    assert status.software_version


def test_the_first_version_goes_to_all_without_a_rollout(shop: Shop, admin: AdminClient) -> None:
    first = admin.publish(shop.manifests[0], None, now_seconds=NOW, reason="first").rollout
    assert (first.rollout_id, first.version, first.phase) == ("", 1, pb.ROLLOUT_PHASE_COMPLETE)
    assert admin.rollouts() == []


def test_a_rollout_is_paused_resumed_and_promoted(shop: Shop, admin: AdminClient) -> None:
    name = opened(shop, admin).rollout_id
    assert admin.pause(name, "lunch").phase == pb.ROLLOUT_PHASE_PAUSED
    with pytest.raises(IllegalTransitionError, match="possible"):
        admin.pause(name)
    assert admin.resume(name).phase == pb.ROLLOUT_PHASE_CANARY
    complete = admin.promote(name, "looks good")
    assert (complete.phase, complete.share_ratio) == (pb.ROLLOUT_PHASE_COMPLETE, 1.0)
    with pytest.raises(IllegalTransitionError):
        admin.resume(name)
    events = [(e.action, e.actor, e.phase, e.detail) for e in admin.rollout(name).events]
    assert events == [
        ("rollout_started", LOCAL_OPERATOR, pb.ROLLOUT_PHASE_CANARY, "better"),
        ("paused", LOCAL_OPERATOR, pb.ROLLOUT_PHASE_PAUSED, "lunch"),
        ("canary_resumed", LOCAL_OPERATOR, pb.ROLLOUT_PHASE_CANARY, ""),
        ("promoted", LOCAL_OPERATOR, pb.ROLLOUT_PHASE_COMPLETE, "looks good"),
    ]
    back = admin.rollback(name, None, now_seconds=NOW, reason="after all")
    assert (back.version, back.rollout.phase) == (3, pb.ROLLOUT_PHASE_ROLLED_BACK)
    assert admin.status().targets[0].manifest_digest.hex() == shop.manifests[0]


def test_rollouts_are_listed_newest_first(shop: Shop, admin: AdminClient) -> None:
    first = opened(shop, admin)
    admin.promote(first.rollout_id)
    second = admin.publish(shop.manifests[2], None, now_seconds=NOW).rollout
    assert [r.version for r in admin.rollouts()] == [3, 2]
    assert [r.rollout_id for r in admin.rollouts(is_open_only=True)] == [second.rollout_id]
    assert [r.version for r in admin.rollouts(limit=1)] == [3]
    assert admin.rollouts(device_class="toaster") == []


def test_an_immediate_publication_goes_to_all_and_can_be_taken_back(shop: Shop, admin: AdminClient) -> None:
    admin.publish(shop.manifests[0], None, now_seconds=NOW)
    rollout = admin.publish(shop.manifests[1], None, now_seconds=NOW, is_immediate=True).rollout
    assert rollout.phase == pb.ROLLOUT_PHASE_COMPLETE
    assert admin.rollback(rollout.rollout_id, None, now_seconds=NOW).version == 3


def test_publishing_twice_opens_one_rollout(shop: Shop, admin: AdminClient) -> None:
    rollout = opened(shop, admin)
    again = admin.publish(shop.manifests[1], None, now_seconds=NOW, reason="once more")
    assert (again.rollout, again.was_published) == (rollout, True)
    promoted = admin.publish(shop.manifests[1], None, now_seconds=NOW, is_immediate=True)
    assert (promoted.rollout.phase, promoted.was_published) == (pb.ROLLOUT_PHASE_COMPLETE, False)


def test_a_first_version_that_is_published_twice_keeps_its_time_and_reason(
    shop: Shop, admin: AdminClient
) -> None:
    first = admin.publish(shop.manifests[0], None, now_seconds=NOW, reason="first")
    again = admin.publish(shop.manifests[0], None, now_seconds=NOW, reason="once more")
    assert (first.was_published, again.was_published) == (False, True)
    assert again.rollout == first.rollout
    assert again.rollout.reason == "first"


def test_what_is_open_lets_nothing_else_be_published(shop: Shop, admin: AdminClient) -> None:
    opened(shop, admin)
    with pytest.raises(IllegalTransitionError, match="open"):
        admin.publish(shop.manifests[2], None, now_seconds=NOW)


def test_what_is_not_there_is_said(shop: Shop, admin: AdminClient) -> None:
    for call in (admin.rollout, admin.pause, admin.promote, admin.resume):
        with pytest.raises(NotFoundError, match="no rollout"):
            call("nobody")
        with pytest.raises(NotFoundError, match="no rollout 'abc'"):
            call("abc")
        with pytest.raises(MalformedError, match="empty"):
            call("")
        with pytest.raises(NotFoundError):
            call("x" * 1000)
    with pytest.raises(NotFoundError, match="not in the blob store"):
        admin.publish("ab" * 32, None, now_seconds=NOW)
    with pytest.raises(MalformedError):
        admin.publish("ab", None, now_seconds=NOW)
    rollout = opened(shop, admin)
    with pytest.raises(MalformedError, match="at most 1000"):
        admin.pause(rollout.rollout_id, "x" * 1001)
    with pytest.raises(MalformedError, match="control characters"):
        admin.pause(rollout.rollout_id, "\0")
    with pytest.raises(MalformedError):
        admin.rollouts(device_class="\0")


def test_evidence_comes_from_devices(shop: Shop, address: str, admin: AdminClient) -> None:
    rollout = opened(shop, admin)
    stored = shop.stores.rollouts.rollout(rollout.rollout_id)
    names = [f"device-{k}" for k in range(40)]
    with grpc.insecure_channel(address) as channel:
        stub: Any = TelemetryServiceStub(channel)
        for name in names:
            is_canary = has_new_version(stored, name)
            version, manifest = (2, shop.manifests[1]) if is_canary else (1, shop.manifests[0])
            report = told(shop, 1, version, manifest, samples=50, labelled=50, hits=45)
            report.latency.counts.extend([0] * 20 + [50])
            request = telemetry_pb.ReportRequest(reports=[report])
            stub.Report(request, metadata=((DEVICE_KEY, name),))
    shown = admin.rollout(rollout.rollout_id)
    canaries = sum(has_new_version(stored, name) for name in names)
    assert shown.rollout.devices == canaries
    rows = {row.rule: row for row in shown.evidence}
    assert rows["accuracy"].target_count == 50 * canaries
    assert rows["accuracy"].base_value == pytest.approx(0.9)
    assert rows["accuracy"].verdict == pb.VERDICT_UNDECIDED
    assert 0 < rows["latency_p95_seconds"].base_value < 0.01
    assert rows["memory_bytes"].base_value == 90 << 20
    assert rows["marked_devices"].target_value == 0.0
    assert set(rows) == {
        "accuracy", "agreement", "failures", "latency_p95_seconds", "memory_bytes", "marked_devices",
    }  # fmt: skip


def test_a_version_that_nobody_can_load_is_taken_back_by_the_reviewer(
    shop: Shop, address: str, admin: AdminClient
) -> None:
    rollout = opened(shop, admin)
    stored = shop.stores.rollouts.rollout(rollout.rollout_id)
    canaries = [name for name in map(str, range(400)) if has_new_version(stored, name)]
    with grpc.insecure_channel(address) as channel:
        stub: Any = TelemetryServiceStub(channel)
        for name in canaries[:8]:
            report = told(shop, 1, 1, shop.manifests[0], samples=20)
            report.installs.add(version=2, outcome=telemetry_pb.INSTALL_OUTCOME_LOAD_FAILED)
            stub.Report(telemetry_pb.ReportRequest(reports=[report]), metadata=((DEVICE_KEY, name),))
    eventually(lambda: admin.rollout(rollout.rollout_id).rollout.phase == pb.ROLLOUT_PHASE_ROLLED_BACK)
    shown = admin.rollout(rollout.rollout_id)
    assert (shown.events[-1].action, shown.events[-1].actor) == ("loading_failed", "telemetry")
    assert shown.evidence[-1].verdict == pb.VERDICT_WORSE
    assert admin.status().targets[0].version == 3


def test_watchers_are_told_at_once_and_counted(shop: Shop, address: str, admin: AdminClient) -> None:
    admin.publish(shop.manifests[0], None, now_seconds=NOW)
    request = WatchRequest(device_class=CLASS, model_digest=bytes.fromhex(shop.model_digest))
    with grpc.insecure_channel(address) as channel:
        stub: Any = UpdateServiceStub(channel)
        watch = stub.Watch(request, metadata=((DEVICE_KEY, "a"),))
        assert next(watch).version == 1
        assert admin.status().watchers == 1
        admin.publish(shop.manifests[1], None, now_seconds=NOW, is_immediate=True)
        assert next(watch).version == 2
        watch.cancel()


def test_only_operators_are_answered(tmp_path: Path) -> None:
    shop = make_shop(tmp_path, is_insecure=False)
    folder = HomeFolder(tmp_path)
    with served(shop.settings) as addresses:
        assert addresses.enrolment_address
        with operator(shop, addresses.address) as admin:
            assert list(admin.status().targets) == []
        pki, key = folder.pki(), new_key()
        device = Principal(Role.DEVICE, "a")
        issued = pki.authority().issue(device, key.public_key(), now_seconds=time.time())
        credentials = grpc.ssl_channel_credentials(
            pki.authority_pem(), key_to_pem(key), issued.certificate_pem
        )
        with grpc.secure_channel(addresses.address, credentials) as channel:
            stub: Any = AdminServiceStub(channel)
            with pytest.raises(grpc.RpcError) as raised:
                stub.Status(pb.StatusRequest())
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with AdminClient.open(addresses.address, None) as stranger, pytest.raises(UnreachableError):
            stranger.status()
    shop.stores.engine.dispose()


def test_a_remote_operator_signs_and_the_keys_stay_where_they_are(tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "server", is_insecure=False)
    elsewhere = tmp_path / "usb"
    (shop.settings.home / "keys/offline").rename(elsewhere)
    with served(shop.settings) as addresses, operator(shop, addresses.address) as admin:
        with pytest.raises(NotFoundError, match="--offline"):
            admin.publish(shop.manifests[0], None, now_seconds=time.time())
        keys = KeyFolder(elsewhere)
        admin.publish(shop.manifests[0], keys, now_seconds=time.time())
        rollout = admin.publish(shop.manifests[1], keys, now_seconds=time.time()).rollout
        assert rollout.version == 2
        back = admin.rollback(rollout.rollout_id, None, now_seconds=time.time())  # signed when it was opened
        assert back.version == 3
        events = admin.rollout(rollout.rollout_id).events
        assert {event.actor for event in events} == {"admin"}
    names = HomeFolder(shop.settings.home).metadata.targets()
    assert sorted(name.version for name in names) == [1, 2, 3]
    shop.stores.engine.dispose()


def test_targets_that_others_signed_are_refused(tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "server", is_insecure=False)
    make_keys(tmp_path / "thief")
    thief = HomeFolder(tmp_path / "thief")
    stolen = thief.offline_keys()
    with served(shop.settings) as addresses, operator(shop, addresses.address) as admin:
        with pytest.raises(NotFoundError):  # it lacks the keys that root names
            admin.publish(shop.manifests[0], stolen, now_seconds=time.time())
        stub: Any = admin._stub
        signed = thief.metadata.read("targets")
        with pytest.raises(grpc.RpcError) as raised:
            stub.Publish(
                pb.PublishRequest(manifest_digest=bytes.fromhex(shop.manifests[0]), signed_targets=signed)
            )
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError, match="not signed"):
            stub.Publish(pb.PublishRequest(manifest_digest=bytes.fromhex(shop.manifests[0])))
    shop.stores.engine.dispose()


def test_a_server_that_is_not_there_is_said_with_the_remedy() -> None:
    with AdminClient.open("127.0.0.1:1", None) as client, pytest.raises(UnreachableError, match="serve"):
        client.status()
    with pytest.raises(ConfigurationError, match="loopback"):
        AdminClient.open("192.0.2.1:9443", None)
    with pytest.raises(ConfigurationError, match="host:port"):
        AdminClient.open("nowhere", None)


METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["AdminService"].methods]
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}


def requests() -> st.SearchStrategy[bytes]:
    """Return bytes that are often messages: fields of numbers 1 to 6 with texts and numbers."""
    texts = st.tuples(st.integers(1, 6), st.binary(max_size=40)).map(
        lambda one: bytes([one[0] << 3 | 2, len(one[1])]) + one[1]
    )
    numbers = st.tuples(st.integers(1, 6), st.integers(0, 127)).map(lambda one: bytes([one[0] << 3, one[1]]))
    return st.one_of(st.binary(max_size=60), st.lists(st.one_of(texts, numbers), max_size=5).map(b"".join))


def test_no_request_does_more_than_be_refused(shop: Shop, address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        calls = {name: channel.unary_unary(f"/quantfleet.v1.AdminService/{name}") for name in METHODS}

        @settings(max_examples=150, deadline=None)
        @given(st.sampled_from(METHODS), requests())
        def ask(name: str, data: bytes) -> None:
            error = calls[name].future(data, timeout=30).exception()
            is_refused = error is None or error.code() in REFUSALS
            assert is_refused or "DecodeError" in error.details()  # gRPC's answer to what is no message

        ask()
    assert shop.stores.rollouts.rollouts() == ()
