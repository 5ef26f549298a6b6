from dataclasses import replace
from pathlib import Path

import pytest
from artifacts import example

from quantization.artifact import Artifact
from quantization.blob import content_digest, encode_blob
from quantization.errors import NotFoundError
from quantization.manifest import BlobRef
from server.blob_store import BlobStore
from server.served_contents import Catalog, ServedContents

ARTIFACTS = [example().artifact(number, width=4.0 - number) for number in range(3)]  # oldest first
NEWEST_FIRST = [(a.manifest.digest(), a.manifest) for a in reversed(ARTIFACTS)]


def file_of(artifact: Artifact, location: str) -> str:
    return next(ref.digest for ref in artifact.manifest.stages[0].files if ref.location == location)


def test_everything_that_a_manifest_names_is_served_and_the_manifest_itself() -> None:
    contents = ServedContents(NEWEST_FIRST[:1])
    assert all(digest in contents for digest in ARTIFACTS[2].blobs)
    stage = ARTIFACTS[2].manifest.stages[0]
    own = {
        name: BlobRef("", content_digest(name.encode()), "bytes", (9,), 8, 17)
        for name in ("plain", "normalizing", "self_test")
    }
    tested = replace(ARTIFACTS[2].manifest, stages=(replace(stage, **own),))
    assert all(digest in ServedContents([("0" * 64, tested)]) for digest in tested.blobs)
    assert ARTIFACTS[2].manifest.digest() in contents
    assert ARTIFACTS[0].manifest.digest() not in contents
    assert file_of(ARTIFACTS[0], "ranges") not in contents


def test_the_base_is_the_newest_version_of_the_same_thing_that_the_device_holds() -> None:
    contents = ServedContents(NEWEST_FIRST)
    for digests in (
        [artifact.manifest.digest() for artifact in ARTIFACTS],
        [file_of(artifact, "ranges") for artifact in ARTIFACTS],
    ):
        oldest, middle, newest = digests
        assert contents.base_for(newest, {oldest, middle}) == middle
        assert contents.base_for(newest, {oldest}) == oldest
        assert contents.base_for(oldest, {newest, middle}) == newest
        assert contents.base_for(newest, {newest}) is None
        assert contents.base_for(newest, ()) is None


def test_contents_of_other_slots_are_no_base() -> None:
    contents = ServedContents(NEWEST_FIRST)
    held = {ARTIFACTS[1].manifest.digest(), file_of(ARTIFACTS[1], "channels")}
    assert contents.base_for(file_of(ARTIFACTS[2], "ranges"), held) is None
    assert contents.base_for("0" * 64, held) is None


def test_a_manifest_stands_for_everything_that_it_names() -> None:
    contents = ServedContents(NEWEST_FIRST)
    middle, newest = ARTIFACTS[1], ARTIFACTS[2]
    whole = frozenset({middle.manifest.digest()})
    assert contents.base_for(file_of(newest, "ranges"), (), whole) == file_of(middle, "ranges")
    assert contents.base_for(newest.manifest.digest(), (), whole) == middle.manifest.digest()
    assert contents.base_for(newest.manifest.digest(), (), frozenset({"0" * 64})) is None


def test_the_catalog_reads_each_manifest_once(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    digests = []
    for artifact in ARTIFACTS:
        blobs.put(artifact.manifest.digest(), encode_blob(artifact.manifest.to_bytes()))
        digests.append(artifact.manifest.digest())
    catalog = Catalog(blobs)
    contents = catalog.contents(digests)
    assert all(digest in contents for artifact in ARTIFACTS for digest in artifact.blobs)
    assert catalog.contents(digests) is contents
    assert catalog.contents(digests[:1]) is not contents
    with pytest.raises(NotFoundError):
        catalog.contents(["0" * 64])
