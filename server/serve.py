"""A server process: every service on one registry, composed from settings, until it is told to stop.

The rules:

1. Nothing is served before all of it is: the addresses are handed out when devices, operators and Prometheus can come.
2. A process that is told to stop says so first (health is NOT_SERVING, watches end), lets calls go on for a while, and
   ends.
3. While the database is away, watchers keep what they know, other calls are UNAVAILABLE with a time to wait, and
   nothing has to be done when it is back.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass

import grpc
import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from protos.quantfleet.v1 import telemetry_pb2 as telemetry_pb
from quantization.errors import ConfigurationError
from server import fleet_metrics
from server.admin_service import AdminParts, AdminService
from server.blob_garbage import GarbageRules, collect_garbage
from server.delta_store import DeltaStore
from server.difference_maker import DifferenceMaker
from server.enrolment_service import EnrolmentService, RenewalService
from server.evidence_retention import forget_evidence
from server.expiry_metrics import ExpiryMetrics
from server.grpc_server import Service, is_loopback, serving
from server.identity import Identity
from server.identity_registry import IdentityRegistry
from server.metrics_page import serving_metrics
from server.periodic import Periodic
from server.pki import PkiFolder
from server.prepared_targets import PreparedTargets
from server.refresher import Refresher
from server.reviewer import Reviewer
from server.revocations import Revocations
from server.rollout_queries import RolloutQueries
from server.serve_settings import ServeSettings
from server.server_credentials import enrolment_credentials, mutual_credentials
from server.service_metrics import ReportOutcome, ServiceMetrics, refusal_reason
from server.stores import Stores, open_stores
from server.telemetry_reports import Folded
from server.telemetry_service import TelemetryService
from server.update_metrics import UpdateMetrics
from server.update_service import UpdateService, no_metadata

_log = structlog.get_logger()
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a process serves, host and port; empty where it does not.

    Attributes:
        address: For devices and operators.
        enrolment_address: For devices that are yet to enrol.
        metrics_address: For Prometheus.
    """

    address: str
    enrolment_address: str
    metrics_address: str

    def to_json(self) -> dict[str, str]:
        """Return what is printed when the process is ready."""
        return asdict(self)


async def serve(
    settings: ServeSettings, *, stop: asyncio.Event, on_ready: Callable[[Addresses], None]
) -> None:
    """Serve until told to stop.

    Args:
        settings: What to serve, and where.
        stop: Set when the process should end.
        on_ready: Called once everything is served.

    Raises:
        ConfigurationError: Something cannot be opened or served.
        NotFoundError: Keys or certificates are missing.
    """
    async with running(settings) as addresses:
        on_ready(addresses)
        _log.info("server_ready", **addresses.to_json())
        await stop.wait()
        _log.info("server_draining")
    _log.info("server_stopped")


@asynccontextmanager
async def running(
    settings: ServeSettings, clock: Callable[[], float] = time.time
) -> AsyncIterator[Addresses]:
    """Serve while the block runs; yields where."""
    _refuse_insecure(settings)
    async with AsyncExitStack() as stack:
        stores = await asyncio.to_thread(open_stores, settings, clock)
        stack.callback(stores.engine.dispose)
        yield await _Composition(settings, stores, stack, clock).start()


