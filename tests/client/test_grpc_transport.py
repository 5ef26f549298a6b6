import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from artifacts import example
from grpc_updates import Live, live, scripted, wanted_of
from update_client import CLASS, QUICK

from client import grpc_blobs, grpc_channel
from client.fetching import fetch_artifact, fetch_blobs
from client.grpc_channel import CHUNK_BYTES, GrpcSettings
from client.grpc_errors import MOST_SECONDS, PUSHBACK_KEY
from client.grpc_transport import GrpcTransport
from client.partial import PartialBlobs
from client.slots import Target
from client.state import StateFolder
from client.transport import Want
from client.update_messages import MAX_REPORTS, MAX_REQUEST_BYTES, report_batches
from protos.quantfleet.v1 import telemetry_pb2, update_pb2
from quantization.artifact import Artifact
from quantization.delta import Encoding
from quantization.errors import (
    ConfigurationError,
    ForbiddenError,
    MalformedError,
    NotFoundError,
    QuantFleetError,
    UnauthenticatedError,
    UnreachableError,
)
from quantization.manifest import MAX_MANIFEST_BYTES
from server import delta_store, grpc_server

OLD, NEW = (example("mlp").artifact(n, width=3.0 + n, bits=8 - n, is_observed=False) for n in range(2))
MODEL = OLD.manifest.model_digest
ROOT = Path(__file__).parents[2]
HURRIED = GrpcSettings(
    call_seconds=10, stall_seconds=10, first_backoff_seconds=0.05, most_backoff_seconds=0.2
)


def opened(address: str, **keywords: Any) -> GrpcTransport:
    keywords = {"settings": HURRIED, "device_class": CLASS, "model_digest": MODEL, **keywords}
    return GrpcTransport.open(address, None, "device-1", None, **keywords)


def impatient(**seconds: float) -> GrpcSettings:
    return GrpcSettings(**{"first_backoff_seconds": 0.05, "most_backoff_seconds": 0.2, **seconds})


def aborting(code: grpc.StatusCode, *trailing: tuple[str, str]) -> Callable[..., Any]:
    def handler(_request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata(trailing)
        context.abort(code, "no")

    return handler


def announcement(version: int, **fields: Any) -> bytes:
    return update_pb2.TargetChanged(
        version=version, manifest_digest=bytes([version]) * 32, **fields
    ).SerializeToString()


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Opening.


@pytest.mark.parametrize("address", ["192.0.2.1:9443", "fleet.example.org:9443", "0.0.0.0:1"])
def test_connections_without_certificates_stay_on_this_machine(address: str) -> None:
    with pytest.raises(ConfigurationError, match="not a loopback address"):
        opened(address)


def test_updates_over_a_network_must_be_signed() -> None:
    with pytest.raises(ConfigurationError, match="must be signed"):
        GrpcTransport.open("127.0.0.1:1", object(), "device-1", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["", "x" * 257, "line\nbreak", "ümlaut"])
def test_impossible_names_of_devices_are_refused(device: str) -> None:
    with pytest.raises(ConfigurationError, match="device name"):
        GrpcTransport.open("127.0.0.1:1", None, device, None)


def test_what_is_closed_reaches_nobody(tmp_path: Path) -> None:
    with live(tmp_path, OLD) as service:
        transport = opened(service.address)
        transport.close()
        for call in (
            lambda: transport.check(CLASS, MODEL, None),
            lambda: list(transport.fetch([Want("a" * 64)], ())),
            lambda: list(transport.fetch_metadata("root", 0)),
        ):
            with pytest.raises(UnreachableError, match="closed"):
                call()
        assert list(transport.watch(CLASS, MODEL)) == []


def test_signatures_cost_no_memory_where_nobody_asks_for_them() -> None:
    script = "import sys, client.grpc_transport; sys.exit('tuf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


# Check.


def test_a_device_is_told_its_target(tmp_path: Path) -> None:
    with live(tmp_path, OLD) as service, opened(service.address) as transport:
        offer = transport.check(CLASS, MODEL, None)
        assert offer is not None
        assert offer.target == Target(1, OLD.manifest.digest())
        assert 150 <= offer.retry_after_seconds <= 450


def test_where_nothing_was_published_there_is_no_target(tmp_path: Path) -> None:
    with live(tmp_path, OLD) as service, opened(service.address) as transport:
        assert transport.check("other", MODEL, None) is None


def test_nobody_there_is_unreachable() -> None:
    with opened("127.0.0.1:1") as transport, pytest.raises(UnreachableError, match="UNAVAILABLE"):
        transport.check(CLASS, MODEL, None)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnreachableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, UnreachableError),
        (grpc.StatusCode.DATA_LOSS, UnreachableError),
        (grpc.StatusCode.INTERNAL, UnreachableError),
        (grpc.StatusCode.INVALID_ARGUMENT, MalformedError),
        (grpc.StatusCode.UNIMPLEMENTED, UnreachableError),
        (grpc.StatusCode.UNAUTHENTICATED, UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, ForbiddenError),
    ],
)
def test_every_status_becomes_an_error_of_this_project(
    code: grpc.StatusCode, error: type[QuantFleetError]
) -> None:
    refuse = aborting(code)
    with (
        scripted(Check=refuse, FetchBlobs=refuse, FetchMetadata=refuse, Watch=refuse, Report=refuse) as at,
        opened(at) as transport,
    ):
        calls: list[Callable[[], object]] = [
            lambda: transport.check(CLASS, MODEL, None),
            lambda: list(transport.fetch([Want("a" * 64)], ())),
            lambda: list(transport.fetch_metadata("root", 1)),
            lambda: transport.report([telemetry_pb2.TelemetryReport(sequence=1)]),
        ]
        if error is not UnreachableError:
            calls.append(lambda: list(transport.watch(CLASS, MODEL)))
        for call in calls:
            with pytest.raises(error, match=code.name):
                call()


