"""A real gRPC server of updates and telemetry on 127.0.0.1, in a thread of this process."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from grpc import aio
from prometheus_client import CollectorRegistry
from update_client import QUICK, Shelf

from protos.quantfleet.v1 import telemetry_pb2 as telemetry
from protos.quantfleet.v1.telemetry_pb2 import ReportRequest, ReportResponse, TelemetryReport
from quantization.artifact import Artifact
from server.blob_store import BlobStore
from server.delta_store import DeltaStore
from server.grpc_server import Service, serving
from server.identity import Identity
from server.targets import Assignment
from server.update_metrics import UpdateMetrics
from server.update_service import UpdateService


class _Reports:
    """Takes reports, each once."""

    NAME = "quantfleet.v1.TelemetryService"

    def __init__(self) -> None:
        self.stored: list[TelemetryReport] = []

    def register(self, server: aio.Server) -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            self.report, ReportRequest.FromString, ReportResponse.SerializeToString
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(self.NAME, {"Report": handler}),)
        )

    async def report(self, request: ReportRequest, _context: Any) -> ReportResponse:
        last = self.stored[-1].sequence if self.stored else 0
        self.stored += [report for report in request.reports if report.sequence > last]
        return ReportResponse(stored_sequence=self.stored[-1].sequence if self.stored else 0)


class LiveUpdates:
    """Serves what is published while it is used as a context manager."""

    def __init__(self, folder: Path, port: int = 0, **keywords: Any) -> None:
        self.port = port
        self._folder, self._keywords = folder, keywords
        self._shelf = Shelf(BlobStore(folder / "blobs"))
        self._reports = _Reports()
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._service: UpdateService | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def reports(self) -> list[TelemetryReport]:
        """What devices have reported."""
        return list(self._reports.stored)

    def samples(self, version: int) -> int:
        """Return how many samples were reported of a version."""
        return sum(report.counts.samples for report in self.reports if report.version == version)

    def outcomes(self, version: int) -> list[str]:
        """Return how attempts to install a version ended."""
        name = telemetry.InstallOutcome.Name
        return [
            name(one.outcome) for report in self.reports for one in report.installs if one.version == version
        ]

    def publish(self, artifact: Artifact) -> Assignment:
        """Make an artifact what every device should run."""
        target = self._shelf.publish(artifact)
        if self._service is not None:
            self._loop.call_soon_threadsafe(self._service.poll)
        return target

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001  # told to the thread that waits
            self._failure = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        service = UpdateService(
            self._shelf.find,
            self._shelf.blobs,
            DeltaStore(self._shelf.blobs, self._folder / "deltas"),
            UpdateMetrics(CollectorRegistry()),
            identify=Identity.insecure().device,
            settings=replace(QUICK, calls_burst=1_000_000),
            **self._keywords,
        )
        services = [Service(one.NAME, one.register) for one in (service, self._reports)]
        address = f"127.0.0.1:{self.port}"
        async with (
            service,
            serving(services, address, None, grace_seconds=0.2, before_stop=service.drain) as port,
        ):
            self.port, self._service = port, service
            self._ready.set()
            await self._over.wait()
            self._service = None
