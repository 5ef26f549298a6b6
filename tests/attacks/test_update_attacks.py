"""Attacks on updates, over real gRPC with real signatures: python-tuf's own list, and what blobs add to it.

Where it is cheap, a control shows that the attack lands where its check is not there.
"""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evil_updates import MODEL, NEW, NEWER, OLD, Bench, answer, bench, named, sign
from trust import DAY, NOW, Repository
from update_client import CLASS

from client import trusted_metadata, verifying
from client.disk import Disk
from client.fetching import fetch_blobs
from client.grpc_channel import CHUNK_BYTES
from client.partial import PartialBlobs
from client.signed_offers import SignedOffers
from client.slots import Target
from client.trusted_metadata import MAX_BYTES, TrustedMetadata
from client.update_messages import MAX_METADATA_BYTES
from client.update_result import Outcome
from protos.quantfleet.v1 import artifact_pb2
from protos.quantfleet.v1 import update_pb2 as pb
from quantization.blob import content_digest, encode_blob
from quantization.errors import (
    DigestMismatchError,
    MalformedError,
    QuantFleetError,
    StaleVersionError,
    UnreachableError,
    UpdateRejectedError,
)

TESTS = Path(__file__).parents[1]
LARGEST = max(NEW.blobs, key=lambda digest: len(NEW.blobs[digest]))


def asked(device: Bench) -> Any:
    """Return what the device believes that it should run."""
    return device.transport.check(CLASS, MODEL, device.state.slots().serving)


def test_what_is_signed_is_installed(tmp_path: Path) -> None:
    with bench(tmp_path) as device:
        assert device.updater.update().outcome is Outcome.ON_TRIAL
        assert device.updater.runtime is not None
        assert device.updater.runtime.manifest == NEW.manifest


# Which version.


def test_a_version_that_is_not_signed_is_refused(tmp_path: Path) -> None:
    with bench(tmp_path) as device:
        device.evil.publish(NEWER, 3)
        with pytest.raises(UpdateRejectedError, match="is not among the signed targets"):
            device.updater.update()
        assert device.is_unharmed


def test_another_manifest_than_the_signed_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path) as device:
        device.evil.publish(NEWER, 2)
        with pytest.raises(DigestMismatchError, match="which is signed as"):
            device.updater.update()
        assert device.is_unharmed
        monkeypatch.setattr(SignedOffers, "check", lambda *_: None)
        assert device.updater.update().outcome is Outcome.ON_TRIAL  # the control


def test_a_target_of_another_class_is_refused(tmp_path: Path) -> None:
    with bench(tmp_path) as device:
        name = replace(named(3), device_class="other")
        device.evil.repository.metadata.publish(
            {name: NEWER.manifest.to_bytes()},
            offline=device.evil.repository.offline,
            online=device.evil.repository.online,
            now_seconds=NOW,
        )
        device.evil.publish(NEWER, 3)
        with pytest.raises(UpdateRejectedError, match="is not among the signed targets"):
            device.updater.update()
        assert device.is_unharmed


def test_rollback_of_a_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(tmp_path) as device:
        device.updater.update()
        device.updater.watch()
        device.evil.publish(OLD, 1)
        with pytest.raises(StaleVersionError, match="older than version 2"):
            device.updater.update()
        assert device.state.slots().serving == Target(2, NEW.manifest.digest())
        believed = TrustedMetadata.manifest_of
        monkeypatch.setattr(
            TrustedMetadata, "manifest_of", lambda self, name, **_: believed(self, name, least_version=0)
        )
        assert asked(device).target.version == 1  # the control


def test_a_version_that_the_device_once_had_bounds_what_it_takes(tmp_path: Path) -> None:
    """Slots that were lost or rolled back do not let an older version in."""
    had = [0]
    with bench(tmp_path, least_version=lambda: had[0]) as device:
        had[0] = 7
        with pytest.raises(StaleVersionError, match="older than version 7"):
            device.updater.update()
        assert device.is_unharmed


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_rollback_of_metadata_is_refused(tmp_path: Path, role: str) -> None:
    with bench(tmp_path) as device:
        repository = device.evil.repository
        old = repository.metadata.read(role)
        asked(device)
        sign(repository, 3, NEWER)
        asked(device)
        sign(repository, 4, OLD)
        device.evil.publish(NEWER, 3)
        device.evil.metadata = lambda asked, version: (
            old if asked == role else repository.metadata.read(asked, version)
        )
        with pytest.raises((StaleVersionError, DigestMismatchError, UpdateRejectedError)):
            device.updater.update()
        assert device.is_unharmed


