"""The agent for the device's own processes: inference, labels, status and roll-back over a Unix socket."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import grpc

from client.device_status import Answer, DeviceStatus
from client.events import event_log
from client.settings import LocalSettings
from client.slots import Target
from client.tensors import tensor_from_proto, tensor_to_proto
from client.unix_socket import (
    GROUP_MODE,
    OWNER_MODE,
    allow,
    private_files,
    remove_socket,
    remove_stale,
    socket_address,
)
from client.update_result import Result
from protos.quantfleet.v1 import inference_pb2 as pb
from protos.quantfleet.v1.inference_pb2_grpc import (
    DeviceServiceServicer,
    InferenceServiceServicer,
    add_DeviceServiceServicer_to_server,
    add_InferenceServiceServicer_to_server,
)
from quantization.arrays import AnyArray
from quantization.errors import (
    ConfigurationError,
    IllegalTransitionError,
    NotFoundError,
    OverloadedError,
    QuantFleetError,
    UnreachableError,
)

_events = event_log("local")
_GRACE_SECONDS = 5.0
_MAX_ANSWER_BYTES = 256 << 20

_STATUS: dict[type[QuantFleetError], grpc.StatusCode] = {
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    IllegalTransitionError: grpc.StatusCode.FAILED_PRECONDITION,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnreachableError: grpc.StatusCode.UNAVAILABLE,
    ConfigurationError: grpc.StatusCode.INVALID_ARGUMENT,  # an input that the model does not take, for one
    QuantFleetError: grpc.StatusCode.INTERNAL,
}


class LocalDevice(Protocol):
    """What is served: `client.agent.Agent`."""

    def infer(self, x: AnyArray) -> Answer:
        """Return what the model says to a batch."""
        ...

    def label(self, sample_id: int, class_index: int) -> bool:
        """Return whether the model had said the true class of an input."""
        ...

    def status(self) -> DeviceStatus:
        """Return how the device is doing."""
        ...

    def roll_back(self) -> Result:
        """Go back to what served before."""
        ...


class InferenceServer:
    """Serves a device on a socket until it is closed; use it as a context manager.

    Attributes:
        path: Of the socket.
    """

    def __init__(self, device: LocalDevice, path: Path, settings: LocalSettings) -> None:
        """Take the socket and serve.

        Raises:
            ConfigurationError: If the socket cannot be made, or another process has it.
        """
        self.path = path.expanduser().absolute()
        address = socket_address(self.path)
        remove_stale(self.path)
        options = [
            ("grpc.max_receive_message_length", settings.max_request_bytes),
            ("grpc.max_send_message_length", _MAX_ANSWER_BYTES),
            ("grpc.max_metadata_size", 8 << 10),
        ]
        self._server = grpc.server(
            ThreadPoolExecutor(settings.workers, thread_name_prefix="quantfleet-infer"),
            options=options,
            maximum_concurrent_rpcs=settings.workers + settings.waiting,
        )
        add_InferenceServiceServicer_to_server(_Inference(device), self._server)
        add_DeviceServiceServicer_to_server(_Device(device), self._server)
        try:
            with private_files():
                self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigurationError(
                f"socket {self.path} cannot be made; give a path in a folder that can be written with --socket"
            ) from error
        allow(self.path, GROUP_MODE if settings.group_access else OWNER_MODE)
        self._server.start()
        _events.info("socket_opened", path=str(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more calls, let those that are answered come to their end, and remove the socket."""
        self._server.stop(_GRACE_SECONDS).wait()
        remove_socket(self.path)


class _Inference(InferenceServiceServicer):
    def __init__(self, device: LocalDevice) -> None:
        self._device = device

    def Infer(self, request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferResponse:  # noqa: N802
        with _refusals(context):
            answer = self._device.infer(tensor_from_proto(request.input))
            return pb.InferResponse(
                output=tensor_to_proto(answer.output),
                version=answer.version,
                generation=answer.generation,
                first_sample_id=answer.sample_id,
            )

    def Label(self, request: pb.LabelRequest, context: grpc.ServicerContext) -> pb.LabelResponse:  # noqa: N802
        with _refusals(context):
            return pb.LabelResponse(is_hit=self._device.label(request.sample_id, request.class_index))


class _Device(DeviceServiceServicer):
    def __init__(self, device: LocalDevice) -> None:
        self._device = device
        self._turning_back = threading.Lock()

    def DeviceStatus(  # noqa: N802
        self, _request: pb.DeviceStatusRequest, context: grpc.ServicerContext
    ) -> pb.DeviceStatusResponse:
        with _refusals(context):
            return status_to_proto(self._device.status())

    def RollBackDevice(  # noqa: N802
        self, _request: pb.RollBackDeviceRequest, context: grpc.ServicerContext
    ) -> pb.RollBackDeviceResponse:
        with _refusals(context):
            if not self._turning_back.acquire(
                blocking=False
            ):  # calls that wait would keep others from inference
                raise OverloadedError("the device is being turned back already", 1.0)
            try:
                result = self._device.roll_back()
            finally:
                self._turning_back.release()
            left = 0 if result.target is None else result.target.version
            return pb.RollBackDeviceResponse(
                left_version=left, serving=_target_to_proto(self._device.status().serving)
            )


@contextmanager
def _refusals(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn what the block raises into the status of the call."""
    try:
        yield
    except QuantFleetError as error:
        status = next(code for kind, code in _STATUS.items() if isinstance(error, kind))
        context.abort(status, str(error))


_COPIED = (
    "device", "device_class", "phase", "refused_version", "generation", "is_connected", "samples", "failures",
    "spooled_reports", "store_bytes", "last_error", "rss_bytes", "uptime_seconds",
)  # fmt: skip


def status_to_proto(status: DeviceStatus) -> pb.DeviceStatusResponse:
    """Return a status as a message."""
    return pb.DeviceStatusResponse(
        model_digest=bytes.fromhex(status.model_digest),
        serving=_target_to_proto(status.serving),
        fallback=_target_to_proto(status.fallback),
        **{name: getattr(status, name) for name in _COPIED},
    )


def status_from_proto(message: pb.DeviceStatusResponse) -> DeviceStatus:
    """Return the status of an agent that runs."""
    return DeviceStatus(
        model_digest=message.model_digest.hex(),
        serving=target_from_proto(message.serving) if message.HasField("serving") else None,
        fallback=target_from_proto(message.fallback) if message.HasField("fallback") else None,
        is_running=True,
        **{name: getattr(message, name) for name in _COPIED},
    )


def target_from_proto(message: pb.DeviceTarget) -> Target:
    """Return a target; MalformedError if it is none."""
    return Target(message.version, message.manifest_digest.hex())


def _target_to_proto(target: Target | None) -> pb.DeviceTarget | None:
    if target is None:
        return None
    return pb.DeviceTarget(version=target.version, manifest_digest=bytes.fromhex(target.manifest_digest))
