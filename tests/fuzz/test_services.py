"""Every message that a service takes, and bytes that are none, over real gRPC: it answers or refuses, and serves on."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from agents import INPUTS, NEW, OLD, SETTINGS, running_agent, version_of
from certificate_requests import request_for
from fuzzed_messages import Caller, Hints, fuzzed_bytes, is_message, methods_of
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_link import MemoryLink
from process_memory import memory_bytes
from server_process import ServerProcess, server_process
from shop import CLASS, Shop, make_shop
from waiting import eventually

from client.api import RemoteModel
from client.enrolment import enroll
from client.inference_service import InferenceServer
from client.unix_socket import socket_address
from protos.quantfleet.v1 import admin_pb2, enrolment_pb2, inference_pb2, telemetry_pb2, update_pb2
from quantization.enrolment_token import EnrolmentToken
from server.home_folder import HomeFolder
from server.identity_registry import IdentityRegistry
from server.operator_credentials import OperatorCredentials

MOST_BYTES, MOST_GROWTH_BYTES = 512 << 20, 160 << 20
EXAMPLES = 30  # for each method
REFUSALS = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,  # by us, after two answers
    }
)
CONFIG = """
[update]
calls_burst = 1000000
heartbeat_seconds = 0.1
max_streams_per_device = 100
[enrolment]
calls_burst = 1000000
[server]
review_seconds = 0.2
"""

DEVICE = [update_pb2.DESCRIPTOR.services_by_name["UpdateService"]]
DEVICE += [telemetry_pb2.DESCRIPTOR.services_by_name["TelemetryService"]]
DEVICE += [enrolment_pb2.DESCRIPTOR.services_by_name["RenewalService"]]
OPERATOR = [admin_pb2.DESCRIPTOR.services_by_name["AdminService"]]
NOBODY = [enrolment_pb2.DESCRIPTOR.services_by_name["EnrolmentService"]]
LOCAL = [inference_pb2.DESCRIPTOR.services_by_name[name] for name in ("InferenceService", "DeviceService")]


@dataclass
class Served:
    """A server with certificates, in a process of its own, and what each kind of caller shows it."""

    shop: Shop
    running: ServerProcess
    credentials: dict[str, grpc.ChannelCredentials]
    secrets: list[str]

    @property
    def hints(self) -> Hints:
        """Values that mean something here."""
        digests = [bytes.fromhex(digest) for digest in self.shop.manifests]
        rollouts = [rollout.rollout_id for rollout in self.shop.stores.rollouts.rollouts()]
        return {
            "device_class": [CLASS],
            "model_digest": [bytes.fromhex(self.shop.model_digest)],
            "manifest_digest": digests,
            "held_digests": digests,
            "held_manifest_digests": digests,
            "base_manifest_digest": digests,
            "digest": digests,
            "payload_digest": digests,
            "rollout_id": rollouts,
            "version": [1, 2, 3],
            "sequence": [1, 2, 3, (1 << 63) - 1],
            "role": ["root", "timestamp", "snapshot", "targets", "../root"],
            "secret": self.secrets,
            "device": ["press-7", "press-8"],
            "certificate_request": [request_for(), request_for(uri="quantfleet://operator/admin")],
            "accepted_encodings": [1, 2, 3, 4],
        }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("served")
    shop = make_shop(folder / "home", is_insecure=False)
    home = HomeFolder(shop.settings.home)
    (home.path / "server.toml").write_text(CONFIG)
    shop.stores.rollouts.publish(shop.model_digest, CLASS, shop.manifests[0], reason="first", actor="ana")
    shop.stores.rollouts.start(shop.model_digest, CLASS, shop.manifests[1], reason="second", actor="ana")
    anywhere = [f"--{name}-address=127.0.0.1:0" for name in ("metrics", "enrolment")]
    with server_process(home.path, "--address=127.0.0.1:0", *anywhere) as running:
        registry = IdentityRegistry.open(shop.settings.registry_place, time.time)
        authority = home.pki().authority()
        secrets = [
            registry.new_token(valid_seconds=3600.0, actor="ana", device=name).secret
            for name in ("press-7", "press-8", None)
        ]
        token = EnrolmentToken(secrets[0], authority.fingerprint).text
        device = enroll(folder / "device", running.addresses["enrolment_address"], token, "press-7")
        registry.close()
        operator = OperatorCredentials.read(home.pki().operator_folder("admin"))
        yield Served(
            shop,
            running,
            {
                "device": device.channel_credentials(),
                "operator": operator.channel_credentials(),
                "nobody": grpc.ssl_channel_credentials(authority.certificate_pem),
            },
            secrets,
        )
    shop.stores.engine.dispose()


def fuzz(
    caller: Caller,
    methods: Sequence[MethodDescriptor],
    hints: Hints,
    may_end_so: Collection[grpc.StatusCode] = (),
) -> None:
    """Call methods with generated bytes; a call that ends in any other way than an answer or a refusal fails."""
    may_end_so = frozenset(may_end_so)

    @settings(
        max_examples=EXAMPLES * len(methods),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        method = data.draw(st.sampled_from(methods))
        count = data.draw(st.integers(1, 3)) if method.client_streaming else 1
        sent = [data.draw(fuzzed_bytes(method, hints)) for _ in range(count)]
        code, details = caller.call(method, sent)
        assert code in REFUSALS | may_end_so, f"{method.full_name}: {code} {details}"
        assert "Traceback" not in details
        if code is grpc.StatusCode.OK:
            assert all(is_message(method, one) for one in sent[:1])

    run()


def is_healthy(channel: grpc.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "services"),
    [
        ("device", DEVICE),
        ("operator", OPERATOR),
        ("nobody", NOBODY),
        ("device", OPERATOR),  # who may not
        ("operator", DEVICE),
    ],
)
def test_the_server_answers_or_refuses_and_serves_on(
    served: Served, who: str, services: Sequence[Any]
) -> None:
    process = served.running.process
    before = memory_bytes(process=process.pid)
    address = served.running.addresses["enrolment_address" if who == "nobody" else "address"]
    methods = methods_of(services)
    with grpc.secure_channel(address, served.credentials[who]) as channel:
        caller = Caller(channel)
        fuzz(caller, methods, served.hints)
        assert len({name for name, _ in caller.ends}) == len(methods)
        if (who, services) in (
            ("device", DEVICE),
            ("operator", OPERATOR),
        ):  # what means something is reached too
            assert any(code is grpc.StatusCode.OK for _, code in caller.ends)
        if who != "nobody":
            assert is_healthy(channel)
    assert process.poll() is None
    peak = memory_bytes("VmHWM", process.pid)
    assert peak < MOST_BYTES
    assert peak - before < MOST_GROWTH_BYTES
    assert "Traceback" not in served.running.log.read_text()


@pytest.mark.slow
def test_messages_beyond_the_bound_are_refused_unread(served: Served) -> None:
    before = memory_bytes(process=served.running.process.pid)
    with grpc.secure_channel(served.running.address, served.credentials["device"]) as channel:
        caller = Caller(channel)
        for method in methods_of(DEVICE):
            code, _ = caller.call(method, [bytes(8 << 20)])
            assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
        assert is_healthy(channel)
    assert memory_bytes("VmHWM", served.running.process.pid) - before < MOST_GROWTH_BYTES


@pytest.mark.slow
def test_a_devices_own_services_answer_or_refuse(tmp_path: Path) -> None:
    link = MemoryLink()
    link.publish(OLD, 1)
    with (
        TemporaryDirectory(dir="/tmp") as short,
        running_agent(tmp_path / "state", link) as agent,
        InferenceServer(agent, Path(short) / "socket", SETTINGS.local),
        RemoteModel(Path(short) / "socket") as model,
        grpc.insecure_channel(socket_address(Path(short) / "socket")) as channel,
    ):
        eventually(lambda: version_of(agent) == 1)
        link.publish(NEW, 2)
        first = model.infer(INPUTS)
        hints: Hints = {
            "shape": [*INPUTS.shape, 0, 1 << 40],
            "data": [INPUTS.tobytes(), INPUTS[:1].tobytes()],
            "sample_id": [first.sample_id, first.sample_id + 1],
            "class_index": [0, 1],
        }
        methods = methods_of(LOCAL)
        # gRPC itself ends calls with bytes that are no message so, where no interceptor does
        fuzz(Caller(channel), methods, hints, [grpc.StatusCode.INTERNAL])
        assert model.infer(INPUTS).output.shape == first.output.shape