def test_a_device_that_is_kept_from_news_finds_out_when_what_it_has_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freeze: the service says for ever what was true once."""
    with bench(tmp_path) as device:
        device.evil.offer = Target(1, OLD.manifest.digest())
        assert device.updater.update().outcome is Outcome.UNCHANGED
        device.pass_days(3)
        with pytest.raises(UpdateRejectedError, match="expired"):
            device.updater.update()
        assert device.is_unharmed
        offers = device.transport._offers
        assert offers is not None
        monkeypatch.setattr(offers, "_refresh_seconds", math.inf)
        assert device.updater.update().outcome is Outcome.UNCHANGED  # the control


def test_metadata_that_has_expired_is_refused(tmp_path: Path) -> None:
    with bench(tmp_path) as device:
        device.pass_days(3)
        with pytest.raises(UpdateRejectedError, match="expired"):
            device.updater.update()
        assert device.is_unharmed
        device.evil.repository.metadata.refresh(device.evil.repository.online, now_seconds=NOW + 3 * DAY)
        assert device.updater.update().outcome is Outcome.ON_TRIAL


def test_parts_of_different_times_do_not_mix(tmp_path: Path) -> None:
    with bench(tmp_path) as device:
        repository = device.evil.repository
        snapshot = repository.metadata.read("snapshot")
        sign(repository, 3, NEWER)
        device.evil.publish(NEWER, 3)
        device.evil.metadata = lambda role, version: (
            snapshot if role == "snapshot" else repository.metadata.read(role, version)
        )
        with pytest.raises(DigestMismatchError, match="snapshot is refused"):
            device.updater.update()
        targets = repository.metadata.read("targets", 2)
        device.evil.metadata = lambda role, version: (
            targets if role == "targets" else repository.metadata.read(role, version)
        )
        with pytest.raises(UpdateRejectedError, match="targets is refused"):
            device.updater.update()
        assert device.is_unharmed


# Who signed.


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_another_signer_is_refused(tmp_path: Path, role: str) -> None:
    with bench(tmp_path) as device:
        own, other = device.evil.repository, Repository.create(tmp_path / "other")
        for version, artifact in ((1, OLD), (2, NEW), (3, NEWER)):
            sign(other, version, artifact)
        for of in ("root", "timestamp"):
            other.rotate(of)
        device.evil.publish(NEWER, 3)
        sign(own, 3, NEWER)
        device.evil.metadata = lambda asked, version: (other if asked == role else own).metadata.read(
            asked, version
        )
        with pytest.raises(UpdateRejectedError, match=f"{role} is refused"):
            device.updater.update()
        assert device.is_unharmed


def resigned(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return a file of metadata with something changed."""
    content = json.loads(data)
    change(content)
    return json.dumps(content).encode()


def drop_signature(content: dict[str, Any]) -> None:
    del content["signatures"][0]


def repeat_signature(content: dict[str, Any]) -> None:
    content["signatures"] = [copy.copy(content["signatures"][0]) for _ in range(2)]


@pytest.mark.parametrize("change", [drop_signature, repeat_signature])
def test_too_few_signatures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]
) -> None:
    with bench(tmp_path, keys=2) as device:
        repository = device.evil.repository
        device.evil.metadata = lambda role, version: (
            resigned(repository.metadata.read(role, version), change)
            if role == "targets"
            else repository.metadata.read(role, version)
        )
        with pytest.raises(UpdateRejectedError, match="targets is refused"):
            device.updater.update()
        assert device.is_unharmed
        if change is drop_signature:
            monkeypatch.setattr("tuf.api.metadata.Root.verify_delegate", lambda *_: None)
            assert asked(device).target.version == 2  # the control


