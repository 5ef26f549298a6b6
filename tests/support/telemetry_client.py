"""A real telemetry service, and devices that report to it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from grpc import aio
from update_client import Named

from protos.quantfleet.v1 import telemetry_pb2 as pb
from protos.quantfleet.v1.telemetry_pb2_grpc import TelemetryServiceStub
from quantization.errors import QuantFleetError
from server.grpc_server import Service, serving
from server.identity import Identity
from server.telemetry_reports import DeviceReports, Folded
from server.telemetry_service import TelemetryService

Fold = Callable[[Sequence[DeviceReports]], Sequence[Folded | QuantFleetError]]


@asynccontextmanager
async def service(fold_all: Fold, **keywords: Any) -> AsyncIterator[Callable[[str], Any]]:
    """Yield a function from a device's name to its stub."""
    telemetry = TelemetryService(fold_all, identify=Identity.insecure().device, **keywords)
    wanted = Service(telemetry.NAME, telemetry.register)
    async with (
        telemetry,
        serving([wanted], "127.0.0.1:0", None, grace_seconds=0.1) as port,
        aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield lambda device: Named(TelemetryServiceStub(channel), device)


def request(*reports: pb.TelemetryReport) -> pb.ReportRequest:
    return pb.ReportRequest(reports=reports)
