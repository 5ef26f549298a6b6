"""The attacks of The Update Framework's specification, each refused, and each landing where its check is not there."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trust import DAY, NOW, MemoryFiles, Repository, chunked, named
from tuf.api.metadata import Metadata, Timestamp

import client.trusted_metadata as subject
import client.update_messages
from client.disk import Disk
from client.trusted_metadata import MAX_BYTES, FetchMetadata, MetadataFolder, TrustedMetadata
from quantization.errors import (
    DigestMismatchError,
    MalformedError,
    NotFoundError,
    StaleVersionError,
    UpdateRejectedError,
)
from server.signed_metadata import Lifetimes

ROLES = ("root", "timestamp", "snapshot", "targets")


@dataclass
class Recorded:
    """All files that a repository has handed out at one time."""

    files: dict[tuple[str, int], bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, repository: Repository) -> "Recorded":
        files = {}
        for role in ROLES:
            for version in range(10):
                try:
                    files[role, version] = repository.metadata.read(role, version)
                except NotFoundError:
                    continue
        return cls(files)

    def replaced(self, files: dict[tuple[str, int], bytes]) -> "Recorded":
        return Recorded({**self.files, **files})

    def fetch(self, role: str, version: int) -> Iterable[bytes]:
        if (role, version) not in self.files:
            raise NotFoundError(f"{role} {version}")
        return chunked(self.files[role, version])


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository.create(tmp_path, keys=2)
    made.publish(1, b"first")
    return made


@pytest.fixture
def files() -> MemoryFiles:
    return MemoryFiles()


@pytest.fixture
def device(repository: Repository, files: MemoryFiles) -> TrustedMetadata:
    return TrustedMetadata(files, first_root=repository.metadata.read("root", 1))


def refused(
    device: TrustedMetadata, fetch: FetchMetadata, error: type[UpdateRejectedError], match: str
) -> None:
    with pytest.raises(error, match=match):
        device.refresh(fetch, now_seconds=NOW)
    with pytest.raises(UpdateRejectedError, match="not refreshed"):
        device.manifest_of(named(1), least_version=0)


def test_a_signed_manifest_is_believed(repository: Repository, device: TrustedMetadata) -> None:
    device.refresh(repository.fetch, now_seconds=NOW)
    signed = device.manifest_of(named(1), least_version=1)
    assert signed.size_bytes == len(b"first")
    device.check_manifest(signed, b"first")


@pytest.mark.parametrize("data", [b"other", b"firs", b"first ", b""])
def test_other_bytes_are_not_the_manifest(
    repository: Repository, device: TrustedMetadata, data: bytes
) -> None:
    device.refresh(repository.fetch, now_seconds=NOW)
    with pytest.raises(DigestMismatchError):
        device.check_manifest(device.manifest_of(named(1), least_version=0), data)


def test_what_is_not_signed_for_this_class_is_refused(
    repository: Repository, device: TrustedMetadata
) -> None:
    device.refresh(repository.fetch, now_seconds=NOW)
    for name in (named(2), named(1, "x86")):
        with pytest.raises(UpdateRejectedError, match="not among the signed targets"):
            device.manifest_of(name, least_version=0)


def test_a_version_that_was_left_behind_is_refused(repository: Repository, device: TrustedMetadata) -> None:
    repository.publish(2, b"second")
    device.refresh(repository.fetch, now_seconds=NOW)
    with pytest.raises(StaleVersionError, match="older than version 2"):
        device.manifest_of(named(1), least_version=2)
    assert device.manifest_of(named(1), least_version=1)  # signed as well: only its version speaks against it


def test_nothing_new_is_fetched_when_nothing_changed(repository: Repository, device: TrustedMetadata) -> None:
    asked: list[str] = []

    def fetch(role: str, version: int) -> Iterable[bytes]:
        asked.append(role)
        return repository.fetch(role, version)

    device.refresh(fetch, now_seconds=NOW)
    asked.clear()
    device.refresh(fetch, now_seconds=NOW)
    assert asked == ["root", "timestamp"]
    assert device.manifest_of(named(1), least_version=0)


@pytest.mark.parametrize("role", ROLES)
def test_rotated_keys_are_followed(repository: Repository, device: TrustedMetadata, role: str) -> None:
    device.refresh(repository.fetch, now_seconds=NOW)
    for _ in range(2):
        repository.rotate(role)
    repository.publish(2, b"second")
    device.refresh(repository.fetch, now_seconds=NOW)
    assert device.manifest_of(named(2), least_version=1)


def test_a_rotated_key_is_good_no_more(repository: Repository, device: TrustedMetadata) -> None:
    before = Recorded.of(repository)
    repository.rotate("timestamp")
    after = Recorded.of(repository)
    attack = after.replaced({("timestamp", 0): before.files["timestamp", 0]})
    refused(device, attack.fetch, UpdateRejectedError, "signed")
    TrustedMetadata(MemoryFiles(), first_root=before.files["root", 1]).refresh(before.fetch, now_seconds=NOW)


@pytest.mark.parametrize(
    "parts", [("timestamp",), ("timestamp", "snapshot"), ("timestamp", "snapshot", "targets")]
)
def test_rolling_back_is_refused(
    repository: Repository, device: TrustedMetadata, parts: tuple[str, ...]
) -> None:
    before = Recorded.of(repository)
    repository.publish(2, b"second")
    after = Recorded.of(repository)
    attack = after.replaced({(r, v): data for (r, v), data in before.files.items() if r in parts})
    TrustedMetadata(MemoryFiles(), first_root=after.files["root", 1]).refresh(before.fetch, now_seconds=NOW)
    device.refresh(after.fetch, now_seconds=NOW)
    refused(device, attack.fetch, StaleVersionError, "version")


def test_an_older_timestamp_is_refused_though_its_targets_are_the_same(
    repository: Repository, device: TrustedMetadata
) -> None:
    before = Recorded.of(repository)
    later = NOW + 0.6 * DAY
    assert repository.metadata.refresh(repository.online, now_seconds=later)
    device.refresh(repository.fetch, now_seconds=later)
    with pytest.raises(StaleVersionError, match="timestamp is refused"):
        device.refresh(before.fetch, now_seconds=later)
    repository.device().refresh(
        before.fetch, now_seconds=later
    )  # a device that has seen nothing newer takes it


def test_an_older_timestamp_is_refused_though_it_names_the_same_snapshot(
    repository: Repository, device: TrustedMetadata
) -> None:
    before = Recorded.of(repository)
    newer = Metadata[Timestamp].from_bytes(before.files["timestamp", 0])
    newer.signed.version += 1
    newer.sign(repository.online.signer("timestamp", repository.online.key_ids("timestamp")[0]))
    device.refresh(before.replaced({("timestamp", 0): newer.to_bytes()}).fetch, now_seconds=NOW)
    refused(device, before.fetch, StaleVersionError, "timestamp is refused")


def test_freezing_ends_with_the_timestamps_lifetime(repository: Repository, device: TrustedMetadata) -> None:
    frozen = Recorded.of(repository)
    device.refresh(frozen.fetch, now_seconds=NOW + 0.9 * DAY)
    with pytest.raises(UpdateRejectedError, match=r"timestamp\.json is expired"):
        device.refresh(frozen.fetch, now_seconds=NOW + 1.1 * DAY)
    repository.metadata.refresh(repository.online, now_seconds=NOW + 1.1 * DAY)
    device.refresh(repository.fetch, now_seconds=NOW + 1.1 * DAY)


@pytest.mark.parametrize("role", ROLES)
def test_every_role_expires(tmp_path: Path, role: str) -> None:
    lifetimes = Lifetimes(**{**dict.fromkeys(ROLES, 10.0), role: 1.0})
    repository = Repository.create(tmp_path, lifetimes=lifetimes)
    repository.device().refresh(repository.fetch, now_seconds=NOW + 0.9 * DAY)
    with pytest.raises(UpdateRejectedError, match=rf"{role}.* expired"):
        repository.device().refresh(repository.fetch, now_seconds=NOW + 1.1 * DAY)


def test_parts_of_different_times_do_not_mix(repository: Repository, device: TrustedMetadata) -> None:
    before = Recorded.of(repository)
    repository.publish(2, b"second")
    after = Recorded.of(repository)
    newest = json.loads(after.files["timestamp", 0])["signed"]["meta"]["snapshot.json"]["version"]
    old_snapshot = after.replaced({("snapshot", newest): before.files["snapshot", 0]})
    refused(device, old_snapshot.fetch, DigestMismatchError, "snapshot is refused")
    newest = json.loads(after.files["snapshot", 0])["signed"]["meta"]["targets.json"]["version"]
    old_targets = after.replaced({("targets", newest): before.files["targets", 0]})
    refused(device, old_targets.fetch, StaleVersionError, "targets is refused")
    device.refresh(after.fetch, now_seconds=NOW)


def test_another_signer_is_refused(device: TrustedMetadata, tmp_path: Path) -> None:
    evil = Repository.create(tmp_path / "evil")
    evil.publish(1, b"evil")
    refused(device, evil.fetch, UpdateRejectedError, "signed")
    own_trust = TrustedMetadata(MemoryFiles(), first_root=evil.metadata.read("root", 1))
    own_trust.refresh(evil.fetch, now_seconds=NOW)  # all that is wrong with it is who signed


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_files_of_another_signer_are_refused_one_by_one(
    repository: Repository, device: TrustedMetadata, tmp_path: Path, role: str
) -> None:
    evil = Repository.create(tmp_path / "evil")
    evil.publish(1, b"evil")
    theirs = Recorded.of(evil).files
    attack = Recorded.of(repository).replaced({key: data for key, data in theirs.items() if key[0] == role})
    error = DigestMismatchError if role == "snapshot" else UpdateRejectedError
    refused(device, attack.fetch, error, f"{role} is refused")


def test_one_signature_of_two_is_too_few(repository: Repository, device: TrustedMetadata) -> None:
    recorded = Recorded.of(repository)
    key = max(key for key in recorded.files if key[0] == "targets")
    content = json.loads(recorded.files[key])
    for signatures in (content["signatures"][:1], [], [content["signatures"][0]] * 2):
        fewer = json.dumps({**content, "signatures": signatures}).encode()
        refused(device, recorded.replaced({key: fewer}).fetch, UpdateRejectedError, "targets is refused")
    same = json.dumps(content).encode()
    device.refresh(recorded.replaced({key: same}).fetch, now_seconds=NOW)


def test_a_new_root_needs_the_old_keys(repository: Repository, device: TrustedMetadata) -> None:
    repository.rotate("root")
    recorded = Recorded.of(repository)
    content = json.loads(recorded.files["root", 2])
    old = set(json.loads(recorded.files["root", 1])["signed"]["roles"]["root"]["keyids"])
    new_alone = [s for s in content["signatures"] if s["keyid"] not in old]
    old_alone = [s for s in content["signatures"] if s["keyid"] in old]
    for signatures in (new_alone, old_alone):
        forged = json.dumps({**content, "signatures": signatures}).encode()
        refused(
            device, recorded.replaced({("root", 2): forged}).fetch, UpdateRejectedError, "root is refused"
        )
    device.refresh(recorded.fetch, now_seconds=NOW)


@pytest.mark.parametrize("role", ["root", "snapshot"])
def test_no_root_is_skipped(repository: Repository, device: TrustedMetadata, role: str) -> None:
    repository.rotate(role)  # of snapshot: the root's own keys stay, and its version alone speaks against it
    repository.rotate(role)
    recorded = Recorded.of(repository)
    attack = recorded.replaced({("root", 2): recorded.files["root", 3]})
    refused(device, attack.fetch, UpdateRejectedError, "root is refused")
    device.refresh(recorded.fetch, now_seconds=NOW)


@pytest.mark.parametrize("role", ROLES)
def test_data_without_an_end_is_left_in_the_middle(
    repository: Repository, device: TrustedMetadata, role: str
) -> None:
    taken = 0

    def fetch(asked: str, version: int) -> Iterator[bytes] | Iterable[bytes]:
        return endless() if asked == role else repository.fetch(asked, version)

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while taken < 100_000_000:
            taken += 1 << 16
            yield bytes(1 << 16)

    refused(device, fetch, UpdateRejectedError, f"{role}.* has more than")
    assert taken <= MAX_BYTES[role] + (2 << 16)


def test_a_service_that_always_has_a_newer_root_is_left(
    repository: Repository, device: TrustedMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        repository.rotate("root")
    monkeypatch.setattr(subject, "MAX_ROOT_ROTATIONS", 3)
    refused(device, repository.fetch, UpdateRejectedError, "more than 3 new roots")
    device.refresh(repository.fetch, now_seconds=NOW)  # the roots so far are kept


def test_an_oversized_manifest_is_refused_though_it_is_signed(
    repository: Repository, device: TrustedMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.signed_metadata.MAX_MANIFEST_BYTES", 1 << 30)
    repository.publish(2, bytes((1 << 20) + 1))
    device.refresh(repository.fetch, now_seconds=NOW)
    with pytest.raises(UpdateRejectedError, match="1048577 bytes"):
        device.manifest_of(named(2), least_version=0)
    monkeypatch.setattr(subject, "MAX_MANIFEST_BYTES", 1 << 30)
    assert device.manifest_of(named(2), least_version=0).size_bytes == (1 << 20) + 1


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b"[" * 15_000, b'{"signed": 1e999}', bytes(100), b"\xff" * 9]
)
@pytest.mark.parametrize("role", ROLES)
def test_what_is_no_metadata_is_refused(
    repository: Repository, device: TrustedMetadata, role: str, data: bytes
) -> None:
    recorded = Recorded.of(repository)
    attack = recorded.replaced(
        {("root", 2): data}
        if role == "root"
        else dict.fromkeys((key for key in recorded.files if key[0] == role), data)
    )
    refused(device, attack.fetch, UpdateRejectedError, f"{role} (is refused|has more than)")


@given(st.sampled_from(ROLES[1:]), st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_changes_nothing_that_is_believed(
    repository: Repository, role: str, place: int, change: int
) -> None:
    recorded = Recorded.of(repository)
    changed = {}
    for key, data in recorded.files.items():
        if key[0] == role:
            place %= len(data)
            changed[key] = data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]
    device = repository.device()
    try:
        device.refresh(recorded.replaced(changed).fetch, now_seconds=NOW)
    except UpdateRejectedError:
        return
    device.check_manifest(device.manifest_of(named(1), least_version=0), b"first")


def test_what_was_verified_before_a_failure_is_kept(
    repository: Repository, device: TrustedMetadata, files: MemoryFiles
) -> None:
    repository.rotate("root")

    def fetch(role: str, version: int) -> Iterable[bytes]:
        if role == "targets":
            raise NotFoundError("gone")
        return repository.fetch(role, version)

    with pytest.raises(NotFoundError):
        device.refresh(fetch, now_seconds=NOW)
    assert files.files["root"] == repository.metadata.read("root", 2)
    assert set(files.files) == {"root", "timestamp", "snapshot"}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("damage", [lambda _: b"", lambda data: data[:-9], lambda _: b"\0" * 50])
def test_damaged_files_of_the_device_are_fetched_anew(
    repository: Repository,
    device: TrustedMetadata,
    files: MemoryFiles,
    role: str,
    damage: Callable[[bytes], bytes],
) -> None:
    repository.rotate("root")
    device.refresh(repository.fetch, now_seconds=NOW)
    whole = dict(files.files)
    files.files[role] = damage(files.files[role])
    device.refresh(repository.fetch, now_seconds=NOW)
    assert files.files == whole


def test_files_of_a_device_survive_a_restart(repository: Repository, tmp_path: Path) -> None:
    first_root = repository.metadata.read("root", 1)
    before = Recorded.of(repository)
    repository.rotate("root")
    repository.publish(2, b"second")
    folder = MetadataFolder(tmp_path / "trust", Disk())
    TrustedMetadata(folder, first_root=first_root).refresh(repository.fetch, now_seconds=NOW)
    restarted = TrustedMetadata(MetadataFolder(tmp_path / "trust", Disk()), first_root=first_root)
    refused(restarted, before.fetch, StaleVersionError, "version")
    assert sorted(path.name for path in (tmp_path / "trust").iterdir()) == [
        "root.json", "snapshot.json", "targets.json", "timestamp.json",
    ]  # fmt: skip


@pytest.mark.parametrize("role", ["../evil", "", "root/../../evil", "mirrors"])
def test_no_role_becomes_a_path(tmp_path: Path, role: str) -> None:
    folder = MetadataFolder(tmp_path / "trust", Disk())
    with pytest.raises(MalformedError, match="no role"):
        folder.write(role, b"x")
    with pytest.raises(MalformedError, match="no role"):
        folder.read(role)
    assert list(tmp_path.rglob("*.json")) == []


def test_a_file_larger_than_its_role_allows_is_not_read(tmp_path: Path) -> None:
    folder = MetadataFolder(tmp_path / "trust", Disk())
    (tmp_path / "trust" / "timestamp.json").write_bytes(bytes(MAX_BYTES["timestamp"] + 1))
    assert folder.read("timestamp") is None


def test_files_are_read_from_a_network_up_to_the_size_that_is_trusted() -> None:
    assert client.update_messages.MAX_METADATA_BYTES == MAX_BYTES