def test_what_was_signed_and_changed_afterwards_is_refused(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["signed"]["targets"][str(named(2))]["hashes"]["sha256"] = NEWER.manifest.digest()

    with bench(tmp_path) as device:
        repository = device.evil.repository
        device.evil.publish(NEWER, 2)
        device.evil.metadata = lambda role, version: (
            resigned(repository.metadata.read(role, version), change)
            if role == "targets"
            else repository.metadata.read(role, version)
        )
        with pytest.raises(UpdateRejectedError, match="targets is refused"):
            device.updater.update()
        assert device.is_unharmed


# How much.


def endless(size: int, total: int) -> Callable[[bytes], Iterator[bytes]]:
    def chunks(_data: bytes) -> Iterator[bytes]:
        yield pb.MetadataChunk(total_bytes=total, data=bytes(size)).SerializeToString()
        while True:
            yield pb.MetadataChunk(data=bytes(size)).SerializeToString()

    return chunks


@pytest.mark.parametrize(
    "chunks", [endless(CHUNK_BYTES, 0), endless(CHUNK_BYTES, 100), endless(0, 100), endless(100, 1 << 40)]
)
def test_endless_metadata_is_left(tmp_path: Path, chunks: Callable[[bytes], Iterator[bytes]]) -> None:
    with bench(tmp_path) as device:
        device.evil.chunks = chunks
        with pytest.raises(MalformedError, match="metadata timestamp"):
            device.updater.update()
        assert device.is_unharmed


def test_bounds_of_metadata_are_those_of_its_verification() -> None:
    assert MAX_METADATA_BYTES == MAX_BYTES


def test_endless_blobs_are_left(tmp_path: Path) -> None:
    sent = 0

    def send(wanted: pb.BlobWanted) -> Iterable[bytes]:
        nonlocal sent
        yield from answer(wanted.digest.hex(), b"x" * 100)
        while True:
            sent += 1
            yield pb.BlobChunk(offset_bytes=100, data=bytes(CHUNK_BYTES)).SerializeToString()

    with bench(tmp_path) as device:
        device.evil.answer = send
        with pytest.raises(QuantFleetError):
            device.updater.update()
        assert device.is_unharmed
        assert sent < 1000


def test_a_manifest_larger_than_signed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(wanted: pb.BlobWanted) -> Iterable[bytes]:
        return answer(wanted.digest.hex(), bytes(300_000))

    with bench(tmp_path) as device:
        device.evil.answer = send
        with pytest.raises(UpdateRejectedError, match="for a manifest that is signed with"):
            device.updater.update()
        assert device.is_unharmed
        assert not any((device.state.path / "partial").glob("*"))
        monkeypatch.setattr(SignedOffers, "check_size", lambda *_: None)
        with pytest.raises(
            (MalformedError, DigestMismatchError)
        ):  # the control: it was taken, up to the bound
            device.updater.update()


def test_a_manifest_that_is_signed_and_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path) as device:
        monkeypatch.setattr(trusted_metadata, "MAX_MANIFEST_BYTES", 100)
        with pytest.raises(UpdateRejectedError, match="1 to 100 are allowed"):
            device.updater.update()
        assert device.is_unharmed


def test_a_blob_larger_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    def send(wanted: pb.BlobWanted) -> Iterable[bytes]:
        digest = wanted.digest.hex()
        if digest not in NEW.blobs:
            return answer(digest, device.evil.blobs[digest])
        return answer(digest, b"x", total_bytes=1 << 40)

    with bench(tmp_path) as device:
        device.evil.answer = send
        with pytest.raises(MalformedError, match="1099511627776 bytes are offered"):
            device.updater.update()
        assert device.is_unharmed


