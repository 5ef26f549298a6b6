"""What a device can try that reports: it is enrolled, and lies.

In another's name it cannot report: that is among the attacks on identities.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from loops import in_loop
from shop import CLASS, Shop, make_shop, told
from sqlalchemy.orm import Session
from telemetry_client import request, service

from quantization.device_class import ARM
from quantization.side_by_side import MAX_COUNT
from server.class_totals import ClassTotals, read_totals
from server.telemetry_budget import MAX_OFFLINE_SECONDS
from server.telemetry_counts import TelemetryCounts
from server.telemetry_proto import MAX_REPORTS
from server.telemetry_registry import TelemetryRegistry
from server.telemetry_reports import DeviceReport


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path)
    made.stores.registry.add_device_class(ARM)
    made.stores.rollouts.publish(made.model_digest, CLASS, made.manifests[0], reason="first", actor="ana")
    yield made
    made.stores.engine.dispose()


def totals(shop: Shop, version: int = 1) -> ClassTotals:
    key = (shop.model_digest, CLASS, version)
    with Session(shop.stores.engine) as session:
        return read_totals(session, [key])[0].get(key, ClassTotals())


@in_loop
async def test_replayed_reports_are_counted_once(shop: Shop) -> None:
    reports = [told(shop, number, 1, shop.manifests[0], samples=10) for number in (1, 2)]
    async with service(shop.stores.telemetry.fold_all) as stub:
        for _ in range(3):
            assert (await stub("a").Report(request(*reports))).stored_sequence == 2
        assert (await stub("a").Report(request(reports[0]))).stored_sequence == 2
    assert totals(shop).samples == 20


@in_loop
async def test_a_report_that_is_replayed_for_another_class_is_not_counted(shop: Shop) -> None:
    async with service(shop.stores.telemetry.fold_all) as stub:
        await stub("a").Report(request(told(shop, 5, 1, shop.manifests[0], samples=1)))
        other = told(shop, 5, 1, shop.manifests[0], samples=1)
        other.device_class = "arm"
        assert (await stub("a").Report(request(other))).stored_sequence == 5
    assert shop.stores.telemetry.counts(shop.model_digest, "arm", 0).samples == 0


@in_loop
async def test_what_another_manifest_did_is_no_evidence_of_a_version(shop: Shop) -> None:
    async with service(shop.stores.telemetry.fold_all) as stub:
        await stub("a").Report(request(told(shop, 1, 1, shop.manifests[1], samples=9)))
    assert totals(shop).samples == 0


@in_loop
async def test_a_device_that_lies_counts_no_more_than_it_can_have_answered(shop: Shop) -> None:
    """It claims the most that is read, as often as it likes; others are counted as ever."""
    telemetry = TelemetryRegistry(shop.stores.engine, max_inputs_per_second=100.0)
    most = dict.fromkeys(("samples", "labelled", "failures", "observed_values", "clipped_values"), MAX_COUNT)
    honest = {"samples": 1000, "labelled": 1000, "hits": 900, "observed_values": 5000, "clipped_values": 10}
    async with service(telemetry.fold_all) as stub:
        for call in range(3):
            numbers = range(1 + call * MAX_REPORTS, 1 + (call + 1) * MAX_REPORTS)
            lies = [told(shop, number, 1, shop.manifests[0], **most) for number in numbers]
            assert (await stub("liar").Report(request(*lies))).stored_sequence == numbers[-1]
            await stub("honest").Report(request(told(shop, call + 1, 1, shop.manifests[0], **honest)))
        assert totals(shop) == ClassTotals(devices=2, **{name: 3 * count for name, count in honest.items()})
        plausible = told(shop, 10_000, 1, shop.manifests[0], samples=int(100 * MAX_OFFLINE_SECONDS))
        await stub("liar").Report(request(plausible))
        plausible.sequence += 1
        await stub("liar").Report(request(plausible))
    assert totals(shop).samples == 3000 + 100 * MAX_OFFLINE_SECONDS


def test_sums_that_are_full_refuse_nobody(shop: Shop) -> None:
    """However they got there: what others report is still stored, and can be read."""
    telemetry = TelemetryRegistry(shop.stores.engine, max_inputs_per_second=1e30)
    full = TelemetryCounts(samples=1 << 62, labelled=1 << 62, hits=1)
    for number in range(1, 5):
        for liar in ("liar", "other liar"):
            assert telemetry.fold(DeviceReport(shop.model_digest, CLASS, liar, number, 1, full))
    assert telemetry.fold(
        DeviceReport(shop.model_digest, CLASS, "honest", 1, 1, TelemetryCounts(samples=5, failures=2))
    )
    assert telemetry.counts(shop.model_digest, CLASS, 1).failures == totals(shop).failures == 2
    assert totals(shop).samples < 1 << 62