@pytest.mark.parametrize(
    ("pushback", "seconds"), [("1500", 1.5), ("-1", 0.0), ("soon", 0.0), ("9" * 9, MOST_SECONDS)]
)
def test_a_busy_service_says_how_long_to_wait(pushback: str, seconds: float) -> None:
    busy = aborting(grpc.StatusCode.RESOURCE_EXHAUSTED, (PUSHBACK_KEY, pushback))
    with scripted(Check=busy) as at, opened(at) as transport:
        with pytest.raises(UnreachableError) as caught:
            transport.check(CLASS, MODEL, None)
        assert caught.value.retry_after_seconds == seconds


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xff",
        update_pb2.CheckResponse(version=0, manifest_digest=bytes(32)).SerializeToString(),
        update_pb2.CheckResponse(version=1 << 63, manifest_digest=bytes(32)).SerializeToString(),
        update_pb2.CheckResponse(version=1, manifest_digest=b"short").SerializeToString(),
        update_pb2.CheckResponse(version=1, manifest_digest=bytes(200_000)).SerializeToString(),
    ],
    ids=["no message", "no version", "a version too large", "a digest too short", "a message too large"],
)
def test_answers_that_are_none_are_malformed(answer: bytes) -> None:
    with scripted(Check=lambda *_: answer) as at, opened(at) as transport, pytest.raises(MalformedError):
        transport.check(CLASS, MODEL, None)


@pytest.mark.parametrize(("said", "taken"), [(float("nan"), 0.0), (-5.0, 0.0), (1e300, MOST_SECONDS)])
def test_times_are_bounded(said: float, taken: float) -> None:
    answer = update_pb2.CheckResponse(
        version=1, manifest_digest=bytes(32), fetch_after_seconds=said, retry_after_seconds=said
    ).SerializeToString()
    with scripted(Check=lambda *_: answer) as at, opened(at) as transport:
        offer = transport.check(CLASS, MODEL, None)
        assert offer is not None
        assert (offer.fetch_after_seconds, offer.retry_after_seconds) == (taken, taken)


def test_a_service_that_does_not_answer_is_left() -> None:
    hanging = threading.Event()
    with (
        scripted(Check=lambda *_: hanging.wait(30) and b"") as at,
        opened(at, settings=impatient(call_seconds=0.3)) as transport,
    ):
        with pytest.raises(UnreachableError, match="DEADLINE_EXCEEDED"):
            transport.check(CLASS, MODEL, None)
        hanging.set()


# Blobs.


