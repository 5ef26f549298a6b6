import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np
import pytest
from agents import INPUTS, NEW, OLD, SETTINGS, running_agent, version_of
from memory_link import MemoryLink
from waiting import eventually

from client.agent import Agent
from client.api import RemoteModel
from client.device_status import Answer, DeviceStatus
from client.inference_service import InferenceServer
from client.settings import LocalSettings
from client.tensors import tensor_from_proto, tensor_to_proto
from client.unix_socket import remove_stale, socket_address
from client.update_result import Outcome, Result
from protos.quantfleet.v1 import inference_pb2 as pb
from protos.quantfleet.v1.inference_pb2_grpc import InferenceServiceStub
from quantization.errors import (
    ConfigurationError,
    IllegalTransitionError,
    InvalidDataError,
    NotFoundError,
    OverloadedError,
    UnreachableError,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder whose path is short enough for a socket."""
    with TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def link() -> MemoryLink:
    made = MemoryLink()
    made.publish(OLD, 1)
    return made


@pytest.fixture
def agent(folder: Path, link: MemoryLink) -> Iterator[Agent]:
    with running_agent(folder / "state", link) as made:
        eventually(lambda: version_of(made) == 1)
        yield made


@pytest.fixture
def model(agent: Agent, folder: Path) -> Iterator[RemoteModel]:
    with InferenceServer(agent, folder / "socket", SETTINGS.local), RemoteModel(folder / "socket") as made:
        yield made


def test_answers_are_those_of_the_model_and_name_it(
    model: RemoteModel, agent: Agent, link: MemoryLink
) -> None:
    answer = model.infer(INPUTS)
    assert np.array_equal(answer.output, agent.infer(INPUTS).output)
    assert (answer.version, answer.generation) == (1, 0)
    link.publish(NEW, 2)
    eventually(lambda: model.infer(INPUTS).version == 2)
    assert model.infer(INPUTS).generation == 1


def test_labels_are_counted_once(model: RemoteModel) -> None:
    answer = model.infer(INPUTS)
    assert model.label(answer.sample_id + 2, int(answer.output[2].argmax()))
    with pytest.raises(NotFoundError, match="has its label already"):
        model.label(answer.sample_id + 2, 0)
    with pytest.raises(InvalidDataError, match="cannot be made"):
        model.label(-1, 0)


def test_an_owner_sees_and_turns_back_the_device(model: RemoteModel, agent: Agent, link: MemoryLink) -> None:
    with pytest.raises(IllegalTransitionError, match="no earlier artifact"):
        model.roll_back()
    link.publish(NEW, 2)
    eventually(lambda: model.infer(INPUTS).version == 2 and model.status().phase == "confirmed")
    status = model.status()
    assert replace(status, uptime_seconds=0, rss_bytes=0) == replace(
        agent.status(), uptime_seconds=0, rss_bytes=0
    )
    assert model.roll_back() == status.fallback
    assert model.infer(INPUTS).version == 1


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 2), np.float32),
        np.full_like(INPUTS, np.inf),
        np.zeros((0, *INPUTS.shape[1:]), np.float32),
    ],
)
def test_inputs_that_are_no_inputs_are_refused(model: RemoteModel, x: np.ndarray) -> None:
    with pytest.raises(InvalidDataError):
        model.infer(x)


def test_other_numbers_are_taken_as_float32(model: RemoteModel) -> None:
    whole = np.round(INPUTS).astype(np.int16)
    assert np.array_equal(model.infer(whole).output, model.infer(whole.astype(np.float32)).output)


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((), 4, "1 to 16 dimensions"),
        ((1,) * 17, 4, "1 to 16 dimensions"),
        ((0, 3), 0, "1 to 16 dimensions"),
        ((2, 3), 20, "has 24 bytes, not 20"),
        ((1 << 62, 1 << 62), 4, "bytes, not 4"),
    ],
)
def test_tensors_whose_shape_and_bytes_do_not_fit_are_refused(
    shape: tuple[int, ...], size: int, message: str
) -> None:
    with pytest.raises(InvalidDataError, match=message):
        tensor_from_proto(pb.Tensor(shape=shape, data=bytes(size)))


def test_tensors_are_little_endian_whatever_the_array() -> None:
    x = np.arange(6, dtype=">f8").reshape(2, 3)[:, ::-1]
    tensor = tensor_to_proto(x)
    assert tensor.data == np.array([2, 1, 0, 5, 4, 3], "<f4").tobytes()
    assert np.array_equal(tensor_from_proto(tensor), x)


def test_a_batch_beyond_the_bound_is_refused(agent: Agent, folder: Path) -> None:
    local = LocalSettings(max_request_bytes=4096)
    with InferenceServer(agent, folder / "s", local), RemoteModel(folder / "s") as model:
        with pytest.raises(OverloadedError, match="larger than max"):
            model.infer(np.repeat(INPUTS, 10_000, axis=0))
        assert model.infer(INPUTS).version == 1


class SlowDevice:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def infer(self, x: np.ndarray) -> Answer:
        self.entered.release()
        assert self.gate.wait(60)
        return Answer(x, 7, 8, 9)

    def label(self, sample_id: int, class_index: int) -> bool:  # noqa: ARG002
        raise UnreachableError("ends")

    def status(self) -> DeviceStatus:
        return DeviceStatus("", "c", "", "idle", None, None, 0, 0)

    def roll_back(self) -> Result:
        return Result(Outcome.REVERTED)


def test_more_calls_than_may_wait_are_refused_at_once(folder: Path) -> None:
    device = SlowDevice()
    with (
        InferenceServer(device, folder / "s", LocalSettings(workers=1, waiting=0)),
        RemoteModel(folder / "s") as model,
    ):
        answers: list[Answer] = []
        first = threading.Thread(target=lambda: answers.append(model.infer(INPUTS)))
        first.start()
        assert device.entered.acquire(timeout=60)
        with pytest.raises(OverloadedError, match="agent refuses"):
            model.infer(INPUTS)
        device.gate.set()
        first.join()
        assert [answer.version for answer in answers] == [7]


def test_a_call_in_flight_is_answered_before_the_server_ends(folder: Path) -> None:
    device = SlowDevice()
    server = InferenceServer(device, folder / "s", LocalSettings())
    with RemoteModel(folder / "s") as model:
        answers: list[Answer] = []
        call = threading.Thread(target=lambda: answers.append(model.infer(INPUTS)))
        call.start()
        assert device.entered.acquire(timeout=60)
        closing = threading.Thread(target=server.close)
        closing.start()
        device.gate.set()
        call.join()
        closing.join()
        assert len(answers) == 1
        with pytest.raises(UnreachableError, match="no agent answers"):
            model.infer(INPUTS)
    assert not (folder / "s").exists()


def test_the_owner_alone_may_open_the_socket(agent: Agent, folder: Path) -> None:
    before = os.umask(0)
    try:
        with InferenceServer(agent, folder / "s", SETTINGS.local):
            assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_the_group_may_open_the_socket_where_the_owner_says_so(agent: Agent, folder: Path) -> None:
    with InferenceServer(agent, folder / "s", LocalSettings(group_access=True)):
        assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o660


def test_a_socket_that_a_crash_left_is_replaced(agent: Agent, folder: Path) -> None:
    code = f"import socket, os, signal; s = socket.socket(socket.AF_UNIX); s.bind({str(folder / 's')!r}); s.listen(); "
    code += "os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (folder / "s").is_socket()
    with InferenceServer(agent, folder / "s", SETTINGS.local), RemoteModel(folder / "s") as model:
        assert model.infer(INPUTS).version == 1


def test_a_socket_that_somebody_listens_on_is_left_alone(agent: Agent, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "s"))
        other.listen()
        with pytest.raises(ConfigurationError, match="another process listens"):
            InferenceServer(agent, folder / "s", SETTINGS.local)
        assert (folder / "s").is_socket()


def test_what_is_no_socket_is_never_removed(folder: Path) -> None:
    (folder / "s").write_text("precious")
    with pytest.raises(ConfigurationError, match="is no socket"):
        remove_stale(folder / "s")
    assert (folder / "s").read_text() == "precious"


def test_a_path_that_no_socket_can_have_is_refused_clearly(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"107 at most.*--socket"):
        socket_address(folder / ("x" * 120))


def test_a_folder_that_is_not_there_is_refused_clearly(agent: Agent, folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder that can be written"):
        InferenceServer(agent, folder / "nowhere" / "s", SETTINGS.local)


def test_malformed_messages_are_refused_and_harm_nobody(model: RemoteModel, folder: Path) -> None:
    with grpc.insecure_channel(socket_address(folder / "socket")) as channel:
        call = channel.unary_unary("/quantfleet.v1.InferenceService/Infer")
        for data in (b"", b"\xff" * 50, b"\x0a\x04\x0a\x02\xff\xff"):
            with pytest.raises(grpc.RpcError):
                call(data, timeout=60)
        empty = InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            empty.Infer(pb.InferRequest(), timeout=60)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert model.infer(INPUTS).version == 1


def test_going_back_takes_one_worker_alone(folder: Path) -> None:
    class BusyDevice(SlowDevice):
        def roll_back(self) -> Result:
            self.entered.release()
            assert self.gate.wait(60)
            raise OverloadedError("busy", 1.0)

    device = BusyDevice()
    with (
        InferenceServer(device, folder / "s", LocalSettings(workers=2)),
        RemoteModel(folder / "s") as model,
    ):
        told: list[str] = []

        def turn_back() -> None:
            with pytest.raises(OverloadedError, match="agent refuses: busy"):
                model.roll_back()
            told.append("busy")

        first = threading.Thread(target=turn_back)
        first.start()
        assert device.entered.acquire(timeout=60)
        for _ in range(4):
            with pytest.raises(OverloadedError, match="already"):
                model.roll_back()
        assert model.status().device_class == "c"
        device.gate.set()
        first.join()
        assert told == ["busy"]
