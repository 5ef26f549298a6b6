import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from artifacts import example
from structlog.testing import capture_logs

from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.bundle import parts_between, read_bundle
from quantization.delta import Encoding, apply_delta
from quantization.errors import ConfigurationError, MalformedError, NotFoundError
from server import delta_store
from server.blob_store import BlobStore
from server.delta_store import DeltaStore

OLD = np.random.default_rng(0).integers(-9, 9, 20_000).astype(np.int8).tobytes()
NEW = OLD[:100] + b"moved" + OLD[105:]
OTHER = np.random.default_rng(1).bytes(20_000)
NAMES = {content: content_digest(content) for content in (OLD, NEW, OTHER)}


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "deltas") if request.param == "folder" else f"memory://{uuid4().hex}"


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "blobs")
    for content, name in NAMES.items():
        store.put(name, encode_blob(content))
    return store


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by one whenever a difference is computed."""
    calls: list[Any] = []
    make_deltas = delta_store.make_deltas

    def counting(*arguments: Any) -> Any:
        calls.append(arguments)
        return make_deltas(*arguments)

    monkeypatch.setattr(delta_store, "make_deltas", counting)
    return calls


def test_a_difference_leads_from_one_content_to_the_other(blobs: BlobStore, url: str) -> None:
    (delta,) = DeltaStore(blobs, url).deltas(NAMES[OLD], NAMES[NEW])
    assert delta.encoding == Encoding.INT8_SUB_ZSTD
    assert len(delta.payload) < 100
    assert apply_delta(delta.payload, OLD, NAMES[NEW]) == NEW


def test_differences_are_computed_once_even_across_restarts(
    blobs: BlobStore, url: str, made: list[Any]
) -> None:
    first = DeltaStore(blobs, url).deltas(NAMES[OLD], NAMES[NEW])
    assert DeltaStore(blobs, url).deltas(NAMES[OLD], NAMES[NEW]) == first
    assert len(made) == 1
    DeltaStore(blobs, url).deltas(NAMES[NEW], NAMES[OLD])
    assert len(made) == 2


def test_that_no_difference_pays_is_remembered_too(blobs: BlobStore, url: str, made: list[Any]) -> None:
    for _ in range(2):
        assert DeltaStore(blobs, url).deltas(NAMES[OLD], NAMES[OTHER]) == ()
    assert len(made) == 1


def test_many_who_ask_at_once_wait_for_one_computation(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, gate = [], threading.Event()
    make_deltas = delta_store.make_deltas

    def slow(*arguments: Any) -> Any:
        calls.append(arguments)
        gate.wait(5)
        return make_deltas(*arguments)

    monkeypatch.setattr(delta_store, "make_deltas", slow)
    store, results = DeltaStore(blobs, tmp_path / "deltas"), []
    threads = [
        threading.Thread(target=lambda: results.append(store.deltas(NAMES[OLD], NAMES[NEW])))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(results) == 8
    assert len({result[0].payload for result in results}) == 1


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_damaged_record_is_made_anew(blobs: BlobStore, tmp_path: Path, made: list[Any], cut: int) -> None:
    folder = tmp_path / "deltas"
    first = DeltaStore(blobs, folder).deltas(NAMES[OLD], NAMES[NEW])
    (record,) = (path for path in folder.rglob("*") if path.is_file())
    record.write_bytes(record.read_bytes()[:cut])
    for _ in range(2):
        assert DeltaStore(blobs, folder).deltas(NAMES[OLD], NAMES[NEW]) == first
    assert len(made) == 2


def test_contents_that_are_not_there_have_no_difference(blobs: BlobStore, url: str) -> None:
    store = DeltaStore(blobs, url)
    for base, target in (("0" * 64, NAMES[NEW]), (NAMES[OLD], "0" * 64)):
        for _ in range(2):
            with pytest.raises(NotFoundError):
                store.deltas(base, target)
    with pytest.raises(MalformedError, match="not a digest"):
        store.deltas("../../etc", NAMES[NEW])


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket", "/dev/null/deltas"])
def test_a_place_that_cannot_be_opened_is_a_clear_error(blobs: BlobStore, url: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        DeltaStore(blobs, url)


def test_a_store_that_cannot_be_written_gives_differences_and_says_so(
    blobs: BlobStore, tmp_path: Path, made: list[Any]
) -> None:
    store = DeltaStore(blobs, tmp_path / "deltas")
    (tmp_path / "deltas" / NAMES[NEW][:2]).write_bytes(b"a file where a folder belongs")
    with capture_logs() as logs:
        first = store.deltas(NAMES[OLD], NAMES[NEW])
        assert store.deltas(NAMES[OLD], NAMES[NEW]) == first
    assert first
    assert len(made) == 2
    assert [event["event"] for event in logs] == ["delta_not_kept"] * 2


TUNED = [example().artifact(number, width=4.0 - number, bits=8 - number) for number in range(2)]
PAIR = [(artifact.manifest.digest(), artifact.manifest) for artifact in TUNED]


def test_a_bundle_is_made_once(blobs: BlobStore, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for artifact in TUNED:
        for digest, stored in artifact.blobs.items():
            blobs.put(digest, stored)
    made = DeltaStore(blobs, url).bundle(PAIR[0], PAIR[1])
    parts = parts_between(PAIR[0][1], PAIR[1][1])
    found = dict(read_bundle(made, parts, lambda digest: decode_blob_content(blobs.get(digest), digest)))
    assert found.keys() == TUNED[1].blobs.keys() - TUNED[0].blobs.keys()
    monkeypatch.setattr(delta_store, "make_bundle", lambda *_: pytest.fail("it is made again"))
    assert DeltaStore(blobs, url).bundle(PAIR[0], PAIR[1]) == made


def test_there_is_no_bundle_of_nothing(blobs: BlobStore, url: str) -> None:
    with pytest.raises(NotFoundError, match="no bundle of 0 bytes"):
        DeltaStore(blobs, url).bundle(PAIR[0], PAIR[0])
    with pytest.raises(NotFoundError, match="not in"):  # its blobs are not there
        DeltaStore(blobs, url).bundle(PAIR[0], PAIR[1])


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def chain(blobs: BlobStore, length: int) -> list[str]:
    """Store contents whose differences take some 2 KB each; return their digests."""
    contents = [bytes(np.random.default_rng(9).integers(0, 256, 20_000, np.uint8))]
    for seed in range(length - 1):
        fresh = np.random.default_rng(seed).bytes(2_000)
        contents.append(contents[-1][:50] + fresh + contents[-1][2_050:])
    for content in contents:
        blobs.put(content_digest(content), encode_blob(content))
    return [content_digest(content) for content in contents]


def test_differences_that_were_used_longest_ago_make_room(blobs: BlobStore, tmp_path: Path) -> None:
    names, folder = chain(blobs, 6), tmp_path / "deltas"
    store = DeltaStore(blobs, folder, max_bytes=9_000)
    for number in range(3):
        store.deltas(names[number], names[number + 1])
        os.utime(record_of(folder, names, number), (number, number))
    DeltaStore(blobs, folder).deltas(names[0], names[1])  # another process wants the first one
    for number in range(3, 5):
        store.deltas(names[number], names[number + 1])
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 9_000
    assert record_of(folder, names, 0).exists()
    assert not record_of(folder, names, 1).exists()
    assert record_of(folder, names, 4).exists()
    assert store.deltas(names[1], names[2])  # computed anew


def test_a_folder_that_is_too_large_already_is_looked_at_first(blobs: BlobStore, url: str) -> None:
    names = chain(blobs, 4)
    for number in range(2):
        DeltaStore(blobs, url).deltas(names[number], names[number + 1])
    files, root = fsspec.core.url_to_fs(url)
    before = sum(files.size(path) for path in files.find(root))
    DeltaStore(blobs, url, max_bytes=before).deltas(names[2], names[3])
    assert sum(files.size(path) for path in files.find(root)) <= before


def test_differences_are_served_though_no_room_is_for_them(blobs: BlobStore, tmp_path: Path) -> None:
    store = DeltaStore(blobs, tmp_path / "deltas", max_bytes=1)
    (delta,) = store.deltas(NAMES[OLD], NAMES[NEW])
    assert apply_delta(delta.payload, OLD, NAMES[NEW]) == NEW
    assert not files_of(tmp_path / "deltas")


def test_processes_that_remove_at_the_same_time_do_not_hinder_each_other(
    blobs: BlobStore, tmp_path: Path
) -> None:
    names = chain(blobs, 8)
    stores = [DeltaStore(blobs, tmp_path / "deltas", max_bytes=3_000) for _ in range(4)]
    pairs = list(pairwise(names))
    with capture_logs() as logs, ThreadPoolExecutor(4) as threads:
        for results in threads.map(lambda store: [store.deltas(*pair) for pair in pairs], stores):
            assert all(len(found) >= 1 for found in results)
    assert "deltas_not_removed" not in {entry["event"] for entry in logs}


def record_of(folder: Path, names: list[str], number: int) -> Path:
    target = names[number + 1]
    return folder / target[:2] / f"{target}-{names[number]}"
