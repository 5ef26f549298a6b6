from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dying_disk import DyingDisk, deaths
from memory_updates import MemoryUpdates

from client.fetching import fetch_blobs
from client.partial import PartialBlobs
from client.state import StateFolder
from client.transport import Payload, Piece, Want
from quantization.blob import HEADER_BYTES, content_digest, encode_blob
from quantization.delta import Encoding
from quantization.errors import DigestMismatchError, MalformedError, NotFoundError, UnreachableError

CHUNK = 1000
CONTENTS = [np.random.default_rng(seed).bytes(size) for seed, size in enumerate((0, 10, 2500, 8000))]
BLOBS = {content_digest(content): encode_blob(content) for content in CONTENTS}
SIZES = {content_digest(content): len(content) for content in CONTENTS}
LARGEST = content_digest(CONTENTS[-1])


def service(**blobs: bytes) -> MemoryUpdates:
    updates = MemoryUpdates(CHUNK)
    updates.blobs = {**BLOBS, **blobs}
    return updates


def partial_of(state: StateFolder) -> PartialBlobs:
    return PartialBlobs(state.path / "partial", state.disk)


def fetch(state: StateFolder, updates: MemoryUpdates) -> int:
    return fetch_blobs(updates, state, partial_of(state), SIZES)


def test_what_is_missing_is_fetched_once(tmp_path: Path) -> None:
    updates = service()
    with StateFolder(tmp_path) as state:
        state.store_blob(LARGEST, BLOBS[LARGEST])
        came = fetch(state, updates)
        assert came == updates.sent_bytes == sum(len(BLOBS[digest]) for digest in BLOBS.keys() - {LARGEST})
        assert {digest: state.read_blob(digest) for digest in state.digests()} == BLOBS
        assert fetch(state, updates) == 0
        assert list((tmp_path / "partial").iterdir()) == []


@pytest.mark.parametrize("lost_bytes", range(500, sum(map(len, BLOBS.values())), 1700))
def test_a_fetch_that_breaks_goes_on_and_no_chunk_comes_twice(tmp_path: Path, lost_bytes: int) -> None:
    updates = service()
    updates.breaks_after_bytes = lost_bytes
    with StateFolder(tmp_path) as state, pytest.raises(UnreachableError):
        fetch(state, updates)
    updates.breaks_after_bytes = None
    with StateFolder(tmp_path) as state:
        fetch(state, updates)
        assert {digest: state.read_blob(digest) for digest in state.digests()} == BLOBS
    assert updates.sent_bytes == sum(map(len, BLOBS.values()))


def test_a_device_that_dies_at_any_write_of_a_fetch_fetches_at_most_one_chunk_twice(tmp_path: Path) -> None:
    def clear() -> None:
        with StateFolder(tmp_path) as state:
            for digest in state.digests():
                state.blobs.remove(digest)
            partial_of(state).keep_only(())

    def act(disk: DyingDisk) -> None:
        with StateFolder(tmp_path, disk=disk) as state:
            fetch(state, service())

    count = 0
    for kind, lives in deaths(clear, act):
        count += 1
        with StateFolder(tmp_path) as state:
            kept = {path.name: path.stat().st_size for path in (tmp_path / "partial").glob("*")}
            updates = service()
            try:
                fetch(state, updates)
            except DigestMismatchError:  # what a power cut left of a part is found out, and fetched anew
                assert kind == "power cut"
                fetch(state, updates)
            assert {digest: state.read_blob(digest) for digest in state.digests()} == BLOBS, (kind, lives)
            if kind == "killed":
                for digest, offset, _ in updates.sent:
                    assert offset >= kept.get(digest, 0) - 76, (kind, lives)
    assert count > 50


def test_a_part_of_another_payload_is_left(tmp_path: Path) -> None:
    updates = service()
    updates.breaks_after_bytes = 5000
    with StateFolder(tmp_path) as state:
        with pytest.raises(UnreachableError):
            fetch(state, updates)
        replaced = service()
        partial_of(state).begin(Payload(LARGEST, Encoding.FULL, "", 9999, "e" * 64), 0)
        partial_of(state).append(LARGEST, b"x" * 500)
        fetch(state, replaced)
        assert {digest: state.read_blob(digest) for digest in state.digests()} == BLOBS
        assert (LARGEST, 0, CHUNK) in replaced.sent


def test_what_is_damaged_on_the_way_is_fetched_anew(tmp_path: Path) -> None:
    updates = service()
    updates.damages = range(0, 100, 7)
    with StateFolder(tmp_path) as state:
        for _ in range(20):
            try:
                fetch(state, updates)
            except (DigestMismatchError, MalformedError):
                continue
            break
        assert {digest: state.read_blob(digest) for digest in state.digests()} == BLOBS


@pytest.mark.parametrize("kept_bytes", [1, HEADER_BYTES, CHUNK, 3 * CHUNK, 8 * CHUNK + HEADER_BYTES])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_what_was_kept_is_verified_with_what_comes(
    tmp_path: Path, kept_bytes: int, *, is_damaged: bool
) -> None:
    stored, sizes = BLOBS[LARGEST], {LARGEST: SIZES[LARGEST]}
    kept = bytearray(stored[:kept_bytes])
    kept[-1] ^= is_damaged
    with StateFolder(tmp_path) as state:
        partial = partial_of(state)
        partial.begin(FULL, 0)
        partial.append(LARGEST, bytes(kept))
        if is_damaged:
            with pytest.raises(DigestMismatchError):
                fetch_blobs(service(), state, partial, sizes)
            assert state.digests() == frozenset()
        came = fetch_blobs(service(), state, partial, sizes)
        assert came == (len(stored) if is_damaged else len(stored) - kept_bytes)
        assert state.read_blob(LARGEST) == stored