def install(state: StateFolder, artifact: Artifact) -> None:
    """Have a device run an artifact."""
    for digest, stored in artifact.blobs.items():
        state.store_blob(digest, stored)
    state.write_manifest(artifact.manifest, version=1)


def fetched(state: StateFolder, transport: GrpcTransport) -> int:
    """Fetch the new artifact; return the bytes that came."""
    partial = PartialBlobs(state.path / "partial", state.disk)
    wanted = {NEW.manifest.digest(): MAX_MANIFEST_BYTES}
    came = fetch_blobs(transport, state, partial, wanted, are_exact=False)
    came += fetch_artifact(transport, state, partial, NEW.manifest)
    state.store_manifest(NEW.manifest)
    assert not any((state.path / "partial").iterdir())
    return came


def encodings_sent(service: Live) -> set[str]:
    """Return the encodings in which the service has sent something whole."""
    return {
        sample.labels["encoding"]
        for family in service.run.metrics.collect()
        for sample in family.samples
        if "encoding" in sample.labels and sample.name.endswith("_total")
    }


def test_a_new_device_fetches_whole_blobs(tmp_path: Path) -> None:
    with (
        live(tmp_path / "server", OLD, NEW) as service,
        opened(service.address) as transport,
        StateFolder(tmp_path / "device") as state,
    ):
        assert fetched(state, transport) > 0.9 * NEW.size_bytes
        assert encodings_sent(service) == {"full"}


def test_a_device_fetches_what_it_lacks_in_one_bundle(tmp_path: Path) -> None:
    with (
        live(tmp_path / "server", OLD, NEW) as service,
        opened(service.address) as transport,
        StateFolder(tmp_path / "device") as state,
    ):
        install(state, OLD)
        assert 0 < fetched(state, transport) < 0.8 * NEW.size_bytes
        assert encodings_sent(service) == {"bundle", "bsdiff"}  # the manifest is a difference by itself


def test_where_no_bundle_is_made_blobs_come_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_store, "is_bundled", lambda _: False)
    with (
        live(tmp_path / "server", OLD, NEW) as service,
        opened(service.address) as transport,
        StateFolder(tmp_path / "device") as state,
    ):
        install(state, OLD)
        assert 0 < fetched(state, transport) < 0.8 * NEW.size_bytes
        assert "bundle" not in encodings_sent(service)


def test_a_bundle_that_is_wrong_costs_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_store, "make_bundle", lambda *_: b"QB\1\0 no bundle at all")
    with (
        live(tmp_path / "server", OLD, NEW) as service,
        opened(service.address) as transport,
        StateFolder(tmp_path / "device") as state,
    ):
        install(state, OLD)
        assert 0 < fetched(state, transport) < 0.8 * NEW.size_bytes
        assert encodings_sent(service) > {"bundle"}


def test_a_device_that_lost_a_blob_asks_for_no_bundle(tmp_path: Path) -> None:
    with (
        live(tmp_path / "server", OLD, NEW) as service,
        opened(service.address) as transport,
        StateFolder(tmp_path / "device") as state,
    ):
        install(state, OLD)
        state.blobs.remove(min(OLD.blobs.keys() - NEW.blobs.keys()))
        fetched(state, transport)
        assert "bundle" not in encodings_sent(service)


def test_one_digest_stands_for_a_whole_manifest() -> None:
    named = [f"{number:064x}" for number in range(50)]
    manifest, other = "a" * 64, "b" * 64
    requests = grpc_blobs.fetch_requests(
        CLASS, MODEL, [Want("c" * 64)], [*named, manifest, other], {manifest: named}
    )
    opening = requests[0].opening
    assert [d.hex() for d in opening.held_manifest_digests] == [manifest]
    assert [d.hex() for d in opening.held_digests] == [other]
    assert set(opening.accepted_encodings) == set(Encoding)


def test_a_device_may_hold_more_than_can_be_said() -> None:
    held = [f"{number:064x}" for number in range(5000)]
    (request,) = grpc_blobs.fetch_requests(CLASS, MODEL, [Want("c" * 64)], held, {})
    assert len(request.opening.held_digests) == grpc_blobs.MAX_HELD


