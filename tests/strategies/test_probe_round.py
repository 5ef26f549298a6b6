"""Probes of a fleet: real graphs, ONNX Runtime, the real ClientApp and the in-process grid."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from artifacts import example
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st
from memory_fleet import FleetDevice, fleet_grid
from statistics_strategies import app_that

from client.tap_observer import TapObserver
from quantization.artifact import decode_files
from quantization.compile_taps import compile_taps
from quantization.sensitivity import ProbeResult, estimate_gain, tempered_divergence
from simulation.grid import Crash, InProcessGrid
from strategies.messages import Delivery, DeviceHello
from strategies.precision_messages import DIVERGENCE_STEPS, Probe, ProbeReply, ProbeRequest
from strategies.precision_records import decode_probe_request, encode_probes
from strategies.probe_round import deal, probe
from strategies.rounds import RoundContext

CASE = example("residual_cnn")
ARTIFACT = CASE.artifact()
FILES = decode_files(ARTIFACT.manifest.stages[0].files, ARTIFACT.blobs.__getitem__)
GRAPH = compile_taps(CASE.model, CASE.plan)


def coarse(location: str, bits: int = 3) -> bytes:
    codes = np.frombuffer(FILES[location], np.int8).astype(float)
    step = 2 ** (8 - bits)
    return (
        (np.clip(np.rint(codes / step), -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) * step)
        .astype(np.int8)
        .tobytes()
    )


def request(graph: bytes = GRAPH, bits: int = 3, **changes: object) -> ProbeRequest:
    probes = tuple(
        Probe(layer.name, {layer.weight: coarse(layer.weight, bits)}) for layer in CASE.plan.layers
    )
    return ProbeRequest(Delivery(ARTIFACT.manifest.to_bytes()), {}, probes, graph, **changes)


def devices(count: int, rows: int = 6) -> list[FleetDevice]:
    rng = np.random.default_rng(0)
    return [
        FleetDevice(ARTIFACT, CASE.inputs(rows, seed), rng.integers(-1, 10, rows)) for seed in range(count)
    ]


@pytest.mark.parametrize("graph", [GRAPH, b""])
def test_a_probe_measures_the_divergence_of_the_models_it_compares(
    monkeypatch: pytest.MonkeyPatch, graph: bytes
) -> None:
    fleet = devices(3)
    grid, cohort = fleet_grid(monkeypatch, fleet)
    outcome = probe(RoundContext(grid, clock=grid.clock), cohort, request(graph))
    observer = TapObserver(ARTIFACT.manifest, ARTIFACT.blobs.__getitem__, GRAPH)
    assert outcome.value.replies.keys() == {layer.name for layer in CASE.plan.layers}
    assert outcome.value.sample_count == 18
    for asked in request().probes:
        replies = outcome.value.replies[asked.name]
        assert list(replies) == [str(device.node_id) for device in cohort]
        for device, reply in zip(fleet, replies.values(), strict=True):
            logits = [observer.logits(device.rows, files) for files in ({}, asked.overrides)]
            answers = [part.argmax(axis=1) for part in logits]
            known = device.classes >= 0
            assert reply.divergence_sum == pytest.approx(tempered_divergence(*logits), abs=1e-5, rel=1e-4)
            assert reply.count == 6
            assert reply.disagreements == (answers[0] != answers[1]).sum()
            assert reply.labelled == known.sum()
            hits = [(answer == device.classes)[known].sum() for answer in answers]
            assert [reply.reference_hits, reply.probe_hits] == hits


def test_probes_are_relative_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, cohort = fleet_grid(monkeypatch, devices(1))
    first = CASE.plan.layers[0].weight
    same = ProbeRequest(
        Delivery(ARTIFACT.manifest.to_bytes()),
        {first: coarse(first)},
        (Probe("nothing", {}), Probe("same", {first: coarse(first)}), Probe("back", {first: FILES[first]})),
        GRAPH,
    )
    replies = probe(RoundContext(grid, clock=grid.clock), cohort, same).value.replies
    divergences = {name: next(iter(by_device.values())).divergence_sum for name, by_device in replies.items()}
    assert divergences["nothing"] == divergences["same"] == 0
    assert divergences["back"] > 1e-4


def test_fewer_bits_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, cohort = fleet_grid(monkeypatch, devices(2))
    context = RoundContext(grid, clock=grid.clock)
    costs = []
    for bits in (2, 4, 6):
        replies = probe(context, cohort, request(bits=bits)).value.replies
        costs.append(
            sum(seen.divergence_sum for by_device in replies.values() for seen in by_device.values())
        )
    assert costs[0] > costs[1] > costs[2] > 0


def test_devices_without_inputs_answer_and_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, cohort = fleet_grid(monkeypatch, [*devices(1), FleetDevice(ARTIFACT, CASE.inputs(1)[:0])])
    outcome = probe(RoundContext(grid, clock=grid.clock), cohort, request())
    assert outcome.replied == 2
    assert {len(by_device) for by_device in outcome.value.replies.values()} == {1}


def test_devices_use_no_more_samples_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, cohort = fleet_grid(monkeypatch, devices(2))
    outcome = probe(RoundContext(grid, clock=grid.clock), cohort, request(max_samples=4))
    assert outcome.value.sample_count == 8


def test_devices_that_fail_leave_every_probe_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, cohort = fleet_grid(
        monkeypatch, devices(6, rows=2), fault=lambda position, _: Crash() if position < 2 else None
    )
    outcome = probe(RoundContext(grid, clock=grid.clock), cohort, request(), devices_per_probe=3)
    assert (outcome.replied, dict(outcome.failed)) == (4, {"app_crashed": 2})
    assert {len(by_device) for by_device in outcome.value.replies.values()} == {2}


def test_overrides_of_another_size_are_refused_by_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, cohort = fleet_grid(monkeypatch, devices(1))
    for files in ({"channels": b"1234"}, {"unknown": b""}):
        bad = ProbeRequest(Delivery(ARTIFACT.manifest.to_bytes()), files, request().probes, GRAPH)
        with pytest.raises(Exception, match="MalformedError"):
            probe(RoundContext(grid, clock=grid.clock), cohort, bad)


def hellos(count: int) -> tuple[DeviceHello, ...]:
    return tuple(DeviceHello(7 * node_id, "x86", 0, "", 6, False) for node_id in range(count, 0, -1))


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 15))
def test_every_probe_has_enough_devices_and_the_order_of_the_cohort_does_not_matter(
    count: int, probes: int, wanted: int
) -> None:
    asked = ProbeRequest(Delivery(b""), {}, tuple(Probe(str(index), {}) for index in range(probes)))
    dealt = deal(hellos(count), asked, wanted)
    measured = Counter(one.name for mine in dealt.values() for one in mine.probes)
    assert measured.keys() == {one.name for one in asked.probes}
    assert min(measured.values()) >= min(count, wanted)
    assert dealt == deal(hellos(count)[::-1], asked, wanted)
    if count == 1:
        assert next(iter(dealt.values())) == asked


def honest(content: RecordDict) -> RecordDict:
    probes = decode_probe_request(content).probes
    return encode_probes([ProbeReply(DIVERGENCE_STEPS, 6, 1, 0, 0, 0)] * len(probes))


@pytest.mark.parametrize(
    "lie",
    [
        ProbeReply(-1, 6, 0, 0, 0, 0),
        ProbeReply(0, 7, 0, 0, 0, 0),
        ProbeReply(0, 6, 9, 0, 0, 0),
        ProbeReply(1 << 60, 6, 0, 0, 0, 0),
    ],
)
def test_a_reply_with_impossible_numbers_is_refused_whole_and_named(
    lie: ProbeReply, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(position: int, content: RecordDict) -> RecordDict:
        if position != 3:
            return honest(content)
        probes = decode_probe_request(content).probes
        good = ProbeReply(0, lie.count, 0, 0, 0, 0)
        return encode_probes([*[good] * (len(probes) - 1), lie])

    grid = InProcessGrid(app_that("probe", answer), 5)
    cohort = tuple(DeviceHello(node_id, "x86", 0, "", 6, False) for node_id in grid.get_node_ids())
    outcome = probe(RoundContext(grid, clock=grid.clock), cohort, request())
    assert dict(outcome.failed) == {"malformed": 1}
    assert outcome.failures[0].node_id == 5
    assert "node 5" in caplog.text
    for by_device in outcome.value.replies.values():
        assert "5" not in by_device
        assert {seen.divergence_sum for seen in by_device.values()} == {1.0}


def test_liars_within_bounds_do_not_move_a_gain() -> None:
    def answer(position: int, content: RecordDict) -> RecordDict:
        if position % 5:
            return honest(content)
        probes = decode_probe_request(content).probes
        return encode_probes([ProbeReply(6000 * DIVERGENCE_STEPS, 6, 0, 0, 0, 0)] * len(probes))

    grid = InProcessGrid(app_that("probe", answer), 20)
    cohort = tuple(DeviceHello(node_id, "x86", 0, "", 6, False) for node_id in grid.get_node_ids())
    outcome = probe(RoundContext(grid, clock=grid.clock), cohort, request())
    assert outcome.replied == 20
    for by_device in outcome.value.replies.values():
        results = [
            ProbeResult(device, 0.5, seen.divergence_sum, seen.count) for device, seen in by_device.items()
        ]
        assert estimate_gain(results).value == pytest.approx(1 / 6 / 0.5)


def test_devices_of_one_bundle_and_manifest_share_one_content() -> None:
    seen: dict[int, int] = {}

    def answer(position: int, content: RecordDict) -> RecordDict:
        seen[position] = id(content)
        return honest(content)

    grid = InProcessGrid(app_that("probe", answer), 12)
    cohort = tuple(
        DeviceHello(node_id, "x86", 0, "ab"[node_id % 4 // 2], 6, False) for node_id in grid.get_node_ids()
    )
    held: list[str] = []

    def deliver(digest: str) -> Delivery:
        held.append(digest)
        return Delivery(ARTIFACT.manifest.to_bytes())

    context = RoundContext(grid, deliver=deliver, clock=grid.clock)
    probe(context, cohort, request(), devices_per_probe=6)
    assert len(set(seen.values())) == 4  # two bundles times two manifests
    assert Counter(held) == {"a": 2, "b": 2}


@given(st.permutations(range(8)))
def test_named_devices_are_dealt_the_same_after_they_have_registered_anew(nodes: list[int]) -> None:
    asked = ProbeRequest(Delivery(b""), {}, tuple(Probe(str(index), {}) for index in range(6)))
    cohort = [DeviceHello(node, "x86", 0, "", 6, False, name=f"gate-{k}") for k, node in enumerate(nodes)]
    dealt = deal(cohort, asked, 2)
    by_name = {device.name: [one.name for one in dealt[device.node_id].probes] for device in cohort}
    first = deal([replace(device, node_id=k) for k, device in enumerate(cohort)], asked, 2)
    assert by_name == {f"gate-{k}": [one.name for one in first[k].probes] for k in range(8)}
