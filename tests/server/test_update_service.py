import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from artifacts import example
from grpc import aio
from update_client import (
    CLASS,
    QUICK,
    Running,
    Shelf,
    fetch,
    next_answer,
    opening,
    running,
    want,
)

from protos.quantfleet.v1 import update_pb2 as pb
from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.delta import Encoding
from quantization.errors import NotFoundError
from server import delta_store
from server.blob_store import BlobStore
from server.payloads import CHUNK_BYTES
from server.peers import PUSHBACK_KEY

OLD, NEW = example().artifact(0), example().artifact(1, width=3.0)
TUNED = example().artifact(1, width=3.0, bits=7)

Body = Callable[[Running], Awaitable[None]]


def serve(folder: Path, body: Body, **keywords: Any) -> None:
    """Run the body beside a service that has published the old artifact."""

    async def main() -> None:
        async with asyncio.timeout(60), running(folder, **keywords) as run:
            run.shelf.publish(OLD)
            await body(run)

    asyncio.run(main())


async def refused(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def read_to_end(call: Any) -> None:
    while await call.read() is not aio.EOF:
        pass


def contents_of(artifact: Any) -> dict[str, bytes]:
    decoded = {digest: decode_blob_content(stored, digest) for digest, stored in artifact.blobs.items()}
    return decoded | {artifact.manifest.digest(): artifact.manifest.to_bytes()}


# Check


def test_a_device_is_told_its_target(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        answer = await run.stub().Check(pb.CheckRequest(**run.request()))
        assert answer.version == 1
        assert answer.manifest_digest.hex() == OLD.manifest.digest()
        assert 150 <= answer.retry_after_seconds <= 450

    serve(tmp_path, body)


def test_a_model_that_was_never_published_is_not_found(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        for fields in ({"device_class": "other"}, {"model_digest": bytes(32)}):
            request = pb.CheckRequest(**run.request(**fields))
            assert (await refused(run.stub().Check(request))).code() == grpc.StatusCode.NOT_FOUND
            watch = run.stub().Watch(pb.WatchRequest(**run.request(**fields)))
            assert (await refused(watch.read())).code() == grpc.StatusCode.NOT_FOUND

    serve(tmp_path, body)


@pytest.mark.parametrize(
    "fields",
    [{"device_class": ""}, {"device_class": "x\n"}, {"model_digest": b"short"}, {"manifest_digest": b"x"}],
)
def test_impossible_requests_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    async def body(run: Running) -> None:
        error = await refused(run.stub().Check(pb.CheckRequest(**run.request(**fields))))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT

    serve(tmp_path, body)


# Watch


def test_a_watcher_is_told_at_once_and_when_something_is_published(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().Watch(pb.WatchRequest(**run.request()))
        first = await call.read()
        assert (first.version, first.manifest_digest.hex()) == (1, OLD.manifest.digest())
        assert first.silent_after_seconds == 90.0
        run.shelf.publish(NEW)
        second = await call.read()
        assert (second.version, second.manifest_digest.hex()) == (2, NEW.manifest.digest())
        assert 0 < second.retry_after_seconds < 5
        call.cancel()

    serve(tmp_path, body)


def test_a_device_that_has_the_target_need_not_wait_to_fetch(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        others = [run.stub(f"d{k}").Watch(pb.WatchRequest(**run.request())) for k in range(20)]
        waits = [(await call.read()).fetch_after_seconds for call in others]
        assert max(waits) > 0
        assert len(set(waits)) > 10
        assert max(waits) <= 20 / QUICK.fetches_per_second
        has_it = pb.WatchRequest(**run.request(manifest_digest=bytes.fromhex(OLD.manifest.digest())))
        assert (await run.stub().Watch(has_it).read()).fetch_after_seconds == 0

    serve(tmp_path, body)


def test_signs_of_life_repeat_the_target(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().Watch(pb.WatchRequest(**run.request()))
        versions = [(await call.read()).version for _ in range(3)]
        assert versions == [1, 1, 1]

    serve(tmp_path, body, settings=replace(QUICK, heartbeat_seconds=0.1))


def test_the_registry_is_asked_once_a_poll_for_all_watchers(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        calls = [run.stub(f"d{k}").Watch(pb.WatchRequest(**run.request())) for k in range(50)]
        await asyncio.gather(*(call.read() for call in calls))
        before = run.shelf.loads
        run.shelf.publish(NEW)
        told = await asyncio.gather(*(call.read() for call in calls))
        assert {message.version for message in told} == {2}
        assert run.shelf.loads - before <= 10
        assert run.metrics.get_sample_value("quantfleet_update_watchers") == 50

    serve(tmp_path, body)


def test_watchers_live_on_while_the_registry_is_away(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().Watch(pb.WatchRequest(**run.request()))
        await call.read()
        run.shelf.broken = OSError("the database is away")
        assert (await call.read()).version == 1
        run.shelf.broken = None
        run.shelf.publish(NEW)
        while (await call.read()).version != 2:
            pass

    serve(tmp_path, body, settings=replace(QUICK, heartbeat_seconds=0.2))


def test_a_watch_ends_in_time_so_that_devices_spread_over_servers(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().Watch(pb.WatchRequest(**run.request()))
        assert (await call.read()).retry_after_seconds > 0
        assert await call.read() is aio.EOF
        assert await call.code() == grpc.StatusCode.OK

    serve(tmp_path, body, settings=replace(QUICK, max_watch_seconds=0.3))


def test_a_server_that_drains_ends_watches_well(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().Watch(pb.WatchRequest(**run.request()))
        await call.read()
        run.service.drain()
        assert await call.read() is aio.EOF
        late = run.stub().Watch(pb.WatchRequest(**run.request()))
        assert (await late.read()).version == 1
        assert await late.read() is aio.EOF

    serve(tmp_path, body)


def test_a_watcher_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().Watch(pb.WatchRequest(**run.request()))
        await call.read()
        call.cancel()
        while run.metrics.get_sample_value("quantfleet_update_watchers"):
            await asyncio.sleep(0.01)

    serve(tmp_path, body)


# Limits


def test_too_many_calls_of_one_device_are_refused_with_a_time_to_wait(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        stub, request = run.stub(), pb.CheckRequest(**run.request())
        for _ in range(3):
            await stub.Check(request)
        error = await refused(stub.Check(request))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        pushback = dict(error.trailing_metadata() or ())[PUSHBACK_KEY]
        assert 0 < int(pushback) < 25_000
        await run.stub("another-device").Check(request)

    serve(tmp_path, body, settings=replace(QUICK, calls_burst=3, calls_per_second=0.1))


def test_streams_are_limited_for_one_device_and_for_all(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        request = pb.WatchRequest(**run.request())
        for device in ("one", "two"):
            await run.stub(device).Watch(request).read()
        for device in ("one", "three"):
            error = await refused(run.stub(device).Watch(request).read())
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert dict(error.trailing_metadata() or ())[PUSHBACK_KEY]

    serve(tmp_path, body, settings=replace(QUICK, max_streams_per_device=1, max_watchers=2))


def test_a_device_that_says_nothing_loses_its_stream(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().FetchBlobs()
        await call.write(opening(run))
        error = await refused(call.read())
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED

    serve(tmp_path, body, settings=replace(QUICK, stall_seconds=0.2))


def test_a_device_that_does_not_read_loses_its_stream_and_no_memory_is_spent(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        digest = publish_large(run.shelf, 40 << 20)
        call = run.stub().FetchBlobs()
        await call.write(opening(run))
        await call.write(want(digest))
        labels, sent = {"device_class": CLASS, "encoding": "full"}, None
        async with asyncio.timeout(40):
            while sent is None:  # counted once the stream has ended
                await asyncio.sleep(0.05)
                sent = run.metrics.get_sample_value("quantfleet_update_sent_bytes_total", labels)
        assert sent < 30 << 20
        assert (await refused(read_to_end(call))).code() == grpc.StatusCode.DEADLINE_EXCEEDED

    serve(tmp_path, body, settings=replace(QUICK, stall_seconds=2.0))


def test_a_device_that_reads_slowly_but_does_is_served_to_the_end(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        digest = publish_large(run.shelf, 32 << 20)
        call = run.stub().FetchBlobs()
        await call.write(opening(run))
        await call.write(want(digest))
        size = received = 0
        while not size or received < size:
            chunk = await call.read()
            size = size or chunk.payload.total_bytes
            received += len(chunk.data)
            await asyncio.sleep(0.003)
        assert received == size

    serve(tmp_path, body, settings=replace(QUICK, stall_seconds=1.0))


def publish_large(shelf: Shelf, size_bytes: int) -> str:
    """Publish an artifact in which one blob is so large; return its digest."""
    content = b"".join(content_digest(str(k).encode()).encode() for k in range(size_bytes // 64))
    stage = OLD.manifest.stages[0]
    digest, stored = content_digest(content), encode_blob(content[:0] + content, level=1)
    large = replace(
        stage.files[0],
        digest=digest,
        dtype="bytes",
        shape=(len(content),),
        bit_width=8,
        stored_size_bytes=len(stored),
    )
    manifest = replace(OLD.manifest, stages=(replace(stage, files=(large, *stage.files[1:])),), generation=9)
    shelf.publish(replace(OLD, manifest=manifest, blobs={**OLD.blobs, digest: stored}))
    return digest


# FetchBlobs


def test_a_new_device_fetches_everything_whole(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        expected = contents_of(OLD)
        answers = await fetch(run.stub(), opening(run), expected)
        for (digest, content), answer in zip(expected.items(), answers, strict=True):
            assert answer.head.encoding == Encoding.FULL
            assert answer.head.digest.hex() == digest
            assert answer.content(digest, {}) == content

    serve(tmp_path, body)


def test_an_update_comes_as_differences_to_what_the_device_has(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        run.shelf.publish(NEW)
        old, new = contents_of(OLD), contents_of(NEW)
        missing = sorted(new.keys() - old.keys())
        answers = await fetch(run.stub(), opening(run, held=old), missing)
        for digest, answer in zip(missing, answers, strict=True):
            assert answer.content(digest, old) == new[digest]
        assert {answer.head.encoding for answer in answers} - {Encoding.FULL}
        whole = await fetch(run.stub(), opening(run), missing)
        assert sum(len(a.data) for a in answers) < 0.5 * sum(len(a.data) for a in whole)

    serve(tmp_path, body)


@pytest.mark.parametrize(
    "encodings", [(), (Encoding.FULL,), (Encoding.INT8_SUB_ZSTD,), (Encoding.BSDIFF, 77)]
)
def test_only_encodings_that_the_device_accepts_are_sent(tmp_path: Path, encodings: tuple[int, ...]) -> None:
    async def body(run: Running) -> None:
        run.shelf.publish(NEW)
        old, new = contents_of(OLD), contents_of(NEW)
        missing = sorted(new.keys() - old.keys())
        answers = await fetch(run.stub(), opening(run, old, encodings), missing)
        assert {answer.head.encoding for answer in answers} <= {Encoding.FULL, *encodings}
        assert [a.content(d, old) for d, a in zip(missing, answers, strict=True)] == [new[d] for d in missing]

    serve(tmp_path, body)


def test_a_difference_is_computed_once_for_all_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counting(*arguments: Any) -> Any:
        made.append(arguments)
        return make_deltas(*arguments)

    make_deltas = delta_store.make_deltas
    monkeypatch.setattr(delta_store, "make_deltas", counting)

    async def body(run: Running) -> None:
        run.shelf.publish(NEW)
        old = contents_of(OLD)
        missing = [NEW.manifest.digest()]
        await asyncio.gather(*(fetch(run.stub(f"d{k}"), opening(run, old), missing) for k in range(10)))
        assert len(made) == 1

    serve(tmp_path, body)


def test_a_device_does_not_wait_long_for_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    make_deltas = delta_store.make_deltas

    def slow(*arguments: Any) -> Any:
        gate.wait(10)
        return make_deltas(*arguments)

    monkeypatch.setattr(delta_store, "make_deltas", slow)

    async def body(run: Running) -> None:
        run.shelf.publish(NEW)
        old, digest = contents_of(OLD), NEW.manifest.digest()
        (answer,) = await fetch(run.stub(), opening(run, old), [digest])
        assert answer.head.encoding == Encoding.FULL
        gate.set()
        while answer.head.encoding == Encoding.FULL:
            (answer,) = await fetch(run.stub(), opening(run, old), [digest])
        assert answer.content(digest, old) == NEW.manifest.to_bytes()

    serve(tmp_path, body, settings=replace(QUICK, delta_wait_seconds=0.1))


def test_a_fetch_that_was_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        digest = publish_large(run.shelf, 1 << 20)
        (whole,) = await fetch(run.stub(), opening(run), [digest])
        assert whole.chunks == -(-len(whole.data) // CHUNK_BYTES)
        for offset in (1, CHUNK_BYTES, len(whole.data) - 1, len(whole.data)):
            call = run.stub().FetchBlobs()
            await call.write(opening(run))
            await call.write(want(digest, offset, whole.head.payload_digest))
            rest = await next_answer(call)
            assert (rest.start, rest.data) == (offset, whole.data[offset:])
            assert rest.head == whole.head
            call.cancel()

    serve(tmp_path, body)


def test_what_is_wanted_with_the_opening_comes_first(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        first, second, third = sorted(OLD.blobs)[:3]
        call = run.stub().FetchBlobs()
        request = opening(run)
        request.opening.wanted.extend(want(digest).wanted for digest in (second, first))
        await call.write(request)
        await call.write(want(third))
        await call.done_writing()
        for digest in (second, first, third):
            answer = await next_answer(call)
            assert answer.head.digest.hex() == digest
            answer.content(digest, {})
        assert await call.read() is aio.EOF

    serve(tmp_path, body)


def test_a_rest_of_another_payload_starts_over(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        digest = OLD.manifest.digest()
        call = run.stub().FetchBlobs()
        await call.write(opening(run))
        await call.write(want(digest, 100, b"\1" * 32))
        answer = await next_answer(call)
        assert answer.start == 0
        assert answer.content(digest, {}) == OLD.manifest.to_bytes()
        await call.write(want(digest, 1 << 40, answer.head.payload_digest))
        assert (await refused(call.read())).code() == grpc.StatusCode.INVALID_ARGUMENT

    serve(tmp_path, body)


def test_knowing_a_digest_is_not_enough(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        secret = b"the float model, or what the lab measured"
        run.shelf.blobs.put(content_digest(secret), encode_blob(secret))
        call = run.stub().FetchBlobs()
        await call.write(opening(run))
        await call.write(want(content_digest(secret)))
        assert (await refused(call.read())).code() == grpc.StatusCode.NOT_FOUND

    serve(tmp_path, body)


def test_a_target_that_another_server_published_is_found(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().FetchBlobs()
        await call.write(opening(run))
        await call.write(want(OLD.manifest.digest()))
        await next_answer(call)
        run.shelf.publish(NEW)
        await call.write(want(NEW.manifest.digest()))
        answer = await next_answer(call)
        assert answer.content(NEW.manifest.digest(), {}) == NEW.manifest.to_bytes()

    serve(tmp_path, body, settings=replace(QUICK, poll_seconds=3600))


def test_blobs_that_the_store_has_lost_or_damaged_are_said_to_be(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        (lost, damaged), folder = sorted(OLD.blobs)[:2], tmp_path / "blobs"
        (folder / lost[:2] / lost).unlink()
        (folder / damaged[:2] / damaged).write_bytes(b"QF rotten")
        for digest, code in ((lost, grpc.StatusCode.NOT_FOUND), (damaged, grpc.StatusCode.DATA_LOSS)):
            call = run.stub().FetchBlobs()
            await call.write(opening(run))
            await call.write(want(digest))
            assert (await refused(call.read())).code() == code

    serve(tmp_path, body)


def long_opening(run: Running) -> pb.FetchBlobsRequest:
    request = opening(run)
    request.opening.held_digests.extend([bytes(32)] * 4097)
    return request


def greedy_opening(run: Running, *wants: pb.BlobWanted) -> pb.FetchBlobsRequest:
    request = opening(run)
    request.opening.wanted.extend(wants)
    return request


BAD_STARTS: list[Callable[[Running], list[pb.FetchBlobsRequest]]] = [
    lambda _: [want("0" * 64)],
    lambda _: [pb.FetchBlobsRequest()],
    lambda run: [opening(run), opening(run)],
    lambda run: [opening(run), pb.FetchBlobsRequest()],
    lambda run: [opening(run), pb.FetchBlobsRequest(wanted=pb.BlobWanted(digest=b"short"))],
    lambda run: [long_opening(run)],
    lambda run: [greedy_opening(run, *[pb.BlobWanted()] * 4097)],
    lambda run: [greedy_opening(run, pb.BlobWanted(digest=b"short"))],
    lambda run: [greedy_opening(run, pb.BlobWanted(digest=bytes(32), base_manifest_digest=b"short"))],
    lambda run: [pb.FetchBlobsRequest(opening=pb.FetchOpening(**run.request(held_digests=[b"x"])))],
    lambda run: [pb.FetchBlobsRequest(opening=pb.FetchOpening(**run.request(device_class="")))],
]


@pytest.mark.parametrize("messages", BAD_STARTS)
def test_steps_out_of_order_or_out_of_bounds_are_refused(
    tmp_path: Path, messages: Callable[[Running], list[pb.FetchBlobsRequest]]
) -> None:
    async def body(run: Running) -> None:
        call = run.stub().FetchBlobs(iter(messages(run)))
        error = await refused(anext(aiter(call)))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT

    serve(tmp_path, body)


def test_many_devices_fetch_at_once_and_all_is_right(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        run.shelf.publish(NEW)
        old, new = contents_of(OLD), contents_of(NEW)
        missing = sorted(new.keys() - old.keys())

        async def device(number: int) -> None:
            held = old if number % 2 else {}
            answers = await fetch(run.stub(f"d{number}"), opening(run, held), missing)
            assert [a.content(d, old) for d, a in zip(missing, answers, strict=True)] == [
                new[d] for d in missing
            ]

        await asyncio.gather(*(device(number) for number in range(40)))

    serve(tmp_path, body)


# FetchMetadata


def test_signed_metadata_comes_in_chunks(tmp_path: Path) -> None:
    files = {("root", 0): b"r" * 150_000, ("root", 2): b"", ("timestamp", 7): b"t"}

    def read(role: str, version: int) -> bytes:
        if (role, version) not in files:
            raise NotFoundError(f"no {role} {version}")
        return files[role, version]

    async def body(run: Running) -> None:
        for (role, version), data in files.items():
            call = run.stub().FetchMetadata(pb.FetchMetadataRequest(role=role, version=version))
            parts = [chunk async for chunk in call]
            assert b"".join(chunk.data for chunk in parts) == data
            assert parts[0].total_bytes == len(data)
            assert all(len(chunk.data) <= CHUNK_BYTES for chunk in parts)
        for role, code in (
            ("snapshot", grpc.StatusCode.NOT_FOUND),
            ("../x", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            call = run.stub().FetchMetadata(pb.FetchMetadataRequest(role=role))
            assert (await refused(call.read())).code() == code

    serve(tmp_path, body, metadata=read)


def test_a_server_without_signatures_has_no_metadata(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().FetchMetadata(pb.FetchMetadataRequest(role="root"))
        assert (await refused(call.read())).code() == grpc.StatusCode.NOT_FOUND

    serve(tmp_path, body)


def test_a_blob_store_on_another_file_system_serves_too(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        (answer,) = await fetch(run.stub(), opening(run), [OLD.manifest.digest()])
        assert answer.content(OLD.manifest.digest(), {}) == OLD.manifest.to_bytes()

    serve(tmp_path, body, shelf=Shelf(BlobStore(f"memory://{tmp_path.name}")))


# Bundles


def bundle_wanted(digest: str, base: str) -> pb.FetchBlobsRequest:
    wanted = pb.BlobWanted(digest=bytes.fromhex(digest), base_manifest_digest=bytes.fromhex(base))
    return pb.FetchBlobsRequest(wanted=wanted)


def test_a_bundle_is_made_between_manifests_of_the_class_alone(tmp_path: Path) -> None:
    known, wanted = OLD.manifest.digest(), TUNED.manifest.digest()
    code = grpc.StatusCode

    async def body(run: Running) -> None:
        run.shelf.publish(TUNED)
        for digest, base, status in (
            (wanted, "ab" * 32, code.NOT_FOUND),
            ("ab" * 32, known, code.NOT_FOUND),
            (next(iter(OLD.blobs)), known, code.NOT_FOUND),
            (known, known, code.NOT_FOUND),
            (wanted, "ab", code.INVALID_ARGUMENT),
        ):
            call = run.stub().FetchBlobs()
            await call.write(opening(run))
            await call.write(bundle_wanted(digest, base))
            assert (await refused(call.read())).code() == status
        call = run.stub().FetchBlobs()
        await call.write(opening(run))
        await call.write(bundle_wanted(wanted, known))
        answer = await next_answer(call)
        assert (answer.head.encoding, answer.head.base_digest.hex()) == (Encoding.BUNDLE, known)
        assert answer.head.digest.hex() == wanted
        call.cancel()

    serve(tmp_path, body)


def test_more_manifests_than_can_be_held_are_refused(tmp_path: Path) -> None:
    async def body(run: Running) -> None:
        call = run.stub().FetchBlobs()
        request = pb.FetchOpening(**run.request(held_manifest_digests=[bytes(32)] * 4097))
        await call.write(pb.FetchBlobsRequest(opening=request))
        assert (await refused(call.read())).code() == grpc.StatusCode.INVALID_ARGUMENT

    serve(tmp_path, body)