def test_a_device_may_want_more_than_one_stream_asks_for() -> None:
    wants = [Want(f"{number:064x}", 1 << 40, "d" * 64, "e" * 64) for number in range(2500)]
    held = [f"{number:064x}" for number in range(5000)]
    requests = grpc_blobs.fetch_requests(CLASS, MODEL, wants, held, {})
    asked = [wanted.digest.hex() for request in requests for wanted in request.opening.wanted]
    assert asked == [want.digest for want in wants]
    assert max(request.ByteSize() for request in requests) < grpc_server.MAX_REQUEST_BYTES


def test_answers_of_several_streams_come_as_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_blobs, "MAX_WANTED", 2)
    with live(tmp_path, OLD) as service, opened(service.address) as transport:
        wants = [Want(digest) for digest in sorted(OLD.blobs)]
        heads = [piece.payload for piece in transport.fetch(wants, ()) if piece.payload]
        assert [head.digest for head in heads] == [want.digest for want in wants]


def test_blobs_are_not_asked_for_before_there_is_a_class() -> None:
    with (
        opened("127.0.0.1:1", device_class="", model_digest="") as transport,
        pytest.raises(UnreachableError, match="before the service was asked"),
    ):
        list(transport.fetch([Want("a" * 64)], ()))


def test_a_blob_that_no_manifest_names_is_not_found(tmp_path: Path) -> None:
    with (
        live(tmp_path, OLD) as service,
        opened(service.address) as transport,
        pytest.raises(NotFoundError, match="names blob"),
    ):
        list(transport.fetch([Want("a" * 64)], ()))


def head(digest: str, total: int, data: bytes = b"", **fields: Any) -> bytes:
    payload = update_pb2.BlobPayload(
        **{
            "digest": bytes.fromhex(digest),
            "encoding": update_pb2.BLOB_ENCODING_FULL,
            "total_bytes": total,
            "payload_digest": bytes(32),
            **fields,
        }
    )
    return update_pb2.BlobChunk(payload=payload, data=data).SerializeToString()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"\xff\xff", "not a BlobChunk"),
        (head("a" * 64, 100, bytes(CHUNK_BYTES + 1)), "a chunk of"),
        (head("a" * 64, 100, encoding=77), "update this software"),
        (head("a" * 64, 100, base_digest=bytes(32)), "with a base"),
        (head("a" * 64, 3), "the least is"),
        (head("aa", 100), "not a digest"),
        (head("a" * 64, 1 << 20, bytes(1 << 20)), "larger than max"),
    ],
)
def test_chunks_that_are_none_are_malformed(answer: bytes, message: str) -> None:
    with (
        scripted(FetchBlobs=lambda *_: iter([answer])) as at,
        opened(at) as transport,
        pytest.raises(MalformedError, match=message),
    ):
        list(transport.fetch([Want("a" * 64)], ()))


def test_a_stream_that_stands_still_is_left() -> None:
    hanging = threading.Event()

    def send(_requests: Any, _context: Any) -> Iterator[bytes]:
        yield head("a" * 64, 1000, b"x")
        hanging.wait(30)

    with scripted(FetchBlobs=send) as at, opened(at, settings=impatient(stall_seconds=0.3)) as transport:
        pieces = transport.fetch([Want("a" * 64)], ())
        assert next(pieces).data == b"x"
        with pytest.raises(UnreachableError, match="less than 4096 bytes"):
            list(pieces)
        hanging.set()