@pytest.mark.slow
@pytest.mark.parametrize("bomb", ["frame", "header", "difference"])
def test_declared_sizes_bound_what_a_bomb_takes(bomb: str) -> None:
    """In a process of its own, whose peak memory says it; the control without the check takes what the bomb says."""
    peaks = []
    for guard in ("guarded", "unguarded"):
        done = subprocess.run(
            [sys.executable, str(TESTS / "support/bomb_victim.py"), bomb, guard],
            cwd=TESTS.parent,
            env={"PYTHONPATH": f"{TESTS.parent}:{TESTS / 'support'}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(json.loads(done.stdout))
    guarded, unguarded = peaks
    assert guarded["error"] in ("MalformedError", "DigestMismatchError")
    assert guarded["grown_mib"] < 64
    assert unguarded["grown_mib"] > 200


# What.


def test_a_blob_in_the_place_of_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(tmp_path) as device:
        missing = sorted(NEW.blobs.keys() - OLD.blobs.keys())
        device.evil.answer = lambda wanted: answer(
            wanted.digest.hex(), swapped(wanted.digest.hex(), missing, device)
        )
        with pytest.raises((DigestMismatchError, MalformedError)):
            device.updater.update()
        assert device.is_unharmed
        assert not any(device.state.has_blob(digest) for digest in missing)
        size = NEW.manifest.blobs[missing[0]].decoded_size_bytes
        monkeypatch.setattr(verifying, "check_blob_content", lambda *_: None)
        partial = PartialBlobs(device.state.path / "partial", device.state.disk)
        fetch_blobs(device.transport, device.state, partial, {missing[0]: size})
        assert device.state.has_blob(missing[0])  # the control


def swapped(digest: str, missing: list[str], device: Bench) -> bytes:
    """Return another blob of the artifact in the place of those that the device lacks."""
    if digest not in missing:
        return device.evil.blobs[digest]
    size = NEW.manifest.blobs[digest].decoded_size_bytes
    return encode_blob(bytes(size))


def test_a_manifest_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    with bench(tmp_path) as device:
        forged = encode_blob(NEWER.manifest.to_bytes())
        device.evil.blobs[NEW.manifest.digest()] = forged
        device.evil.blobs |= NEWER.blobs
        with pytest.raises((DigestMismatchError, UpdateRejectedError)):
            device.updater.update()
        assert device.is_unharmed


@pytest.mark.parametrize("lie", ["another offset", "the start as the rest", "the start again"])
def test_a_service_that_ignores_offsets_installs_nothing_wrong(tmp_path: Path, lie: str) -> None:
    with bench(tmp_path) as device:
        device.evil.answer = lambda wanted: cut(wanted, device)
        with pytest.raises(UnreachableError):
            device.updater.update()
        device.evil.answer = lambda wanted: resumed(wanted, device, lie)
        if lie == "the start again":  # which a service may do
            assert device.updater.update().outcome is Outcome.ON_TRIAL
            return
        with pytest.raises((MalformedError, DigestMismatchError)):
            device.updater.update()
        assert device.is_unharmed
        device.evil.answer = None
        assert device.updater.update().outcome is Outcome.ON_TRIAL


def cut(wanted: pb.BlobWanted, device: Bench) -> Iterator[bytes]:
    """Send half of a manifest, then nothing more."""
    digest = wanted.digest.hex()
    data = device.evil.blobs[digest]
    chunk = pb.BlobChunk.FromString(next(answer(digest, data)))
    chunk.data = data[: len(data) // 2]
    yield chunk.SerializeToString()


def resumed(wanted: pb.BlobWanted, device: Bench, lie: str) -> Iterator[bytes]:
    digest = wanted.digest.hex()
    data = device.evil.blobs[digest]
    if not wanted.offset_bytes or lie == "the start again":
        yield from answer(digest, data)
        return
    chunk = pb.BlobChunk.FromString(next(answer(digest, data)))
    if lie == "another offset":
        chunk.offset_bytes = wanted.offset_bytes + 1
        chunk.data = data[wanted.offset_bytes + 1 :]
    else:
        chunk.offset_bytes = wanted.offset_bytes
        chunk.data = data[: len(data) - wanted.offset_bytes]
    yield chunk.SerializeToString()


# Names.


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "a/b", "..", "x\0y"])
def test_a_class_cannot_be_a_path(tmp_path: Path, name: str) -> None:
    with bench(tmp_path) as device, pytest.raises(MalformedError, match="model digest"):
        device.transport.check(name, MODEL, None)


@pytest.mark.parametrize("location", ["../../slots", "/etc/passwd", "a/../../b", ""])
def test_a_signed_manifest_cannot_name_a_path(tmp_path: Path, location: str) -> None:
    message = artifact_pb2.Manifest.FromString(NEW.manifest.to_bytes())
    message.stages[0].files[0].location = location
    data = message.SerializeToString(deterministic=True)
    with bench(tmp_path) as device:
        repository = device.evil.repository
        repository.metadata.publish(
            {named(3): data}, offline=repository.offline, online=repository.online, now_seconds=NOW
        )
        device.evil.blobs[content_digest(data)] = encode_blob(data)
        device.evil.offer = Target(3, content_digest(data))
        before = sorted(path for path in tmp_path.rglob("*") if "device" not in path.parts)
        with pytest.raises(MalformedError):
            device.updater.update()
        assert device.is_unharmed
        assert sorted(path for path in tmp_path.rglob("*") if "device" not in path.parts) == before


@pytest.mark.parametrize("role", ["../root", "root/..", "..", "passwd"])
def test_metadata_is_kept_under_the_names_of_roles_alone(tmp_path: Path, role: str) -> None:
    files = trusted_metadata.MetadataFolder(tmp_path, Disk())
    with pytest.raises(MalformedError, match="no role"):
        files.write(role, b"x")
