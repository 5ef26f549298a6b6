"""Attacks on updates, over real gRPC with real signatures: python-tuf's own list, and what blobs add to it.

Where it is cheap, a control shows that the attack lands where its check is not there; for all of them,
`test_removed_checks` shows that the test notices when it does.
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
from tuf.api.metadata import Metadata, Root, Targets
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
LARGEST = max(NEW.blobs.keys() - OLD.blobs.keys(), key=lambda digest: len(NEW.blobs[digest]))


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


@pytest.mark.parametrize(
    ("role", "error"),
    [("timestamp", StaleVersionError), ("snapshot", DigestMismatchError), ("targets", StaleVersionError)],
    ids=["timestamp", "snapshot", "targets"],
)
def test_rollback_of_metadata_is_refused(tmp_path: Path, role: str, error: type[Exception]) -> None:
    """What is offered is signed in the old metadata and in the new: nothing but its age is wrong."""
    with bench(tmp_path) as device:
        repository = device.evil.repository
        old = repository.metadata.read(role)
        sign(repository, 3, NEWER)
        device.evil.offer = Target(3, NEWER.manifest.digest())
        asked(device)
        sign(repository, 4, OLD)
        device.evil.publish(NEW, 2)
        device.evil.metadata = lambda asked, version: (
            old if asked == role else repository.metadata.read(asked, version)
        )
        with pytest.raises(error, match=f"{role} is refused"):
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


@pytest.mark.parametrize(
    ("role", "error"),
    [("snapshot", DigestMismatchError), ("targets", StaleVersionError)],
    ids=["snapshot", "targets"],
)
def test_parts_of_different_times_do_not_mix(tmp_path: Path, role: str, error: type[Exception]) -> None:
    """The device has seen neither: both times are news to it."""
    with bench(tmp_path) as device:
        repository = device.evil.repository
        earlier = repository.metadata.read(role)
        sign(repository, 3, NEWER)
        device.evil.metadata = lambda asked, version: (
            earlier if asked == role else repository.metadata.read(asked, version)
        )
        with pytest.raises(error, match=f"{role} is refused"):
            device.updater.update()
        assert device.is_unharmed


# Who signed.


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_another_signer_is_refused(tmp_path: Path, role: str) -> None:
    """Nothing is wrong with the file but who signed it."""
    with bench(tmp_path) as device:
        own, other = device.evil.repository, Repository.create(tmp_path / "other")
        own.rotate("root")
        root = Metadata[Root].from_bytes(other.metadata.read("root")).signed
        keys = other.offline if role in ("root", "targets") else other.online
        signer = keys.signer(role, root.roles[role].keyids[0])

        def forged(asked: str, version: int) -> bytes:
            data = own.metadata.read(asked, version)
            if asked != role or version == 1:
                return data
            metadata = Metadata[Any].from_bytes(data)
            metadata.sign(signer)
            return metadata.to_bytes()

        device.evil.metadata = forged
        with pytest.raises(UpdateRejectedError, match=f"{role} is refused"):
            device.updater.update()
        assert device.is_unharmed


def test_stolen_online_keys_sign_no_targets(tmp_path: Path) -> None:
    """Somebody who took the server over signs snapshot and timestamp as it did, but not the targets they lead to."""
    with bench(tmp_path) as device:
        own, other = device.evil.repository, Repository.create(tmp_path / "other")
        while (newest := targets_of(other).version) <= targets_of(own).version:
            sign(other, newest, NEWER)
        own.metadata._folder.put("targets", newest, other.metadata.read("targets"))
        assert own.metadata.refresh(own.online, now_seconds=NOW)
        device.evil.publish(NEWER, newest - 1)
        with pytest.raises(UpdateRejectedError, match="targets is refused"):
            device.updater.update()
        assert device.is_unharmed


def targets_of(repository: Repository) -> Targets:
    return Metadata[Targets].from_bytes(repository.metadata.read("targets")).signed


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


MANY = 1000


def endless(size: int, total: int) -> Callable[[bytes], Iterator[bytes]]:
    """Return what sends far more chunks than any file of metadata has; without a bound, all of them would be read."""

    def chunks(_data: bytes) -> Iterator[bytes]:
        yield pb.MetadataChunk(total_bytes=total, data=bytes(size)).SerializeToString()
        for _ in range(MANY):
            yield pb.MetadataChunk(data=bytes(size)).SerializeToString()

    return chunks


@pytest.mark.parametrize(
    "chunks",
    [endless(CHUNK_BYTES, 0), endless(CHUNK_BYTES, 100), endless(0, 100), endless(100, 1 << 40)],
    ids=["chunks", "more than said", "nothing", "said"],
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
    """An answer that goes on behind the end that it names."""
    sent = 0

    def send(wanted: pb.BlobWanted) -> Iterable[bytes]:
        nonlocal sent
        yield from answer(wanted.digest.hex(), b"x" * 100, total_bytes=200)
        for sent in range(1, MANY + 1):
            offset = 100 + (sent - 1) * CHUNK_BYTES
            yield pb.BlobChunk(offset_bytes=offset, data=bytes(CHUNK_BYTES)).SerializeToString()

    with bench(tmp_path) as device:
        device.evil.answer = send
        with pytest.raises(QuantFleetError):
            device.updater.update()
        assert device.is_unharmed
        assert sent < MANY


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


@pytest.mark.parametrize("lie", ["another offset", "the start as the rest"])
def test_a_service_that_ignores_offsets_installs_nothing_wrong(tmp_path: Path, lie: str) -> None:
    with bench(tmp_path) as device:
        device.evil.answer = lambda wanted: cut(wanted, device)
        with pytest.raises(UnreachableError):
            device.updater.update()
        device.evil.answer = lambda wanted: resumed(wanted, device, lie)
        with pytest.raises((MalformedError, DigestMismatchError)):
            device.updater.update()
        assert device.is_unharmed
        device.evil.answer = None
        assert device.updater.update().outcome is Outcome.ON_TRIAL


def test_a_service_may_send_a_blob_from_its_start_again(tmp_path: Path) -> None:
    with bench(tmp_path) as device:
        device.evil.answer = lambda wanted: cut(wanted, device)
        with pytest.raises(UnreachableError):
            device.updater.update()
        device.evil.answer = lambda wanted: answer(
            wanted.digest.hex(), device.evil.blobs[wanted.digest.hex()]
        )
        assert device.updater.update().outcome is Outcome.ON_TRIAL


def cut(wanted: pb.BlobWanted, device: Bench) -> Iterator[bytes]:
    """Send half of the largest blob, then nothing more; others whole."""
    digest = wanted.digest.hex()
    data = device.evil.blobs[digest]
    if digest != LARGEST:
        yield from answer(digest, data)
        return
    chunk = pb.BlobChunk.FromString(next(answer(digest, data)))
    chunk.data = data[: len(data) // 2]
    yield chunk.SerializeToString()


def resumed(wanted: pb.BlobWanted, device: Bench, lie: str) -> Iterator[bytes]:
    digest = wanted.digest.hex()
    data = device.evil.blobs[digest]
    if not wanted.offset_bytes:
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


@pytest.mark.parametrize("role", ["../root", "../../root", "..", "passwd"])
def test_metadata_is_kept_under_the_names_of_roles_alone(tmp_path: Path, role: str) -> None:
    files = trusted_metadata.MetadataFolder(tmp_path / "device/trust", Disk())
    with pytest.raises(MalformedError, match="no role"):
        files.write(role, b"x")
