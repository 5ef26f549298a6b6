"""The operator's side of the admin service."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from protos.quantfleet.v1 import admin_pb2 as pb
from protos.quantfleet.v1.admin_pb2_grpc import AdminServiceStub
from quantization.errors import (
    ConfigurationError,
    DigestMismatchError,
    ForbiddenError,
    IllegalTransitionError,
    MalformedError,
    NotFoundError,
    OverloadedError,
    QuantFleetError,
    UnauthenticatedError,
    UnreachableError,
)
from quantization.target_name import TargetName
from server.grpc_server import is_loopback
from server.keys import KeyFolder
from server.operator_credentials import OperatorCredentials
from server.serve_settings import check_address
from server.target_signing import MAX_TARGETS_BYTES, SignedContent, sign_targets

CALL_SECONDS = 60.0
"""Longest time that a call may take; publishing reads all blobs of an artifact."""

_Response = TypeVar("_Response", bound=Message)
_ERRORS: dict[grpc.StatusCode, type[QuantFleetError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: IllegalTransitionError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: MalformedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
    grpc.StatusCode.DATA_LOSS: DigestMismatchError,
}


class AdminClient:
    """A connection to a server; use it as a context manager."""

    def __init__(self, channel: grpc.Channel, address: str, *, timeout_seconds: float = CALL_SECONDS) -> None:
        self._channel = channel
        self._stub: Any = AdminServiceStub(channel)
        self._address = address
        self._timeout_seconds = timeout_seconds

    @classmethod
    def open(cls, address: str, operator: Path | None, *, timeout_seconds: float = CALL_SECONDS) -> Self:
        """Return a connection, which is made by the first call.

        Args:
            address: Host and port.
            operator: Folder with the operator's key and certificate; None for a server without certificates.
            timeout_seconds: Of each call.

        Raises:
            ConfigurationError: The address is none, or not of this machine where there are no certificates.
            NotFoundError: The folder lacks something.
        """
        check_address("--server", address)
        options = (("grpc.max_receive_message_length", MAX_TARGETS_BYTES + (1 << 20)),)
        if operator is not None:
            credentials = OperatorCredentials.read(operator).channel_credentials()
            return cls(
                grpc.secure_channel(address, credentials, options), address, timeout_seconds=timeout_seconds
            )
        if not is_loopback(address):
            raise ConfigurationError(f"--insecure reaches loopback addresses only, and {address} is none")
        return cls(grpc.insecure_channel(address, options), address, timeout_seconds=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def status(self) -> pb.StatusResponse:
        """Return what is served."""
        return self._call(self._stub.Status, pb.StatusRequest(), pb.StatusResponse)

    def rollouts(
        self, *, device_class: str = "", is_open_only: bool = False, limit: int = 0
    ) -> list[pb.Rollout]:
        """Return rollouts, newest first."""
        request = pb.ListRolloutsRequest(device_class=device_class, is_open_only=is_open_only, limit=limit)
        response = self._call(self._stub.ListRollouts, request, pb.ListRolloutsResponse)
        return list(response.rollouts)

    def rollout(self, rollout_id: str) -> pb.ShowRolloutResponse:
        """Return one rollout with all that is known of it."""
        return self._call(
            self._stub.ShowRollout, pb.ShowRolloutRequest(rollout_id=rollout_id), pb.ShowRolloutResponse
        )

    def pause(self, rollout_id: str, reason: str = "") -> pb.Rollout:
        """Stop a rollout where it is."""
        request = pb.PauseRequest(rollout_id=rollout_id, reason=reason)
        return self._call(self._stub.Pause, request, pb.PauseResponse).rollout

    def resume(self, rollout_id: str, reason: str = "") -> pb.Rollout:
        """Go on with a rollout."""
        request = pb.ResumeRequest(rollout_id=rollout_id, reason=reason)
        return self._call(self._stub.Resume, request, pb.ResumeResponse).rollout

    def promote(self, rollout_id: str, reason: str = "") -> pb.Rollout:
        """Give a rollout's target to all devices."""
        request = pb.PromoteRequest(rollout_id=rollout_id, reason=reason)
        return self._call(self._stub.Promote, request, pb.PromoteResponse).rollout

    def rollback(
        self, rollout_id: str, offline: KeyFolder | None, *, now_seconds: float, reason: str = ""
    ) -> pb.RollbackResponse:
        """Take a rollout back; the way back is signed before if it is not.

        Args:
            rollout_id: Its name.
            offline: Has the keys of targets; None if they are not at hand.
            now_seconds: Seconds since 1970 (UTC).
            reason: Why, for the audit.
        """
        asked = pb.PlanSigningRequest(rollout_id=rollout_id)
        plan = self._call(self._stub.PlanSigning, asked, pb.PlanSigningResponse)
        signed = _signed(plan, offline, now_seconds)
        request = pb.RollbackRequest(rollout_id=rollout_id, reason=reason, signed_targets=signed)
        return self._call(self._stub.Rollback, request, pb.RollbackResponse)

    def publish(
        self,
        manifest_digest: str,
        offline: KeyFolder | None,
        *,
        now_seconds: float,
        reason: str = "",
        is_immediate: bool = False,
        is_again: bool = False,
    ) -> pb.PublishResponse:
        """Sign what the server asks for, with keys that never leave this machine, and open the rollout.

        Args:
            manifest_digest: 64 hex digits.
            offline: Has the keys of targets; None if they are not at hand.
            now_seconds: Seconds since 1970 (UTC).
            reason: Why, for the audit.
            is_immediate: Give it to all devices at once.
            is_again: Whether it may be what was rolled back last.
        """
        digest = bytes.fromhex(manifest_digest)
        asked = pb.PlanSigningRequest(manifest_digest=digest, is_again=is_again)
        plan = self._call(self._stub.PlanSigning, asked, pb.PlanSigningResponse)
        request = pb.PublishRequest(
            manifest_digest=digest,
            is_immediate=is_immediate,
            reason=reason,
            version=plan.version,
            signed_targets=_signed(plan, offline, now_seconds),
            is_again=is_again,
        )
        return self._call(self._stub.Publish, request, pb.PublishResponse)

    def _call(self, method: Callable[..., Any], request: Message, kind: type[_Response]) -> _Response:
        try:
            response = method(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            raise self._refusal(error) from error
        if not isinstance(response, kind):
            raise MalformedError(f"the server answers with {type(response).__name__}, not {kind.__name__}")
        return response

    def _refusal(self, error: grpc.RpcError) -> QuantFleetError:
        """Return what a status means for the operator."""
        status, details = error.code(), str(error.details() or "")
        if status in _ERRORS:
            return _ERRORS[status](details)
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return OverloadedError(details, 1.0)
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnreachableError(
                f"the server at {self._address} did not answer within {self._timeout_seconds:.0f} s"
            )
        if status is grpc.StatusCode.UNAVAILABLE:
            return self._unreachable(details)
        if status is grpc.StatusCode.UNIMPLEMENTED:
            return UnreachableError(f"{self._address} is no server of Quantfleet, or an older one: {details}")
        return QuantFleetError(f"the server at {self._address} failed ({status.name}): {details}")

    def _unreachable(self, details: str) -> QuantFleetError:
        said = details.lower()
        if "database" in said:
            return UnreachableError(f"the server at {self._address} answers: {details}; try again")
        if "certificate" in said or "handshake" in said or "ssl" in said or "tls" in said:
            return UnreachableError(
                f"the server at {self._address} and this operator do not trust each other ({details}): check that "
                "--operator is a folder of this fleet, that the server's certificate names this host "
                "(`quantfleet-server keys show`), and that both want certificates, or none (--insecure)"
            )
        return UnreachableError(
            f"no server answers at {self._address} ({details}): check --server, that `quantfleet-server serve` runs, "
            "and that both want certificates, or none (--insecure)"
        )


def _signed(plan: pb.PlanSigningResponse, offline: KeyFolder | None, now_seconds: float) -> bytes:
    """Return the file of targets that a server asks for; empty if it asks for none.

    Raises:
        NotFoundError: The keys are not at hand.
        MalformedError: The server asks for something that no change needs.
    """
    if not plan.targets_metadata:
        return b""
    if offline is None:
        raise NotFoundError(
            "this change must be signed with the keys of targets; name their folder with --offline"
        )
    names = {
        TargetName(plan.model_digest.hex(), plan.device_class, name.version): SignedContent(
            name.size_bytes, name.manifest_digest.hex()
        )
        for name in plan.names
    }
    return sign_targets(
        plan.targets_metadata, plan.root_metadata, names, offline=offline, now_seconds=now_seconds
    )
