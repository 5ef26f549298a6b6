"""The telemetry service: takes what devices report, counts each report once, and says when to come again.

The rules:

1. A report is of the device that its identity names, whatever it says.
2. A report is stored for good before the device is told so, and forgets it; sent again, it is not counted again.
3. Whatever a device says is checked and bounded before it is stored (`server.telemetry_proto`), and a report that is
   refused leaves no trace.
4. The more devices wait, the later each is told to come again.
"""

import random
from collections.abc import Callable
from typing import Any, Self

import grpc
from grpc import aio

from protos.quantfleet.v1 import telemetry_pb2 as pb
from server.peers import Context, Identify, OnRefusal, PeerLimits, refusals
from server.telemetry_proto import reports_from_proto
from server.telemetry_reports import DeviceReports, Folded
from server.telemetry_settings import TelemetrySettings
from server.telemetry_writer import FoldAll, TelemetryWriter
from server.update_settings import UpdateSettings

OnReports = Callable[[pb.ReportRequest, Folded], None]
"""Told of every call that was stored, and what of it was new."""


class TelemetryService:
    """Answers devices; use it as an async context manager around the server's life."""

    NAME = "quantfleet.v1.TelemetryService"

    def __init__(
        self,
        fold_all: FoldAll,
        *,
        identify: Identify,
        settings: TelemetrySettings | None = None,
        limits: UpdateSettings | None = None,
        on_reports: OnReports = lambda _request, _folded: None,
        on_refusal: OnRefusal = lambda _error: None,
        rng: random.Random | None = None,
    ) -> None:
        """Take reports.

        Args:
            fold_all: Stores them: `TelemetryRegistry.fold_all`.
            identify: Names the device that calls: `server.identity.Identity.device`.
            settings: How often devices report; the defaults if None.
            limits: How many calls of one device are answered; the defaults if None.
            on_reports: Counts what was stored.
            on_refusal: Told why a call is refused.
            rng: Draws the times that devices are told; seeded by the system if None.
        """
        self._settings = settings or TelemetrySettings()
        self._rng = rng or random.Random()  # noqa: S311 - it spreads load, it guards nothing
        self._writer = TelemetryWriter(fold_all, self._settings)
        self._limits = PeerLimits(limits or UpdateSettings(), self._rng)
        self._identify = identify
        self._on_reports = on_reports
        self._on_refusal = on_refusal

    async def __aenter__(self) -> Self:
        await self._writer.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._writer.__aexit__(*error)

    def register(self, server: aio.Server) -> None:
        """Add the service to a server."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Report": grpc.unary_unary_rpc_method_handler(
                self.report, pb.ReportRequest.FromString, pb.ReportResponse.SerializeToString
            )
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self.NAME, handlers),))

    async def report(self, request: pb.ReportRequest, context: Context) -> pb.ReportResponse:
        """Store reports; a call without any asks up to which number reports are stored."""
        async with refusals(context, self._on_refusal):
            device = self._identify(context)
            self._limits.count_call(device)
            reports = reports_from_proto(request, device)
            folded = await self._writer.store(DeviceReports(device, reports))
            self._on_reports(request, folded)
            return pb.ReportResponse(
                stored_sequence=folded.stored_sequence,
                retry_after_seconds=self._settings.report_seconds * self._rng.uniform(0.5, 1.5)
                + self._writer.waiting_seconds,
            )
