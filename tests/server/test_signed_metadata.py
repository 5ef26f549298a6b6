"""A repository in real files: publishing, rotating, renewing."""

import hashlib
import json
from pathlib import Path

import pytest
from trust import DAY, NOW, Repository, named

from quantization.errors import ConfigurationError, NotFoundError
from quantization.manifest import MAX_MANIFEST_BYTES
from server.keys import KeyFolder
from server.signed_metadata import Lifetimes, SignedMetadata


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path)


def signed(repository: Repository, role: str, version: int = 0) -> dict[str, object]:
    found: dict[str, object] = json.loads(repository.metadata.read(role, version))["signed"]
    return found


def test_online_and_offline_keys_lie_apart(repository: Repository) -> None:
    def roles(folder: KeyFolder) -> set[str]:
        return {path.name.split(".")[0] for path in folder.path.iterdir()}

    assert roles(repository.offline) == {"root", "targets"}
    assert roles(repository.online) == {"snapshot", "timestamp"}
    assert not [path for path in repository.metadata.path.iterdir() if path.suffix != ".json"]


def test_a_published_manifest_is_a_target(repository: Repository) -> None:
    repository.publish(1, b"manifest")
    assert repository.metadata.targets() == {named(1): hashlib.sha256(b"manifest").hexdigest()}
    assert [signed(repository, role)["version"] for role in ("root", "targets", "snapshot", "timestamp")] == [
        1, 2, 2, 2,
    ]  # fmt: skip


def test_a_rollout_signs_the_way_back_too(repository: Repository) -> None:
    repository.publish(1, b"old")
    both = {named(2): b"new", named(3): b"old"}
    repository.metadata.publish(both, offline=repository.offline, online=repository.online, now_seconds=NOW)
    targets = repository.metadata.targets()
    assert targets[named(3)] == targets[named(1)] != targets[named(2)]


def test_a_name_keeps_its_content(repository: Repository) -> None:
    repository.publish(1, b"manifest")
    repository.publish(1, b"manifest")
    with pytest.raises(ConfigurationError, match="newer version"):
        repository.publish(1, b"other")


def test_what_is_withdrawn_is_no_target(repository: Repository) -> None:
    repository.publish(1, b"old")
    repository.metadata.publish(
        {named(2): b"new"},
        offline=repository.offline,
        online=repository.online,
        now_seconds=NOW,
        withdrawn=[named(1)],
    )
    assert set(repository.metadata.targets()) == {named(2)}


@pytest.mark.parametrize("size", [0, MAX_MANIFEST_BYTES + 1])
def test_a_manifest_that_no_device_reads_is_not_signed(repository: Repository, size: int) -> None:
    with pytest.raises(ConfigurationError, match="are allowed"):
        repository.publish(1, bytes(size))


def test_publishing_needs_the_offline_key(repository: Repository, tmp_path: Path) -> None:
    before = repository.metadata.read("timestamp")
    repository.offline = KeyFolder(tmp_path / "empty")
    with pytest.raises(NotFoundError, match=r"targets\.[0-9a-f]{16}\.pem is not in"):
        repository.publish(1, b"manifest")
    assert repository.metadata.read("timestamp") == before


def test_renewing_needs_online_keys_alone_and_only_when_it_is_due(repository: Repository) -> None:
    metadata, online = repository.metadata, repository.online
    assert not metadata.refresh(online, now_seconds=NOW + 0.4 * DAY)
    assert metadata.refresh(online, now_seconds=NOW + 0.6 * DAY)
    assert not metadata.refresh(online, now_seconds=NOW + 0.6 * DAY)
    assert signed(repository, "timestamp")["version"] == 2
    assert signed(repository, "targets")["version"] == 1


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_a_rotated_role_has_other_keys_and_a_new_root_names_them(repository: Repository, role: str) -> None:
    def keys(version: int) -> list[str]:
        roles = signed(repository, "root", version)["roles"]
        assert isinstance(roles, dict)
        return list(roles[role]["keyids"])

    repository.rotate(role)
    assert not set(keys(1)) & set(keys(2))
    repository.publish(1, b"manifest")
    device = repository.device()
    device.refresh(repository.fetch, now_seconds=NOW)
    assert device.manifest_of(named(1), least_version=0).size_bytes == 8


