"""Blobs and differences in an object store: a real S3 protocol server on this machine."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.config import conf
from shop import make_shop, operator, served

from quantization.blob import content_digest, encode_blob
from quantization.errors import DigestMismatchError, NotFoundError, UnreachableError
from server.blob_store import BlobStore
from server.delta_store import DeltaStore

pytestmark = pytest.mark.slow

OLD, NEW = bytes(range(256)) * 64, bytes(range(256)) * 63 + bytes(256)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Yield the URL of an empty bucket."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    before = conf.get("s3")
    conf["s3"] = {
        "key": "nobody",
        "secret": "nothing",
        "endpoint_url": f"http://127.0.0.1:{port}",
        "client_kwargs": {"region_name": "us-east-1"},
    }
    fsspec.filesystem("s3").call_s3("create_bucket", Bucket="quantfleet")
    try:
        yield "s3://quantfleet"
    finally:
        server.stop()
        conf.pop("s3")
        if before is not None:
            conf["s3"] = before


def put(store: BlobStore, content: bytes) -> str:
    digest = content_digest(content)
    store.put(digest, encode_blob(content))
    return digest


def test_blobs_are_kept_and_verified(bucket: str) -> None:
    store, other = BlobStore(f"{bucket}/blobs"), BlobStore(f"{bucket}/blobs")
    digest = content_digest(OLD)
    assert not other.has(digest)
    assert put(store, OLD) == digest
    assert other.has(digest)  # no listing is remembered
    assert other.get(digest) == encode_blob(OLD)
    assert other.digests() == {digest}
    assert other.size_bytes() == len(encode_blob(OLD))
    with pytest.raises(NotFoundError):
        store.get("ab" * 32)
    path = f"{bucket}/blobs/{digest[:2]}/{digest}"
    fsspec.filesystem("s3").pipe_file(path, encode_blob(NEW))
    with pytest.raises(DigestMismatchError):
        store.get(digest)
    put(store, OLD)  # what is damaged is put anew
    assert store.get(digest) == encode_blob(OLD)


def test_differences_are_computed_once_for_all_processes(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = BlobStore(f"{bucket}/pairs")
    base, target = put(blobs, OLD), put(blobs, NEW)
    first = DeltaStore(blobs, f"{bucket}/deltas").deltas(base, target)
    assert first
    monkeypatch.setattr("server.delta_store.make_deltas", None)  # whoever asks again finds the record
    assert DeltaStore(blobs, f"{bucket}/deltas").deltas(base, target) == first


def test_an_artifact_in_a_bucket_is_published(bucket: str, tmp_path: Path) -> None:
    shop = make_shop(tmp_path, blob_folder=f"{bucket}/served", delta_folder=f"{bucket}/differences")
    with served(shop.settings) as addresses, operator(shop, addresses.address) as admin:
        assert admin.publish(shop.manifests[0], None, now_seconds=0).rollout.version == 1
        assert admin.publish(shop.manifests[1], None, now_seconds=0).rollout.version == 2
    shop.stores.engine.dispose()
    assert not (tmp_path / "blobs").exists()


def test_a_store_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {"key": "a", "secret": "b", "endpoint_url": "http://127.0.0.1:1"}
    quickly = {
        "config_kwargs": {"retries": {"max_attempts": 0}},
        "client_kwargs": {"region_name": "us-east-1"},
    }
    monkeypatch.setitem(conf, "s3", {**nowhere, **quickly})
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    store = BlobStore("s3://quantfleet/blobs")
    with pytest.raises(UnreachableError, match="cannot be read now"):
        store.get("ab" * 32)
