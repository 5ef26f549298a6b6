"""Reports over gRPC into a real registry."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import in_loop
from postgres_server import postgres_server
from shop import CLASS, Shop, make_shop, told
from sqlalchemy.exc import OperationalError
from telemetry_client import request, service

from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.errors import MalformedError, QuantFleetError
from quantization.side_by_side import MAX_COUNT
from server.peers import PUSHBACK_KEY
from server.rollout import RolloutPlan, has_new_version
from server.telemetry_proto import MAX_INSTALLS, MAX_REPORTS, reports_from_proto
from server.telemetry_registry import TelemetryRegistry
from server.telemetry_reports import DeviceReport, DeviceReports, Folded
from server.telemetry_settings import TelemetrySettings
from server.update_settings import UpdateSettings

MODEL = "ab" * 32
MANIFEST = "cd" * 32


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path)
    made.stores.rollouts.publish(made.model_digest, CLASS, made.manifests[0], reason="first", actor="ana")
    yield made
    made.stores.engine.dispose()


def counts(shop: Shop, version: int = 1) -> int:
    return shop.stores.telemetry.counts(shop.model_digest, CLASS, version).samples


@in_loop
async def test_reports_are_counted_once(shop: Shop) -> None:
    first, second = (told(shop, k, 1, shop.manifests[0], samples=10) for k in (1, 2))
    async with service(shop.stores.telemetry.fold_all) as stub:
        answer = await stub("a").Report(request(first, second))
        assert answer.stored_sequence == 2
        assert 0 < answer.retry_after_seconds < 120
        again = await stub("a").Report(request(first, second))
        assert again.stored_sequence == 2
        assert counts(shop) == 20
        late = await stub("a").Report(request(first, told(shop, 3, 1, shop.manifests[0], samples=1)))
        assert late.stored_sequence == 3
    assert counts(shop) == 21


@in_loop
async def test_a_call_without_reports_asks_what_is_stored(shop: Shop) -> None:
    async with service(shop.stores.telemetry.fold_all) as stub:
        assert (await stub("a").Report(request())).stored_sequence == 0
        await stub("a").Report(request(told(shop, 7, 1, shop.manifests[0], samples=1)))
        assert (await stub("a").Report(request())).stored_sequence == 7
        assert (await stub("b").Report(request())).stored_sequence == 0


@in_loop
async def test_a_device_that_lost_its_place_learns_where_to_go_on(shop: Shop) -> None:
    async with service(shop.stores.telemetry.fold_all) as stub:
        await stub("a").Report(request(told(shop, 500, 1, shop.manifests[0], samples=1)))
        wiped = await stub("a").Report(request(told(shop, 1, 1, shop.manifests[0], samples=10)))
        assert wiped.stored_sequence == 500  # which this device never used: its reports wait for new numbers
        assert counts(shop) == 1
        renumbered = told(shop, wiped.stored_sequence + 1, 1, shop.manifests[0], samples=10)
        assert (await stub("a").Report(request(renumbered))).stored_sequence == 501
    assert counts(shop) == 11


@in_loop
async def test_unknown_models_and_classes_are_refused_clearly(shop: Shop) -> None:
    strange = told(shop, 1, 1, shop.manifests[0], samples=1)
    strange.device_class = "toaster"
    async with service(shop.stores.telemetry.fold_all) as stub:
        with pytest.raises(aio.AioRpcError, match="'toaster' is not registered") as raised:
            await stub("a").Report(request(strange))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await stub("a").Report(request())).stored_sequence == 0


@in_loop
async def test_a_refused_call_hinders_no_other_of_its_transaction(shop: Shop) -> None:
    good, bad = told(shop, 1, 1, shop.manifests[0], samples=3), told(shop, 1, 1, shop.manifests[0], samples=5)
    bad.model_digest = b"\1" * 32
    calls = [
        DeviceReports(name, reports_from_proto(request(one), name))
        for name, one in (("c", good), ("b", bad), ("a", good))
    ]
    folded = shop.stores.telemetry.fold_all(calls)
    assert [isinstance(one, Folded) for one in folded] == [True, False, True]
    assert counts(shop) == 6


@in_loop
async def test_a_version_with_another_manifest_is_no_evidence(shop: Shop) -> None:
    async with service(shop.stores.telemetry.fold_all) as stub:
        await stub("a").Report(request(told(shop, 1, 1, shop.manifests[1], samples=9)))
        await stub("b").Report(request(told(shop, 1, 9, shop.manifests[0], samples=9)))
    assert counts(shop, 1) == counts(shop, 9) == 0
    assert counts(shop, 0) == 18


@in_loop
async def test_a_canary_that_cannot_load_is_marked(shop: Shop) -> None:
    rollout = shop.stores.rollouts.start(
        shop.model_digest, CLASS, shop.manifests[1], actor="ana", plan=RolloutPlan((0.5, 0.9))
    )
    canary = next(name for name in map(str, range(99)) if has_new_version(rollout, name))
    failed = told(shop, 1, 1, shop.manifests[0])
    for outcome in (pb.INSTALL_OUTCOME_FETCH_FAILED, pb.INSTALL_OUTCOME_SELF_TEST_FAILED):
        failed.installs.add(version=2, outcome=outcome, fetched_bytes=100, install_seconds=1.5)
    async with service(shop.stores.telemetry.fold_all) as stub:
        await stub(canary).Report(request(failed))
    assert shop.stores.telemetry.situation(rollout).canaries.loading == 1


@in_loop
async def test_a_device_that_reports_too_often_is_told_to_wait(shop: Shop) -> None:
    limits = UpdateSettings(calls_per_second=0.01, calls_burst=2)
    async with service(shop.stores.telemetry.fold_all, limits=limits) as stub:
        for _ in range(2):
            await stub("a").Report(request())
        with pytest.raises(aio.AioRpcError) as raised:
            await stub("a").Report(request())
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert PUSHBACK_KEY in dict(raised.value.trailing_metadata())
        assert (await stub("b").Report(request())).stored_sequence == 0


@in_loop
async def test_more_calls_than_may_wait_are_refused(shop: Shop) -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(calls: Sequence[DeviceReports]) -> Sequence[Folded | QuantFleetError]:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return shop.stores.telemetry.fold_all(calls)

    limits = TelemetrySettings(max_waiting_calls=2, calls_per_transaction=1, reports_per_second=1.0)
    async with service(slow, settings=limits) as stub:
        calls = [asyncio.ensure_future(stub(str(k)).Report(request())) for k in range(6)]
        while sum(call.done() for call in calls) < 3:
            await asyncio.sleep(0.01)
        release.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, aio.AioRpcError)]
    assert {one.code() for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refused) == 3


@in_loop
async def test_while_the_database_is_away_devices_are_told_to_come_again(shop: Shop) -> None:
    is_away = True

    def fold_all(calls: Sequence[DeviceReports]) -> Sequence[Folded | QuantFleetError]:
        if is_away:
            raise OperationalError("SELECT 1", {}, Exception("gone"))
        return shop.stores.telemetry.fold_all(calls)

    async with service(fold_all) as stub:
        with pytest.raises(aio.AioRpcError) as raised:
            await stub("a").Report(request())
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert int(dict(raised.value.trailing_metadata())[PUSHBACK_KEY]) >= 2000
        is_away = False
        assert (await stub("a").Report(request())).stored_sequence == 0


@in_loop
async def test_many_devices_share_transactions(shop: Shop) -> None:
    sizes: list[int] = []

    def fold_all(calls: Sequence[DeviceReports]) -> Sequence[Folded | QuantFleetError]:
        sizes.append(len(calls))
        return shop.stores.telemetry.fold_all(calls)

    one = request(told(shop, 1, 1, shop.manifests[0], samples=2))
    async with service(fold_all) as stub:
        answers = await asyncio.gather(*(stub(f"device-{k}").Report(one) for k in range(200)))
    assert {answer.stored_sequence for answer in answers} == {1}
    assert counts(shop) == 400
    assert len(sizes) < 50


def malformed(change: Callable[[pb.TelemetryReport], object]) -> pb.ReportRequest:
    report = pb.TelemetryReport(
        sequence=1, model_digest=b"\1" * 32, device_class=CLASS, manifest_digest=b"\2" * 32, version=1
    )
    change(report)
    return request(report)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: setattr(r, "sequence", 0),
        lambda r: setattr(r, "sequence", 1 << 63),
        lambda r: setattr(r, "model_digest", b"\1"),
        lambda r: setattr(r, "manifest_digest", b""),
        lambda r: setattr(r, "device_class", ""),
        lambda r: setattr(r, "version", 1 << 40),
        lambda r: setattr(r, "covered_seconds", math.nan),
        lambda r: setattr(r, "covered_seconds", -1.0),
        lambda r: setattr(r.counts, "samples", MAX_COUNT + 1),
        lambda r: setattr(r.counts, "hits", 1),
        lambda r: r.counts.MergeFrom(pb.TelemetryCounts(samples=1, judged=1)),
        lambda r: r.counts.MergeFrom(pb.TelemetryCounts(judged=1, judge=pb.JUDGE_FLOAT_MODEL)),
        lambda r: setattr(r.counts, "clipped_values", 1),
        lambda r: r.latency.counts.extend([1] * 65),
        lambda r: r.latency.counts.append(MAX_COUNT + 1),
        lambda r: setattr(r.memory, "peak_rss_bytes", 1 << 51),
        lambda r: r.installs.extend([pb.InstallAttempt(version=1)] * (MAX_INSTALLS + 1)),
        lambda r: r.installs.add(version=0),
        lambda r: r.installs.add(version=1, install_seconds=math.inf),
        lambda r: r.installs.add(version=1, manifest_digest=b"\1"),
        lambda r: r.installs.add(version=1, fetched_bytes=1 << 51),
    ],
)
def test_what_no_device_can_report_is_refused(change: Callable[[pb.TelemetryReport], object]) -> None:
    with pytest.raises(MalformedError):
        reports_from_proto(malformed(change), "a")


def test_reports_out_of_order_or_too_many_are_refused() -> None:
    ok = malformed(lambda _: None).reports[0]
    later = malformed(lambda r: setattr(r, "sequence", 2)).reports[0]
    assert len(reports_from_proto(request(ok, later), "a")) == 2
    for wrong in (request(later, ok), request(ok, ok), request(*[ok] * (MAX_REPORTS + 1))):
        with pytest.raises(MalformedError):
            reports_from_proto(wrong, "a")


def test_only_the_corrected_float_model_judges() -> None:
    def judged_by(judge: Any) -> DeviceReport:
        message = malformed(
            lambda r: r.counts.MergeFrom(pb.TelemetryCounts(samples=9, judged=5, agreements=4, judge=judge))
        )
        return reports_from_proto(message, "a")[0]

    assert judged_by(pb.JUDGE_CORRECTED_FLOAT_MODEL).counts.judged == 5
    assert judged_by(pb.JUDGE_PREVIOUS_ARTIFACT).counts.judged == 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    try:
        message = pb.ReportRequest.FromString(data)
    except Exception:  # noqa: BLE001 - gRPC refuses these bytes itself
        return
    with suppress(MalformedError):
        reports_from_proto(message, "a")


@pytest.mark.slow
def test_two_processes_fold_reports_of_the_same_devices_on_postgresql(tmp_path: Path) -> None:
    with postgres_server() as url:
        shop = make_shop(tmp_path, registry_url=url)
        shop.stores.rollouts.publish(shop.model_digest, CLASS, shop.manifests[0], reason="first", actor="ana")
        registries = [TelemetryRegistry(shop.stores.engine, process=name) for name in ("one", "two")]
        calls = [
            DeviceReports(
                name,
                reports_from_proto(request(told(shop, 1, 1, shop.manifests[0], samples=1)), name),
            )
            for name in (f"device-{k}" for k in range(100))
        ]
        with ThreadPoolExecutor(2) as pool:
            both = [
                pool.submit(registry.fold_all, batch)
                for registry in registries
                for batch in (calls[::-1], calls)
            ]
            results = [future.result() for future in both]
        assert counts(shop) == 100  # once each, whoever was first
        assert sum(len(one.counted) for result in results for one in result if isinstance(one, Folded)) == 100
        shop.stores.engine.dispose()