def test_a_new_root_is_signed_by_old_and_new_keys(repository: Repository) -> None:
    repository.rotate("root")
    signatures = json.loads(repository.metadata.read("root", 2))["signatures"]
    old, new = ({*signed(repository, "root", v)["roles"]["root"]["keyids"]} for v in (1, 2))  # type: ignore[index]
    assert {s["keyid"] for s in signatures} == old | new


def test_more_keys_can_be_asked_for(repository: Repository) -> None:
    repository.metadata.rotate(
        "targets", offline=repository.offline, online=repository.online, now_seconds=NOW, keys=3
    )
    repository.publish(1, b"manifest")
    assert len(json.loads(repository.metadata.read("targets"))["signatures"]) == 3


def test_a_repository_is_not_made_twice(repository: Repository) -> None:
    with pytest.raises(ConfigurationError, match="already"):
        repository.metadata.create(repository.offline, repository.online, now_seconds=NOW)


def test_a_repository_whose_making_was_cut_off_is_made_anew(repository: Repository) -> None:
    (repository.metadata.path / "timestamp.json").unlink()  # it is put last
    assert not repository.metadata.is_made
    repository.metadata.create(repository.offline, repository.online, now_seconds=NOW)
    repository.publish(1, b"manifest")
    device = repository.device()
    device.refresh(repository.fetch, now_seconds=NOW)
    assert device.manifest_of(named(1), least_version=0).size_bytes == 8


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_a_rotation_that_was_cut_off_is_ended_by_the_next_refresh(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    device = repository.device()
    with monkeypatch.context() as patch:
        patch.setattr(SignedMetadata, "_sign_online", lambda *_: None)  # it died after the new root
        repository.rotate(role)
    assert repository.metadata.refresh(repository.online, now_seconds=NOW)
    assert not repository.metadata.refresh(repository.online, now_seconds=NOW)
    device.refresh(repository.fetch, now_seconds=NOW)


def test_files_that_nobody_asks_for_are_forgotten_but_every_root_stays(repository: Repository) -> None:
    for version in range(1, 20):
        repository.publish(version, b"manifest")
    repository.rotate("timestamp")
    kept = sorted(path.name for path in repository.metadata.path.glob("*.targets.json"))
    assert len(kept) == 16
    assert len(list(repository.metadata.path.glob("*.snapshot.json"))) == 16
    assert "20.targets.json" in kept
    assert repository.metadata.read("root", 1)
    assert repository.metadata.read("root", 2)
    with pytest.raises(NotFoundError):
        repository.metadata.read("targets", 1)
    device = repository.device()
    device.refresh(repository.fetch, now_seconds=NOW)
    assert len(repository.metadata.targets()) == 19


@pytest.mark.parametrize("role", ["../offline/root", "../../etc/passwd", "1.root", "", "mirrors"])
def test_a_role_is_never_a_path(repository: Repository, role: str) -> None:
    with pytest.raises(NotFoundError, match="no metadata of role"):
        repository.metadata.read(role)
    with pytest.raises(ConfigurationError, match="no role"):
        repository.rotate(role)


def test_versions_that_are_not_there_are_not_found(repository: Repository) -> None:
    for role in ("root", "targets", "snapshot", "timestamp"):
        assert repository.metadata.read(role, 1) == repository.metadata.read(role)
        for version in (2, -1):
            with pytest.raises(NotFoundError):
                repository.metadata.read(role, version)


def test_a_folder_without_a_repository_is_not_found(tmp_path: Path) -> None:
    empty = SignedMetadata(tmp_path / "nothing")
    with pytest.raises(NotFoundError):
        empty.read("root")
    with pytest.raises(NotFoundError):
        empty.targets()


def test_damaged_metadata_is_named(repository: Repository) -> None:
    (repository.metadata.path / "1.targets.json").write_bytes(b"{}")
    with pytest.raises(ConfigurationError, match=r"targets in .* is damaged"):
        repository.metadata.targets()


def test_lifetimes_lie_in_the_future() -> None:
    with pytest.raises(ConfigurationError, match="lifetimes"):
        Lifetimes(timestamp=0)
