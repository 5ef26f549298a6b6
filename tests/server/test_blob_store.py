import os
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from artifacts import example

from quantization.blob import content_digest, encode_blob
from quantization.errors import ConfigurationError, DigestMismatchError, MalformedError, NotFoundError
from server.blob_store import BlobStore

CONTENT = b"some content"
DIGEST, STORED = content_digest(CONTENT), encode_blob(CONTENT)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs" if request.param == "folder" else f"memory://{uuid4().hex}")


def test_blobs_of_an_artifact_come_back_as_they_were_put(store: BlobStore) -> None:
    artifact = example().artifact()
    for digest, stored in artifact.blobs.items():
        assert not store.has(digest)
        store.put(digest, stored)
        assert store.has(digest)
    assert store.digests() == artifact.blobs.keys()
    assert {digest: store.get(digest) for digest in store.digests()} == dict(artifact.blobs)


def test_an_empty_store_has_nothing(store: BlobStore) -> None:
    assert store.digests() == frozenset()
    assert not store.has(DIGEST)
    with pytest.raises(NotFoundError, match=DIGEST):
        store.get(DIGEST)


def test_content_that_is_not_what_its_name_says_is_not_put(store: BlobStore) -> None:
    with pytest.raises(DigestMismatchError):
        store.put(DIGEST, encode_blob(b"other content"))
    with pytest.raises(MalformedError):
        store.put(DIGEST, STORED[:-1])
    assert store.digests() == frozenset()


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "0" * 63, DIGEST.upper()])
def test_names_that_are_no_digests_are_refused(store: BlobStore, digest: str) -> None:
    for use in (store.get, store.has, lambda name: store.put(name, STORED)):
        with pytest.raises(MalformedError, match="not a digest"):
            use(digest)


@pytest.mark.parametrize("damage", [b"", STORED[:-1], encode_blob(b"evil content")])
def test_a_damaged_blob_is_noticed_when_it_is_read(tmp_path: Path, damage: bytes) -> None:
    store = BlobStore(tmp_path)
    store.put(DIGEST, STORED)
    (tmp_path / DIGEST[:2] / DIGEST).write_bytes(damage)
    with pytest.raises(DigestMismatchError):
        store.get(DIGEST)


def test_a_damaged_blob_can_be_put_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(DIGEST, STORED)
    (tmp_path / DIGEST[:2] / DIGEST).write_bytes(STORED[:-1])
    store.put(DIGEST, STORED)
    assert store.get(DIGEST) == STORED


def test_a_blob_that_is_held_is_not_written_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(DIGEST, STORED)
    path = tmp_path / DIGEST[:2] / DIGEST
    before = path.stat().st_ino
    store.put(DIGEST, STORED)
    assert path.stat().st_ino == before


def test_a_put_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = BlobStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match=r"cannot be written.*No space left on device"):
        store.put(DIGEST, STORED)
    assert not store.has(DIGEST)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_many_may_put_the_same_blob_at_the_same_time(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    threads = [threading.Thread(target=store.put, args=(DIGEST, STORED)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(DIGEST) == STORED
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [DIGEST]


def test_a_store_survives_a_restart(tmp_path: Path) -> None:
    BlobStore(str(tmp_path)).put(DIGEST, STORED)
    assert BlobStore(f"file://{tmp_path}").get(DIGEST) == STORED


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket", "/dev/null/blobs"])
def test_a_place_that_cannot_be_opened_is_a_clear_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        BlobStore(url)