def test_a_stream_that_drips_is_left() -> None:
    def send(_requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield head("a" * 64, 100_000, b"x")
        for offset in count(1):
            if not context.is_active():
                return
            time.sleep(0.02)
            yield update_pb2.BlobChunk(offset_bytes=offset, data=b"x").SerializeToString()

    with (
        scripted(FetchBlobs=send) as at,
        opened(at, settings=impatient(stall_seconds=0.3)) as transport,
        pytest.raises(UnreachableError, match="less than 4096 bytes"),
    ):
        list(transport.fetch([Want("a" * 64)], ()))


def test_time_that_the_device_takes_is_not_the_services() -> None:
    def send(_requests: Any, _context: Any) -> Iterator[bytes]:
        yield head("a" * 64, 2000, b"x" * 1000)
        yield update_pb2.BlobChunk(offset_bytes=1000, data=b"y" * 1000).SerializeToString()

    with scripted(FetchBlobs=send) as at, opened(at, settings=impatient(stall_seconds=0.4)) as transport:
        pieces = transport.fetch([Want("a" * 64)], ())
        next(pieces)
        time.sleep(0.8)
        assert len(next(pieces).data) == 1000


def test_what_is_not_read_to_its_end_is_cancelled() -> None:
    ended = threading.Event()

    def send(_requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(ended.set)
        yield head("a" * 64, 1 << 30, b"x")
        ended.wait(30)

    with scripted(FetchBlobs=send) as at, opened(at) as transport:
        pieces = transport.fetch([Want("a" * 64)], ())
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        assert ended.wait(10)


@pytest.mark.parametrize("messages", [0, 1, 3])
def test_nothing_is_left_of_a_stream_that_is_ended(messages: int) -> None:
    def send(_request: Any, _context: Any) -> Iterator[bytes]:
        for _ in range(3):
            yield b"x"

    settings = GrpcSettings()
    with scripted(Watch=send) as at, grpc_channel.open_channel(at, None, settings) as channel:
        call: Any = channel.unary_stream("/quantfleet.v1.UpdateService/Watch")(b"")
        assert len(list(zip(range(messages), call, strict=False))) == messages
        grpc_channel.end_stream(call)
        assert not call._state.due  # what gRPC keeps the call for
        grpc_channel.end_stream(call)


def test_a_stream_may_be_ended_after_its_connection() -> None:
    hanging = threading.Event()

    def send(_request: Any, _context: Any) -> Iterator[bytes]:
        yield b"x"
        hanging.wait(30)

    with scripted(Watch=send) as at:
        channel = grpc_channel.open_channel(at, None, GrpcSettings())
        call: Any = channel.unary_stream("/quantfleet.v1.UpdateService/Watch")(b"")
        assert next(call) == b"x"
        channel.close()
        grpc_channel.end_stream(call)
        assert not call._state.due
        hanging.set()


def test_a_resumed_download_fetches_one_chunk_twice_at_most(tmp_path: Path) -> None:
    """The stream is cut in the middle of chunk after chunk; what was kept is not sent again."""
    data = np.random.default_rng(0).bytes(5 * CHUNK_BYTES)
    digest, sent, cuts = "a" * 64, [], iter([2, 1, 1, 9])

    def send(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        (wanted,) = wanted_of(requests)
        left = next(cuts)
        for start in range(wanted.offset_bytes, len(data), CHUNK_BYTES):
            if not left:
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            left -= 1
            piece = data[start : start + CHUNK_BYTES]
            sent.append(len(piece))
            if start == wanted.offset_bytes:
                chunk = update_pb2.BlobChunk.FromString(
                    head(digest, len(data), piece, payload_digest=bytes.fromhex("b" * 64))
                )
                chunk.offset_bytes = start
                yield chunk.SerializeToString()
            else:
                yield update_pb2.BlobChunk(offset_bytes=start, data=piece).SerializeToString()

    with StateFolder(tmp_path) as state, scripted(FetchBlobs=send) as at, opened(at) as transport:
        partial = PartialBlobs(tmp_path / "partial", state.disk)
        for _ in range(3):
            with pytest.raises(UnreachableError):
                fetch_blobs(transport, state, partial, {digest: len(data)})
        with pytest.raises(QuantFleetError):  # the payload's digest is made up
            fetch_blobs(transport, state, partial, {digest: len(data)})
    assert sum(sent) <= len(data) + 3 * CHUNK_BYTES


# Metadata.


def test_files_of_metadata_come_in_chunks(tmp_path: Path) -> None:
    file = np.random.default_rng(1).bytes(200_000)
    with (
        live(tmp_path, OLD, metadata=lambda _role, _version: file) as service,
        opened(service.address) as transport,
    ):
        chunks = list(transport.fetch_metadata("root", 3))
        assert b"".join(chunks) == file
        assert max(map(len, chunks)) == CHUNK_BYTES


def test_metadata_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with live(tmp_path, OLD) as service, opened(service.address) as transport, pytest.raises(NotFoundError):
        list(transport.fetch_metadata("root", 2))


# Watch.


def test_a_watcher_is_told_at_once_and_of_every_change(tmp_path: Path) -> None:
    with (
        live(tmp_path, OLD) as service,
        opened(service.address) as transport,
        transport.watch(CLASS, MODEL) as watch,
    ):
        offers = iter(watch)
        assert next(offers).target == Target(1, OLD.manifest.digest())
        assert watch.is_connected
        service.publish(NEW)
        assert next(offers).target == Target(2, NEW.manifest.digest())
        watch.cancel()
        assert list(offers) == []
        assert not watch.is_connected


def test_signs_of_life_are_not_announced_again() -> None:
    def send(_request: bytes, _context: Any) -> Iterator[bytes]:
        for version in (1, 1, 1, 2):
            yield announcement(version)
        threading.Event().wait(0.2)

    with scripted(Watch=send) as at, opened(at) as transport, transport.watch(CLASS, MODEL) as watch:
        offers = iter(watch)
        assert [next(offers).target.version for _ in range(2)] == [1, 2]


def test_a_watch_comes_back_to_a_server_that_was_away() -> None:
    with scripted(Watch=lambda *_: iter([announcement(1)])) as at:
        transport = opened(at)
        watch = transport.watch(CLASS, MODEL)
        offers = iter(watch)
        assert next(offers).target.version == 1
    with scripted(port=int(at.rpartition(":")[2]), Watch=lambda *_: iter([announcement(2)])), transport:
        assert next(offers).target.version == 2
    assert list(offers) == []


def test_a_silent_stream_is_dead() -> None:
    calls, hanging = count(1), threading.Event()

    def send(_request: bytes, _context: Any) -> Iterator[bytes]:
        call = next(calls)
        yield announcement(call, silent_after_seconds=0.2)
        if call == 1:
            hanging.wait(30)

    with scripted(Watch=send) as at, opened(at) as transport, transport.watch(CLASS, MODEL) as watch:
        offers = iter(watch)
        assert [next(offers).target.version for _ in range(2)] == [1, 2]
        hanging.set()


def test_a_stream_that_never_says_anything_is_dead() -> None:
    calls, hanging = count(1), threading.Event()

    def send(_request: bytes, _context: Any) -> Iterator[bytes]:
        if next(calls) == 1:
            hanging.wait(30)
        yield announcement(7)

    with (
        scripted(Watch=send) as at,
        opened(at, settings=impatient(stall_seconds=0.2)) as transport,
        transport.watch(CLASS, MODEL) as watch,
    ):
        assert next(iter(watch)).target.version == 7
        hanging.set()


class Clockwork(threading.Event):
    """An event that notes for how long it is waited for, and does not wait."""

    def __init__(self, watch_after: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._left = watch_after

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        if len(self.waits) == self._left:
            self.set()
        return self.is_set()


def pauses(watch: Any, number: int) -> list[float]:
    """Return the pauses that a watch makes, without making them."""
    watch._cancelled = Clockwork(number)
    list(watch)
    return watch._cancelled.waits  # type: ignore[no-any-return]


def test_pauses_double_from_failure_to_failure_and_differ_between_devices() -> None:
    settings = GrpcSettings(first_backoff_seconds=1.0, most_backoff_seconds=20.0)
    found = []
    with scripted(Watch=aborting(grpc.StatusCode.UNAVAILABLE)) as at:
        for rng in map(random.Random, range(2)):
            with opened(at, settings=settings, rng=rng) as transport:
                found.append(pauses(transport.watch(CLASS, MODEL), 8))
    for waits in found:
        for wait, longest in zip(waits, [1, 2, 4, 8, 16, 20, 20, 20], strict=True):
            assert longest / 2 <= wait <= longest
    assert found[0] != found[1]


def test_pushback_is_honoured() -> None:
    busy = aborting(grpc.StatusCode.RESOURCE_EXHAUSTED, (PUSHBACK_KEY, "7000"))
    with scripted(Watch=busy) as at, opened(at) as transport:
        assert pauses(transport.watch(CLASS, MODEL), 2) == [7.0, 7.0]


def test_after_a_stream_that_the_server_ended_the_device_waits_as_long_as_it_was_told() -> None:
    ending = [announcement(1, retry_after_seconds=3.25)]
    with scripted(Watch=lambda *_: iter(ending)) as at, opened(at) as transport:
        assert pauses(transport.watch(CLASS, MODEL), 3) == [3.25] * 3


def test_a_class_for_which_nothing_was_published_is_watched_seldom() -> None:
    settings = GrpcSettings(first_backoff_seconds=1.0, most_backoff_seconds=600.0)
    with (
        scripted(Watch=aborting(grpc.StatusCode.NOT_FOUND)) as at,
        opened(at, settings=settings) as transport,
    ):
        assert min(pauses(transport.watch(CLASS, MODEL), 3)) >= 300.0


def ends_when_cancelled(watch: Any) -> bool:
    """Cancel a watch from another thread while it is iterated; return whether it ends within 20 s."""
    thread = threading.Thread(target=lambda: list(watch), daemon=True)
    thread.start()
    time.sleep(0.2)
    watch.cancel()
    thread.join(20)
    return not thread.is_alive()


def test_a_watch_ends_at_once_whatever_it_waits_for(tmp_path: Path) -> None:
    silent = replace(QUICK, heartbeat_seconds=3600.0)
    with live(tmp_path, OLD, settings=silent) as service, opened(service.address) as transport:
        assert ends_when_cancelled(transport.watch(CLASS, MODEL))  # waits for an announcement
    slow = GrpcSettings(first_backoff_seconds=3600, most_backoff_seconds=3600)
    with opened("127.0.0.1:1", settings=slow) as transport:
        assert ends_when_cancelled(transport.watch(CLASS, MODEL))  # pauses


def test_closing_ends_watches(tmp_path: Path) -> None:
    with live(tmp_path, OLD) as service:
        transport = opened(service.address)
        offers = iter(transport.watch(CLASS, MODEL))
        next(offers)
        threading.Timer(0.2, transport.close).start()
        assert list(offers) == []


def test_a_watch_says_what_the_device_runs_when_it_connects() -> None:
    asked = []

    def send(request: bytes, _context: Any) -> Iterator[bytes]:
        asked.append(update_pb2.WatchRequest.FromString(request).version)
        yield announcement(len(asked))

    serving = (Target(version, "a" * 64) for version in count(5))
    with (
        scripted(Watch=send) as at,
        opened(at) as transport,
        transport.watch(CLASS, MODEL, lambda: next(serving)) as watch,
    ):
        offers = iter(watch)
        next(offers)
        next(offers)
    assert asked[:2] == [5, 6]


def test_a_target_that_stays_is_not_announced_by_every_stream(tmp_path: Path) -> None:
    with live(tmp_path, OLD) as service, opened(service.address) as transport:
        watch = transport.watch(CLASS, MODEL)
        offers = iter(watch)
        next(offers)
        service.call(service.run.service.drain)
        threading.Timer(0.3, watch.cancel).start()
        assert list(offers) == []


# Telemetry.


def test_reports_are_sent_in_requests_that_the_service_reads() -> None:
    sizes = []

    def store(request: bytes, _context: Any) -> bytes:
        reports = telemetry_pb2.ReportRequest.FromString(request).reports
        sizes.append((len(reports), len(request)))
        return telemetry_pb2.ReportResponse(
            stored_sequence=reports[-1].sequence if reports else 500, retry_after_seconds=2.5
        ).SerializeToString()

    reports = [
        telemetry_pb2.TelemetryReport(sequence=n, device_class="x" * (2000 if n > 300 else 10))
        for n in range(1, 501)
    ]
    with scripted(Report=store) as at, opened(at) as transport:
        assert transport.report(reports) == (500, 2.5)
        assert transport.report([]) == (500, 2.5)
    assert sum(number for number, _ in sizes) == 500
    assert max(number for number, _ in sizes) == MAX_REPORTS
    assert max(size for _, size in sizes) <= MAX_REQUEST_BYTES + 1024


def test_batches_keep_the_order() -> None:
    reports = [telemetry_pb2.TelemetryReport(sequence=n) for n in range(1, 700)]
    batches = list(report_batches(reports))
    assert [report.sequence for batch in batches for report in batch] == list(range(1, 700))
