"""The admin service: shows operators what is served, and does what they ask.

The rules:

1. Only operators are answered, and the audit has their name beside everything that they change.
2. Rollouts change by the table of `server.rollout` alone; what it does not allow is FAILED_PRECONDITION.
3. Nothing is published, and nothing taken back, before devices can verify it: where metadata is signed, the names must
   be.
"""

import asyncio
import re
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata as installed
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import aio

from protos.quantfleet.v1 import admin_pb2 as pb
from quantization.blob import check_digest
from quantization.blob_ref import check_name
from quantization.errors import IllegalTransitionError, MalformedError, NotFoundError
from server.admin_proto import (
    evidence_to_proto,
    first_version_to_proto,
    plan_to_proto,
    rollout_to_proto,
    step_to_proto,
)
from server.peers import Context, Identify, OnRefusal, refusals
from server.rollout import Event, Rollout, resuming_event
from server.rollout_queries import RolloutQueries
from server.rollout_registry import RolloutRegistry
from server.rollout_settings import RolloutRules
from server.signed_publishing import PlannedChange, Publisher
from server.stores import Signing
from server.telemetry_registry import TelemetryRegistry

MAX_ROLLOUTS = 100
_MAX_REASON = 1000
_ROLLOUT_ID = re.compile(r"[0-9a-f]{1,64}")
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the admin service works on.

    Attributes:
        rollouts: Changes rollouts.
        telemetry: Has the evidence.
        queries: Answers questions.
        publisher: Plans and opens changes of targets.
        rules: How much evidence moves a rollout.
        signing: Signs; None where nothing is signed.
    """

    rollouts: RolloutRegistry
    telemetry: TelemetryRegistry
    queries: RolloutQueries
    publisher: Publisher
    rules: RolloutRules
    signing: Signing | None


class AdminService:
    """Answers operators; any number of calls at a time."""

    NAME = "quantfleet.v1.AdminService"

    def __init__(
        self,
        parts: AdminParts,
        *,
        identify: Identify,
        watchers: Callable[[], int],
        on_change: Callable[[], None],
        on_refusal: OnRefusal = lambda _error: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Serve operators.

        Args:
            parts: What to work on.
            identify: Names the operator that calls.
            watchers: How many devices watch this process now.
            on_change: Called when devices have a new target: they should be told at once.
            on_refusal: Told why a call is refused.
            clock: Seconds since 1970 (UTC).
        """
        self._parts = parts
        self._identify = identify
        self._watchers = watchers
        self._on_change = on_change
        self._on_refusal = on_refusal
        self._clock = clock
        self._started = time.monotonic()
        self._executor = ThreadPoolExecutor(2, "quantfleet-admin")

    def register(self, server: aio.Server) -> None:
        """Add the service to a server."""
        calls: dict[str, tuple[type[Message], Callable[[Any, str], Message]]] = {
            "Status": (pb.StatusRequest, self._status),
            "ListRollouts": (pb.ListRolloutsRequest, self._list),
            "ShowRollout": (pb.ShowRolloutRequest, self._show),
            "Pause": (pb.PauseRequest, self._pause),
            "Resume": (pb.ResumeRequest, self._resume),
            "Promote": (pb.PromoteRequest, self._promote),
            "Rollback": (pb.RollbackRequest, self._rollback),
            "PlanSigning": (pb.PlanSigningRequest, self._plan),
            "Publish": (pb.PublishRequest, self._publish),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(answer), request.FromString, lambda response: response.SerializeToString()
            )
            for name, (request, answer) in calls.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self.NAME, handlers),))

    def close(self) -> None:
        """Take no more work."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _handler(self, answer: Callable[[Any, str], Message]) -> Callable[[Any, Context], Any]:
        async def handle(request: Message, context: Context) -> Message:
            async with refusals(context, self._on_refusal):
                operator = self._identify(context)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._executor, answer, request, operator)

        return handle

    def _status(self, _request: pb.StatusRequest, _operator: str) -> pb.StatusResponse:
        targets = []
        for one in self._parts.queries.served():
            base = one.served.base
            target = pb.ServedTarget(
                model_name=one.model_name,
                model_digest=bytes.fromhex(one.model_digest),
                device_class=one.device_class,
                version=base.version,
                generation=one.generation,
                manifest_digest=bytes.fromhex(base.manifest_digest),
            )
            if one.served.rollout is not None and one.served.rollout.is_open:
                target.rollout.CopyFrom(self._shown(one.served.rollout))
            targets.append(target)
        return pb.StatusResponse(
            targets=targets,
            watchers=self._watchers(),
            uptime_seconds=time.monotonic() - self._started,
            software_version=installed.version("quantfleet"),
        )

    def _list(self, request: pb.ListRolloutsRequest, _operator: str) -> pb.ListRolloutsResponse:
        rollouts = self._parts.queries.rollouts(
            device_class=request.device_class and check_name(request.device_class, "device class"),
            is_open_only=request.is_open_only,
            limit=min(request.limit or MAX_ROLLOUTS, MAX_ROLLOUTS),
        )
        return pb.ListRolloutsResponse(rollouts=[self._shown(rollout) for rollout in rollouts])

    def _show(self, request: pb.ShowRolloutRequest, _operator: str) -> pb.ShowRolloutResponse:
        rollout = self._rollout(request.rollout_id)
        situation = self._parts.telemetry.situation(rollout)
        evidence = self._parts.queries.evidence(rollout, situation, self._parts.rules)
        return pb.ShowRolloutResponse(
            rollout=self._shown(rollout),
            events=[step_to_proto(step) for step in self._parts.queries.steps(rollout)],
            evidence=[evidence_to_proto(row) for row in evidence],
        )

    def _pause(self, request: pb.PauseRequest, operator: str) -> pb.PauseResponse:
        moved = self._advance(request.rollout_id, lambda _: Event.PAUSED, operator, request.reason)
        return pb.PauseResponse(rollout=self._shown(moved))

    def _resume(self, request: pb.ResumeRequest, operator: str) -> pb.ResumeResponse:
        moved = self._advance(request.rollout_id, resuming_event, operator, request.reason)
        return pb.ResumeResponse(rollout=self._shown(moved))

    def _promote(self, request: pb.PromoteRequest, operator: str) -> pb.PromoteResponse:
        moved = self._advance(request.rollout_id, lambda _: Event.PROMOTED, operator, request.reason)
        return pb.PromoteResponse(rollout=self._shown(moved))

    def _rollback(self, request: pb.RollbackRequest, operator: str) -> pb.RollbackResponse:
        _checked_reason(request.reason)  # before anything is signed
        change = self._parts.publisher.plan_way_back(_named(request.rollout_id))
        self._accept(change, request.signed_targets)
        if not self._parts.publisher.is_signed(change):
            raise IllegalTransitionError(
                f"the way back, version {change.version} of '{change.device_class}', is not signed: roll back with "
                "the offline keys"
            )
        moved = self._advance(request.rollout_id, lambda _: Event.RECALLED, operator, request.reason)
        return pb.RollbackResponse(rollout=self._shown(moved), version=moved.rolled_back_version or 0)

    def _plan(self, request: pb.PlanSigningRequest, _operator: str) -> pb.PlanSigningResponse:
        change = self._planned(request)
        signing = self._parts.signing
        if signing is None or self._parts.publisher.is_signed(change):
            return plan_to_proto(change)
        targets, root = signing.metadata.read("targets"), signing.metadata.read("root")
        return plan_to_proto(change, targets=targets, root=root)

    def _planned(self, request: pb.PlanSigningRequest) -> PlannedChange:
        if request.WhichOneof("change") == "rollout_id":
            return self._parts.publisher.plan_way_back(_named(request.rollout_id))
        digest = check_digest(request.manifest_digest.hex())
        return self._parts.publisher.plan(digest, is_again=request.is_again)

    def _publish(self, request: pb.PublishRequest, operator: str) -> pb.PublishResponse:
        digest = check_digest(request.manifest_digest.hex())
        change = self._parts.publisher.plan(digest, is_again=request.is_again)
        if request.version not in (0, change.version):
            raise IllegalTransitionError(
                f"version {change.version} of '{change.device_class}' is next, not {request.version}: another one "
                "has been published meanwhile; publish again"
            )
        reason = _checked_reason(request.reason)
        self._accept(change, request.signed_targets)
        published = self._parts.publisher.open(
            change, actor=operator, reason=reason, is_immediate=request.is_immediate
        )
        self._on_change()
        if published.rollout is not None:
            rollout = self._shown(published.rollout)
        else:
            generation = self._generation(change.model_digest, change.device_class, change.manifest_digest)
            rollout = first_version_to_proto(change, published, generation=generation)
        return pb.PublishResponse(rollout=rollout, was_published=not published.is_new)

    def _accept(self, change: PlannedChange, signed_targets: bytes) -> None:
        """Put signed targets in place, and end what a process that died left half done."""
        signing = self._parts.signing
        if signing is None:
            return
        if signed_targets and not self._parts.publisher.is_signed(change):
            signing.metadata.accept_targets(signed_targets, online=signing.online, now_seconds=self._clock())
        else:
            signing.metadata.refresh(signing.online, now_seconds=self._clock())

    def _advance(
        self, rollout_id: str, event_for: Callable[[Rollout], Event], operator: str, reason: str
    ) -> Rollout:
        """Move a rollout; if telemetry moves it at the same moment, what is asked goes on from there."""
        said = _checked_reason(reason)
        for attempt in range(_ATTEMPTS):
            rollout = self._rollout(rollout_id)
            try:
                moved = self._parts.rollouts.advance(rollout, event_for(rollout), actor=operator, reason=said)
            except IllegalTransitionError:
                is_stale = self._rollout(rollout_id).revision != rollout.revision
                if not is_stale or attempt == _ATTEMPTS - 1:
                    raise
            else:
                self._on_change()
                return moved
        raise AssertionError("unreachable")

    def _rollout(self, rollout_id: str) -> Rollout:
        return self._parts.rollouts.rollout(_named(rollout_id))

    def _shown(self, rollout: Rollout) -> pb.Rollout:
        generation = self._generation(rollout.model_digest, rollout.device_class, rollout.manifest_digest)
        return rollout_to_proto(rollout, devices=self._parts.queries.devices(rollout), generation=generation)

    def _generation(self, model_digest: str, device_class: str, manifest_digest: str) -> int:
        return self._parts.queries.generations(model_digest, device_class).get(manifest_digest, 0)


def _named(rollout_id: str) -> str:
    if not rollout_id:
        raise MalformedError("a rollout is asked for by its name, and the name is empty")
    if not _ROLLOUT_ID.fullmatch(rollout_id):
        raise NotFoundError(f"there is no rollout {rollout_id[:80]!r}: names are hex digits")
    return rollout_id


def _checked_reason(reason: str) -> str:
    if len(reason) > _MAX_REASON:
        raise MalformedError(f"a reason of {len(reason)} characters; at most {_MAX_REASON} are kept")
    if any(unicodedata.category(character) == "Cc" and character not in "\n\t" for character in reason):
        raise MalformedError("a reason must not have control characters")
    return reason
