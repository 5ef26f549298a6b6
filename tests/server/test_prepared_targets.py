"""Versions wait for the differences to them: a real registry, a maker that can be held, and the real one."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from shop import CLASS, Shop, make_shop, served
from waiting import eventually

from protos.quantfleet.v1 import update_pb2
from protos.quantfleet.v1.update_pb2_grpc import UpdateServiceStub
from server.candidate import load_manifest
from server.delta_store import DeltaStore
from server.difference_maker import DifferenceMaker
from server.peers import DEVICE_KEY
from server.prepared_targets import PreparedTargets
from server.rollout import Event, Rollout, target_of


@dataclass
class Maker:
    """Makes differences when the gate is open, and writes down which."""

    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    made: list[tuple[str, str]] = field(default_factory=list)
    error: Exception | None = None

    def is_made(self, base: str, target: str) -> bool:
        return (base, target) in self.made

    def make(self, base: str, target: str) -> None:
        self.begun.set()
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        self.made.append((base, target))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path)
    yield made
    made.stores.engine.dispose()


def rolled_out(shop: Shop, number: int = 1) -> Rollout:
    """Publish a first version, and open the rollout of another."""
    rollouts = shop.stores.rollouts
    rollouts.publish(shop.model_digest, CLASS, shop.manifests[0], reason="first", actor="ana")
    return rollouts.start(shop.model_digest, CLASS, shop.manifests[number], actor="ana", reason="next")


def versions(targets: PreparedTargets, shop: Shop) -> set[int]:
    """Return the versions that many devices are told."""
    found = targets(shop.model_digest, CLASS)
    return {found.target_for(f"device-{number}").version for number in range(200)}


def test_a_version_is_offered_when_the_way_to_it_is_made(shop: Shop) -> None:
    rolled_out(shop)
    maker = Maker()
    with PreparedTargets(shop.stores.rollouts.served, maker, most_seconds=1000) as targets:
        assert versions(targets, shop) == {1}
        held = targets(shop.model_digest, CLASS)
        assert shop.manifests[1] in held.manifest_digests  # whoever knows of it may fetch it
        assert held == targets(shop.model_digest, CLASS)
        maker.gate.set()
        eventually(lambda: versions(targets, shop) == {1, 2})
        first, second = shop.manifests[:2]
        eventually(lambda: maker.made == [(first, second), (second, first)])  # the way, and the way back


def test_what_is_made_quickly_is_offered_at_once(shop: Shop) -> None:
    rolled_out(shop)
    maker = Maker()
    maker.gate.set()
    with PreparedTargets(shop.stores.rollouts.served, maker, most_seconds=1000) as targets:
        assert versions(targets, shop) == {1, 2}


def test_no_version_waits_for_ever(shop: Shop) -> None:
    rollout = rolled_out(shop)
    maker, now = Maker(), rollout.started_at_seconds
    clock = lambda: now  # noqa: E731 - it must see the newest value
    with PreparedTargets(shop.stores.rollouts.served, maker, most_seconds=10, clock=clock) as targets:
        now += 8
        assert versions(targets, shop) == {1}
        now += 3
        assert versions(targets, shop) == {1, 2}
        maker.gate.set()


def test_what_cannot_be_made_holds_nothing_back(shop: Shop) -> None:
    rolled_out(shop)
    maker = Maker(error=OSError("the disk is full"))
    maker.gate.set()
    with PreparedTargets(shop.stores.rollouts.served, maker, most_seconds=1000) as targets:
        assert versions(targets, shop) == {1, 2}


@pytest.mark.parametrize("event", [Event.PROMOTED, Event.ACCURACY_DROPPED])
def test_neither_a_promotion_nor_a_way_back_waits(shop: Shop, event: Event) -> None:
    rollout = rolled_out(shop)
    maker = Maker()
    with PreparedTargets(shop.stores.rollouts.served, maker, most_seconds=1000) as targets:
        assert versions(targets, shop) == {1}
        assert maker.begun.wait(60)
        shop.stores.rollouts.advance(rollout, event, actor="ana", reason="now")
        assert versions(targets, shop) == ({2} if event is Event.PROMOTED else {3})
        maker.gate.set()


def test_a_first_version_waits_for_nothing(shop: Shop) -> None:
    shop.stores.rollouts.publish(shop.model_digest, CLASS, shop.manifests[0], reason="first", actor="ana")
    maker = Maker()
    with PreparedTargets(shop.stores.rollouts.served, maker, most_seconds=1000) as targets:
        assert versions(targets, shop) == {1}
    assert not maker.begun.is_set()


def test_bundles_are_made_before_devices_ask(shop: Shop, tmp_path: Path) -> None:
    rolled_out(shop)
    blobs = shop.stores.blobs
    maker = DifferenceMaker(blobs, DeltaStore(blobs, tmp_path / "kept"))
    first, second = shop.manifests[:2]
    assert not maker.is_made(first, second)
    with PreparedTargets(shop.stores.rollouts.served, maker, most_seconds=1000) as targets:
        eventually(lambda: 2 in versions(targets, shop))
    assert maker.is_made(first, second)
    for digest in load_manifest(blobs, second).blobs.keys() - load_manifest(blobs, first).blobs.keys():
        (tmp_path / "blobs" / digest[:2] / digest).unlink()  # so that it cannot be made again
    pair = ((first, load_manifest(blobs, first)), (second, load_manifest(blobs, second)))
    assert DeltaStore(blobs, tmp_path / "kept").bundle(*pair)


def test_a_server_makes_bundles_before_canaries_know(shop: Shop) -> None:
    rollout = rolled_out(shop)
    canary = next(name for name in map(str, range(999)) if target_of(rollout, name)[0] == rollout.version)
    request = update_pb2.CheckRequest(device_class=CLASS, model_digest=bytes.fromhex(shop.model_digest))
    with served(shop.settings) as addresses, grpc.insecure_channel(addresses.address) as channel:
        stub: Any = UpdateServiceStub(channel)

        def version() -> int:
            told: int = stub.Check(request, metadata=((DEVICE_KEY, canary),), timeout=30).version
            return told

        eventually(lambda: version() == rollout.version)
        assert list((shop.settings.home / "deltas").rglob(f"{shop.manifests[1]}.bundle-*"))


def test_what_is_too_much_for_a_bundle_is_made_one_by_one(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantization.bundle.MAX_BUNDLE_BYTES", 1)
    deltas = DeltaStore(shop.stores.blobs, tmp_path / "kept")
    maker = DifferenceMaker(shop.stores.blobs, deltas)
    first, second = shop.manifests[:2]
    assert not maker.is_made(first, second)
    maker.make(first, second)
    assert maker.is_made(first, second)
    assert not deltas.holds_bundle(first, second)
