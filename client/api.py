"""Quantfleet in an application of the device's owner.

In the application's own process, with everything that keeps the model what it should be:

    from client.api import Device

    with Device.open("/var/lib/quantfleet", device_class="arm-a53", address="fleet.example:9443") as device:
        answer = device.infer(batch)                 # float32 (n, ...)
        device.label(answer.sample_id, true_class)   # where that becomes known

Or beside an agent that another process runs (`quantfleet-client run`), over its socket:

    from client.api import RemoteModel

    with RemoteModel("/var/lib/quantfleet/inference.sock") as model:
        answer = model.infer(batch)

Both raise `QuantFleetError` and nothing else. `infer` never fails because of an upgrade.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from client.device_status import Answer, DeviceStatus
from client.inference_service import status_from_proto, target_from_proto
from client.owned_device import OwnedDevice
from client.slots import Target
from client.tensors import tensor_from_proto, tensor_to_proto
from client.unix_socket import socket_address
from protos.quantfleet.v1 import inference_pb2 as pb
from protos.quantfleet.v1.inference_pb2_grpc import DeviceServiceStub, InferenceServiceStub
from quantization.arrays import AnyArray
from quantization.errors import (
    IllegalTransitionError,
    InvalidDataError,
    NotFoundError,
    OverloadedError,
    QuantFleetError,
    UnreachableError,
)

__all__ = ["Answer", "Device", "DeviceStatus", "RemoteModel"]

Device = OwnedDevice

_MAX_MESSAGE_BYTES = 256 << 20
_RETRY_SECONDS = 0.1

_ERRORS: dict[grpc.StatusCode, type[QuantFleetError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidDataError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: IllegalTransitionError,
}


class RemoteModel:
    """The model that an agent serves on a socket; safe to call from many threads.

    gRPC does not survive `fork`: a process that forks opens this afterwards.
    """

    def __init__(self, socket: Path | str, *, timeout_seconds: float = 30.0) -> None:
        """Connect when it is first used.

        Args:
            socket: Path of the agent's socket.
            timeout_seconds: Longest that a call may take.

        Raises:
            ConfigurationError: If the path is too long for a socket.
        """
        self._socket, self._timeout_seconds = Path(socket), timeout_seconds
        self._is_closed = False
        self._channel = grpc.insecure_channel(
            socket_address(self._socket),
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self._model, self._device = InferenceServiceStub(self._channel), DeviceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls after that raise `UnreachableError`."""
        self._is_closed = True
        self._channel.close()

    def infer(self, x: AnyArray) -> Answer:
        """Return what the model says to a batch.

        Args:
            x: Shape (n, ...), the model's own input units.

        Raises:
            InvalidDataError: If the input is not what the model takes, or not finite.
            NotFoundError: If the device has no model yet.
            OverloadedError: If too many calls wait, or the batch is larger than the agent takes.
            UnreachableError: If no agent answers.
        """
        with self._converted():
            request = pb.InferRequest(input=tensor_to_proto(x))
            answer: pb.InferResponse = self._model.Infer(request, timeout=self._timeout_seconds)
        output = tensor_from_proto(answer.output)
        return Answer(output, answer.version, answer.generation, answer.first_sample_id)

    def label(self, sample_id: int, class_index: int) -> bool:
        """Tell the true class of an input that was answered lately; return whether the model had said so.

        Raises:
            NotFoundError: If the input was answered too long ago, or has its label already.
            UnreachableError: If no agent answers.
        """
        with self._converted():
            request = pb.LabelRequest(sample_id=sample_id, class_index=class_index)
            answer: pb.LabelResponse = self._model.Label(request, timeout=self._timeout_seconds)
        return answer.is_hit

    def status(self) -> DeviceStatus:
        """Return how the device is doing.

        Raises:
            UnreachableError: If no agent answers.
        """
        with self._converted():
            return status_from_proto(
                self._device.DeviceStatus(pb.DeviceStatusRequest(), timeout=self._timeout_seconds)
            )

    def roll_back(self) -> Target:
        """Go back to the model that served before; return what serves now.

        Raises:
            IllegalTransitionError: If there is nothing to go back to.
            OverloadedError: If an update takes long; nothing was done.
            UnreachableError: If no agent answers.
        """
        with self._converted():
            answer: pb.RollBackDeviceResponse = self._device.RollBackDevice(
                pb.RollBackDeviceRequest(), timeout=self._timeout_seconds
            )
        return target_from_proto(answer.serving)

    @contextmanager
    def _converted(self) -> Iterator[None]:
        """Turn what gRPC raises in the block into this project's errors."""
        try:
            yield
        except (ValueError, TypeError) as error:  # a closed channel, or a number that no field holds
            if self._is_closed:
                raise UnreachableError(f"the connection to {self._socket} was closed") from error
            raise InvalidDataError(f"the call cannot be made: {error}") from error
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise OverloadedError(f"the agent refuses: {details}", _RETRY_SECONDS) from error
            if code in _ERRORS:
                raise _ERRORS[code](details) from error
            raise UnreachableError(
                f"no agent answers on {self._socket}: {details} ({code.name}); start one with `quantfleet-client run`"
            ) from error