class _Composition:
    """The parts of one process, each entered in the order in which they need each other."""

    def __init__(
        self,
        settings: ServeSettings,
        stores: Stores,
        stack: AsyncExitStack,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._stores = stores
        self._stack = stack
        self._clock = clock
        self._rng = random.Random()  # noqa: S311 - it spreads load, it guards nothing
        self._metrics = CollectorRegistry()
        self._counts = ServiceMetrics(self._metrics)
        self._pki = PkiFolder(settings.home / "pki", settings.certificates)

    async def start(self) -> Addresses:
        """Return where everything is served."""
        table = self._settings.server
        metrics_address = await self._serve_metrics()
        if self._settings.is_insecure:
            identity, credentials = Identity.insecure(), None
        else:
            revocations = Revocations(IdentityRegistry(self._stores.engine, self._clock).revoked)
            poll_seconds = self._settings.enrolment.revocation_poll_seconds
            await self._repeat("revocations", revocations.read, poll_seconds, is_due_at_once=True)
            identity = Identity.certified(revocations.is_revoked, clock=self._clock)
            credentials = mutual_credentials(self._pki)
        await self._repeat("refresh", self._refresher().refresh, table.refresh_seconds, is_due_at_once=True)
        update = await self._stack.enter_async_context(self._update(identity))
        services = [Service(update.NAME, update.register)]
        telemetry = await self._stack.enter_async_context(self._telemetry(identity))
        services.append(Service(telemetry.NAME, telemetry.register))
        admin = self._admin(identity, update)
        self._stack.callback(admin.close)
        services.append(Service(admin.NAME, admin.register))
        if identity.is_certified:
            renewal = self._stack.enter_context(self._renewal(identity))
            services.append(Service(renewal.NAME, renewal.register))
        await self._repeat("review", self._reviewer(update).review, table.review_seconds)
        await self._repeat("retention", self._forget_evidence, table.refresh_seconds)
        if table.garbage_days:
            await self._repeat("garbage", self._collect_garbage, _DAY_SECONDS)
        address = await self._serve(services, table.address, credentials, update.drain)
        enrolment_address = ""
        if identity.is_certified and table.enrolment_address:
            enrolment_address = await self._serve_enrolment(address)
        return Addresses(address, enrolment_address, metrics_address)

    async def _repeat(
        self, name: str, work: Callable[[], object], every_seconds: float, *, is_due_at_once: bool = False
    ) -> None:
        """Have something done again and again for as long as the process serves."""
        periodic = Periodic(name, work, every_seconds=every_seconds, is_due_at_once=is_due_at_once)
        await self._stack.enter_async_context(periodic)

    async def _serve(
        self,
        services: list[Service],
        address: str,
        credentials: grpc.ServerCredentials | None,
        before_stop: Callable[[], None],
    ) -> str:
        port = await self._stack.enter_async_context(
            serving(
                services,
                address,
                credentials,
                grace_seconds=self._settings.server.grace_seconds,
                before_stop=before_stop,
                on_refusal=self._counts.count_refusal,
            )
        )
        return f"{address.rpartition(':')[0]}:{port}"

    async def _serve_metrics(self) -> str:
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._metrics)
        fleet_metrics.register(self._metrics, self._stores.engine, self._stores.blobs)
        signing, pki = self._stores.signing, self._pki.path
        ExpiryMetrics(
            self._metrics,
            None if signing is None else signing.metadata.read,
            {} if self._settings.is_insecure else {"server": pki / "server.crt", "ca": pki / "ca.crt"},
        )
        address = self._settings.server.metrics_address
        if not address:
            return ""
        return self._stack.enter_context(serving_metrics(self._metrics, address))

    async def _serve_enrolment(self, address: str) -> str:
        table, signing = self._settings.server, self._stores.signing
        if signing is None:
            raise ConfigurationError("devices can enrol only where metadata is signed")
        enrolment = EnrolmentService(
            IdentityRegistry(self._stores.engine, self._clock),
            self._pki.authority(),
            lambda: signing.metadata.read("root"),
            address=table.public_address or f":{address.rpartition(':')[2]}",
            clock=self._clock,
            settings=self._settings.enrolment,
            on_refusal=self._counts.count_refusal,
        )
        self._stack.enter_context(enrolment)
        services = [Service(enrolment.NAME, enrolment.register)]
        credentials = enrolment_credentials(self._pki)
        return await self._serve(services, table.enrolment_address, credentials, lambda: None)

    def _update(self, identity: Identity) -> UpdateService:
        signing, blobs, table = self._stores.signing, self._stores.blobs, self._settings.update
        deltas = DeltaStore(blobs, self._settings.delta_place, max_bytes=table.delta_bytes)
        targets = PreparedTargets(
            self._stores.rollouts.served,
            DifferenceMaker(blobs, deltas),
            most_seconds=table.prepare_seconds,
            clock=self._clock,
        )
        return UpdateService(
            self._stack.enter_context(targets),
            blobs,
            deltas,
            UpdateMetrics(self._metrics),
            metadata=no_metadata if signing is None else signing.metadata.read,
            identify=identity.device,
            settings=table,
            on_refusal=self._counts.count_refusal,
            rng=self._rng,
        )

    def _telemetry(self, identity: Identity) -> TelemetryService:
        return TelemetryService(
            self._stores.telemetry.fold_all,
            identify=identity.device,
            settings=self._settings.telemetry,
            limits=self._settings.update,
            on_reports=self._count_reports,
            on_refusal=self._count_refused_reports,
            rng=self._rng,
        )

    def _admin(self, identity: Identity, update: UpdateService) -> AdminService:
        stores = self._stores
        loop = asyncio.get_running_loop()
        parts = AdminParts(
            rollouts=stores.rollouts,
            telemetry=stores.telemetry,
            queries=RolloutQueries(stores.engine, stores.registry, stores.rollouts),
            publisher=stores.publisher,
            rules=self._settings.rollout,
            signing=stores.signing,
        )
        return AdminService(
            parts,
            identify=identity.operator,
            watchers=lambda: update.watchers,
            on_change=lambda: _calling(loop, update.poll),
            on_refusal=self._counts.count_refusal,
            clock=self._clock,
        )

    def _renewal(self, identity: Identity) -> RenewalService:
        return RenewalService(
            IdentityRegistry(self._stores.engine, self._clock),
            self._pki.authority(),
            identity,
            clock=self._clock,
            settings=self._settings.enrolment,
            on_refusal=self._counts.count_refusal,
        )

    def _reviewer(self, update: UpdateService) -> Reviewer:
        loop = asyncio.get_running_loop()
        return Reviewer(
            self._stores.rollouts,
            self._stores.telemetry,
            on_change=lambda: _calling(loop, update.poll),
            clock=self._clock,
        )

    def _forget_evidence(self) -> None:
        kept_seconds = self._settings.server.evidence_days * _DAY_SECONDS
        forget_evidence(self._stores.engine, before_seconds=self._clock() - kept_seconds)

    def _collect_garbage(self) -> None:
        signing = self._stores.signing
        collected = collect_garbage(
            self._stores.engine,
            self._settings.blob_place,
            now_seconds=self._clock(),
            rules=GarbageRules(self._settings.server.garbage_days),
            signed=() if signing is None else set(signing.metadata.targets().values()),
        )
        _log.info("garbage_collected", **asdict(collected))

    def _refresher(self) -> Refresher:
        renewals: dict[str, Callable[[], object]] = {}
        signing = self._stores.signing
        if signing is not None:
            renewals["signed metadata"] = lambda: signing.metadata.refresh(
                signing.online, now_seconds=self._clock()
            )
        if not self._settings.is_insecure:
            renewals["certificates"] = lambda: self._pki.refresh(now_seconds=self._clock())
        return Refresher(renewals)

    def _count_reports(self, request: telemetry_pb.ReportRequest, folded: Folded) -> None:
        new = {report.sequence for report in folded.counted}
        for report in request.reports:
            if report.sequence in new:
                self._counts.count_installs(report)
        self._counts.count_report(ReportOutcome.STORED, len(new) - folded.implausible)
        self._counts.count_report(ReportOutcome.IMPLAUSIBLE, folded.implausible)
        if folded.implausible:
            _log.warning(
                "reports_not_counted", device=folded.counted[0].device_id, reports=folded.implausible
            )
        self._counts.count_report(ReportOutcome.REPEATED, len(request.reports) - len(new))

    def _count_refused_reports(self, error: Exception) -> None:
        self._counts.count_refusal(error)
        if refusal_reason(error) in ("malformed", "not_found"):  # others come again, and are no one's fault
            self._counts.count_report(ReportOutcome.REFUSED)


def _calling(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Call something of the event loop from a thread, unless the loop has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)


def _refuse_insecure(settings: ServeSettings) -> None:
    address = settings.server.address
    if settings.is_insecure and not is_loopback(address):
        raise ConfigurationError(
            f"--insecure serves loopback addresses only, and {address} is none: serve 127.0.0.1, or make keys with "
            f"`quantfleet-server keys init --home {settings.home}`"
        )