def test_blobs_that_are_large_and_encoded_are_kept_in_their_order(tmp_path: Path) -> None:
    codes = np.random.default_rng(7).integers(0, 4, (2, 2 << 20), np.uint8)
    contents = [*(row.tobytes() for row in codes), *CONTENTS]
    blobs = {content_digest(content): encode_blob(content, level=1) for content in contents}
    updates = service(**blobs)
    with StateFolder(tmp_path) as state:
        sizes = {content_digest(content): len(content) for content in contents}
        assert fetch_blobs(updates, state, partial_of(state), sizes) == sum(map(len, blobs.values()))
        assert state.digests() == blobs.keys()
        assert not list((tmp_path / "partial").iterdir())


def test_differences_are_put_together(tmp_path: Path) -> None:
    changed = bytearray(CONTENTS[-1])
    changed[100:103] = b"new"
    digest = content_digest(bytes(changed))
    updates = service(**{digest: encode_blob(bytes(changed))})
    with StateFolder(tmp_path) as state:
        fetch(state, updates)
        updates.sent.clear()
        came = fetch_blobs(updates, state, partial_of(state), {digest: len(changed)})
        assert 0 < came < 200
        assert content_digest(bytes(changed)) in state.digests()
        state.read_blob(digest)


def test_a_blob_that_nobody_has_is_not_found(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state, pytest.raises(NotFoundError):
        fetch_blobs(service(), state, partial_of(state), {"0" * 64: 10})


class Answers:
    """A service that sends what it is told to send."""

    def __init__(self, *pieces: Piece) -> None:
        self.pieces = pieces

    def fetch(
        self, wants: Sequence[Want], held: Collection[str], complete: Mapping[str, Collection[str]]
    ) -> Iterator[Piece]:
        assert (len(wants), len(held), len(complete)) == (1, 0, 0)
        return iter(self.pieces)

    def check(self, *_: object) -> None:
        return None


FULL = Payload(LARGEST, Encoding.FULL, "", len(BLOBS[LARGEST]), content_digest(BLOBS[LARGEST]))
ENDLESS = b"x" * (len(BLOBS[LARGEST]) + 1)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([], UnreachableError),
        ([Piece(None, 0, b"x")], MalformedError),
        ([Piece(replace(FULL, digest="a" * 64), 0, b"x")], MalformedError),
        ([Piece(replace(FULL, total_bytes=len(BLOBS[LARGEST]) + 1), 0, b"x")], MalformedError),
        ([Piece(replace(FULL, total_bytes=1 << 40), 0, b"x")], MalformedError),
        ([Piece(FULL, 0, ENDLESS)], MalformedError),
        ([Piece(FULL, 0, b"x"), Piece(None, 1, ENDLESS)], MalformedError),
        ([Piece(FULL, 5, b"x")], MalformedError),
        ([Piece(FULL, 0, b"x"), Piece(None, 0, b"x")], MalformedError),
        ([Piece(FULL, 0, b"x"), Piece(None, 2, b"x")], MalformedError),
        ([Piece(FULL, 0, b"x"), Piece(None, 1, b"")], MalformedError),
        ([Piece(FULL, 0, b"x"), Piece(FULL, 1, b"x")], MalformedError),
        ([Piece(FULL, 0, b"x")], UnreachableError),
        ([Piece(FULL, 0, ENDLESS[:-1])], DigestMismatchError),
        (
            [Piece(replace(FULL, payload_digest=content_digest(ENDLESS[:-1])), 0, ENDLESS[:-1])],
            MalformedError,
        ),
        (
            [Piece(replace(FULL, encoding=Encoding.BSDIFF, base_digest="b" * 64), 0, BLOBS[LARGEST])],
            NotFoundError,
        ),
    ],
)
def test_answers_that_are_wrong_store_nothing(
    tmp_path: Path, pieces: list[Piece], error: type[Exception]
) -> None:
    with StateFolder(tmp_path) as state:
        with pytest.raises(error):
            fetch_blobs(Answers(*pieces), state, partial_of(state), {LARGEST: SIZES[LARGEST]})
        assert state.digests() == frozenset()
        kept = [path.stat().st_size for path in (tmp_path / "partial").glob("*")]
        assert sum(kept) <= 76 + len(BLOBS[LARGEST])
        assert (
            partial_of(state).want(LARGEST).offset_bytes < FULL.total_bytes
        )  # nothing that would fail again


def test_a_compressed_bomb_is_refused(tmp_path: Path) -> None:
    bomb = encode_blob(bytes(50 << 20), level=1)
    payload = Payload(LARGEST, Encoding.FULL, "", len(bomb), content_digest(bomb))
    assert len(bomb) < SIZES[LARGEST] + HEADER_BYTES
    with StateFolder(tmp_path) as state, pytest.raises(MalformedError):
        fetch_blobs(Answers(Piece(payload, 0, bomb)), state, partial_of(state), {LARGEST: SIZES[LARGEST]})
